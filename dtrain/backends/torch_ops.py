"""`Ops` for torch: what each does is said in `dtrain.systems.ops`."""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dtrain.backends.torch_attacks import Function, climb, full_precision, slope_of
from dtrain.backends.torch_measures import Measure, build_measure, measured
from dtrain.spec.lengths import Pace
from dtrain.spec.schedules import Schedule, in_steps
from dtrain.spec.table import Imported
from dtrain.spec.trust import EVERYTHING, Trust


class DifferentiatedTwice(Exception):
    """A loss has slopes in it, and the engine must know before its models are called."""


Axes = int | tuple[int, ...] | None


class TorchOps:
    """Draws come from the device's default generator, which the engine seeds for every micro-batch.

    `step` is the step of the run, counted from 0, and `pace` the run's; the engine keeps them.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, trust: Trust = EVERYTHING):
        self.device = device
        self.dtype = dtype
        self.trust = trust  # of what `call` may import
        self.differentiates_twice = True  # whether the engine is ready for losses with slopes in them
        self.step, self.pace = 0, Pace(total=1, examples=1, batch_size=1, steps_for=int)
        self._in_steps: Callable[[Schedule, Pace], Schedule] = lru_cache(in_steps)
        self._measures: dict[str, Measure] = {}  # losses and metrics that were imported, by their keys

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device, dtype=self.dtype)

    def bernoulli(self, probability: Tensor | float, *shape: int) -> Tensor:
        if isinstance(probability, Tensor):
            return torch.bernoulli(probability)
        return torch.empty(shape, device=self.device, dtype=self.dtype).bernoulli_(probability)

    def categorical(self, logits: Tensor) -> Tensor:
        rows = logits.reshape(-1, logits.shape[-1]).softmax(-1)
        return torch.multinomial(rows, 1).reshape(logits.shape[:-1])

    def random_shift(self, image: Tensor, pixels: int) -> Tensor:
        count, _, height, width = image.shape
        padded = F.pad(image, (pixels,) * 4, mode="replicate")
        top, left = torch.randint(2 * pixels + 1, (2, count, 1), device=image.device)
        rows = top + torch.arange(height, device=image.device)  # (N, H)
        columns = left + torch.arange(width, device=image.device)  # (N, W)
        number = torch.arange(count, device=image.device)[:, None, None]
        return padded[number, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def random_zoom(self, image: Tensor, most: float) -> Tensor:
        share = 1 / (1 + (most - 1) * torch.rand(len(image), device=image.device, dtype=image.dtype))
        middle = torch.rand(2, len(image), device=image.device, dtype=image.dtype) * 2 - 1
        across, down = middle * (1 - share)  # (N,), where -1 and 1 are the edges
        zero = torch.zeros_like(share)
        rows = torch.stack([share, zero, across, zero, share, down], dim=1)
        with full_precision(image.device):  # places in half precision are off by parts of a pixel
            grid = F.affine_grid(rows.view(-1, 2, 3), list(image.shape), align_corners=False)
        return F.grid_sample(image, grid, padding_mode="border", align_corners=False)

    def random_flip(self, image: Tensor) -> Tensor:
        chosen = torch.rand(len(image), 1, 1, 1, device=image.device) < 0.5
        return torch.where(chosen, image.flip(-1), image)

    def abs(self, x: Tensor) -> Tensor:
        return x.abs()

    def sign(self, x: Tensor) -> Tensor:
        return x.sign()

    def floor(self, x: Tensor) -> Tensor:
        return x.floor()

    def exp(self, x: Tensor) -> Tensor:
        return x.exp()

    def log(self, x: Tensor) -> Tensor:
        return x.log()

    def sqrt(self, x: Tensor) -> Tensor:
        return x.sqrt()

    def sin(self, x: Tensor) -> Tensor:
        return x.sin()

    def cos(self, x: Tensor) -> Tensor:
        return x.cos()

    def tanh(self, x: Tensor) -> Tensor:
        return x.tanh()

    def sigmoid(self, x: Tensor) -> Tensor:
        return x.sigmoid()

    def relu(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def softplus(self, x: Tensor) -> Tensor:
        return F.softplus(x)

    def hinge(self, x: Tensor) -> Tensor:
        return F.relu(1 - x)

    def clamp(self, x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    def minimum(self, x: Tensor, y: Tensor | float) -> Tensor:
        return torch.minimum(*self._pair(x, y))

    def maximum(self, x: Tensor, y: Tensor | float) -> Tensor:
        return torch.maximum(*self._pair(x, y))

    def where(self, condition: Tensor, x: Tensor | float, y: Tensor | float) -> Tensor:
        return torch.where(condition, *self._pair(x, y))

    def sum(self, x: Tensor, axis: Axes = None) -> Tensor:
        return x.sum() if axis is None else x.sum(axis)

    def mean(self, x: Tensor, axis: Axes = None) -> Tensor:
        x = x if x.is_floating_point() else x.to(self.dtype)
        return x.mean() if axis is None else x.mean(axis)

    def max(self, x: Tensor, axis: int = -1) -> Tensor:
        return x.amax(axis)

    def argmax(self, x: Tensor, axis: int = -1) -> Tensor:
        return x.argmax(axis)

    def logsumexp(self, x: Tensor, axis: int = -1) -> Tensor:
        return x.logsumexp(axis)

    def softmax(self, x: Tensor, axis: int = -1) -> Tensor:
        return x.softmax(axis)

    def log_softmax(self, x: Tensor, axis: int = -1) -> Tensor:
        return x.log_softmax(axis)

    def normalize(self, x: Tensor, axis: int = -1) -> Tensor:
        return F.normalize(x, dim=axis)

    def norm(self, x: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1)
        return length

    def concat(self, *parts: Tensor, axis: int = 1) -> Tensor:
        return torch.cat(parts, axis)

    def split(self, x: Tensor, parts: int, axis: int = 1) -> tuple[Tensor, ...]:
        return x.chunk(parts, axis)

    def slice(self, x: Tensor, start: int, stop: int, axis: int = 1) -> Tensor:
        first, last, _ = slice(start, stop).indices(x.shape[axis])
        return x.narrow(axis, first, last - first)

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        return x.reshape(shape)

    def expand(self, x: Tensor, like: Tensor) -> Tensor:
        return x.expand_as(like)

    def transpose(self, x: Tensor) -> Tensor:
        return x.transpose(-1, -2)

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = self._pair(x, y)
        with full_precision(x.device):  # losses are in full, whatever models compute in
            return x @ y

    def eye(self, like: Tensor) -> Tensor:
        return torch.eye(like.shape[-2], like.shape[-1], device=self.device, dtype=self.dtype)

    def positions(self, like: Tensor) -> Tensor:
        return torch.arange(len(like), device=self.device)

    def one_hot(self, label: Tensor, classes: int) -> Tensor:
        return F.one_hot(label, classes).to(self.dtype)

    def detach(self, x: Tensor) -> Tensor:
        return x.detach()

    def cross_entropy(
        self, logits: Tensor, label: Tensor, *, smoothing: float = 0.0, weight: Tensor | None = None
    ) -> Tensor:
        rows = logits.reshape(-1, logits.shape[-1])
        target = label.reshape(-1, logits.shape[-1]) if label.is_floating_point() else label.reshape(-1)
        if weight is None:
            return F.cross_entropy(rows, target, label_smoothing=smoothing)
        each = F.cross_entropy(rows, target, label_smoothing=smoothing, reduction="none")
        weights = weight.reshape(-1).to(each.dtype)
        tiny = torch.finfo(each.dtype).tiny  # a micro-batch may hold nothing but padding
        return (each * weights).sum() / weights.sum().clamp_min(tiny)

    def bce(self, logits: Tensor, target: Tensor | float) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, like(logits, target))

    def mse(self, x: Tensor, y: Tensor | float) -> Tensor:
        return F.mse_loss(x, like(x, y))

    def l1(self, x: Tensor, y: Tensor | float) -> Tensor:
        return F.l1_loss(x, like(x, y))

    def huber(self, x: Tensor, y: Tensor | float, *, delta: float = 1.0) -> Tensor:
        return F.huber_loss(x, like(x, y), delta=delta)

    def kl_normal(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        each = mean**2 + log_variance.exp() - 1 - log_variance
        return each.sum() / (2 * len(mean))

    def kl_categorical(self, logits: Tensor, other: Tensor) -> Tensor:
        p, q = logits.log_softmax(-1), other.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean()

    def cosine(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cosine_similarity(x, y, dim=-1)

    def gradient(self, function: Function, x: Tensor) -> Tensor:
        if not self.differentiates_twice:
            raise DifferentiatedTwice
        return slope_of(function, x, differentiable=True)

    def gradient_penalty(self, function: Function, x: Tensor, *, target: float = 1.0) -> Tensor:
        return ((self.norm(self.gradient(function, x)) - target) ** 2).mean()

    def fgsm(self, function: Function, x: Tensor, *, eps: float, low: float, high: float) -> Tensor:
        return (x.detach() + eps * slope_of(function, x).sign()).clamp(low, high)

    def pgd(
        self,
        function: Function,
        x: Tensor,
        *,
        eps: float,
        steps: int,
        low: float,
        high: float,
        step_size: float | None = None,
        norm: Literal["linf", "l2"] = "linf",
        random_start: bool = True,
    ) -> Tensor:
        size = 2.5 * eps / steps if step_size is None else step_size
        return climb(
            function,
            x.detach(),
            eps=eps,
            steps=steps,
            size=size,
            low=low,
            high=high,
            is_euclidean=norm == "l2",
            random_start=random_start,
        )

    @torch._disable_dynamo  # type: ignore[attr-defined]  # or it would be compiled anew at each step
    def factor(self, schedule: Schedule) -> float:
        return self._in_steps(schedule, self.pace)(self.step, self.pace.total)

    def call(self, imported: Imported, prediction: Tensor, target: Tensor, *, at: str) -> Tensor:
        if at not in self._measures:
            self._measures[at] = build_measure(imported, self.device, self.dtype, at=at, trust=self.trust)
        return measured(self._measures[at], imported, prediction, target, at=at)

    def _pair(self, x: Tensor | float, y: Tensor | float) -> tuple[Tensor, Tensor]:
        """Both as arrays of one type, one of which may be a number or hold whole ones."""
        one, other = self._as_array(x), self._as_array(y)
        kind = torch.promote_types(one.dtype, other.dtype)
        return one.to(kind), other.to(kind)

    def _as_array(self, x: Tensor | float) -> Tensor:
        """A number as an array, filled on the device: a copy from the CPU would be waited for."""
        if isinstance(x, Tensor):
            return x
        kind = self.dtype if isinstance(x, float) else torch.int64
        return torch.full((), x, device=self.device, dtype=kind)


def like(x: Tensor, y: Tensor | float) -> Tensor:
    """y as an array of the shape and type of x. Raises ValueError where it has another shape."""
    if not isinstance(y, Tensor):
        return torch.full_like(x, y)
    if x.shape != y.shape:  # to repeat either in silence is how losses go wrong
        raise ValueError(f"arrays of {list(x.shape)} and {list(y.shape)} are not alike")
    return y.to(x.dtype)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed what dropout and `Ops` draw from: the default generators of the CPU and of the device.

    torch.manual_seed does the same but takes 350 us where CUDA is not initialised, for a stack trace.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
