"""What each function of `ops` does to shapes: the same functions, of arrays that are not there yet.

Raises Misfit where arrays do not fit. Shapes have the axis of the examples, N.
"""

from collections.abc import Callable
from typing import Literal

from dtrain.spec.schedules import Schedule
from dtrain.spec.table import Imported
from dtrain.systems.shapes import (
    SCALAR,
    Examples,
    Misfit,
    Shaped,
    Size,
    axis_of,
    bounded,
    shape_text,
    sort_of,
    together,
    volume,
    without,
)

Axes = int | tuple[int, ...] | None
Function = Callable[[Shaped], Shaped]


def each(x: Shaped) -> Shaped:
    """Fractions of the same shape, one for each of x."""
    if x.sort not in ("fractions", None):
        raise Misfit(f"takes fractions, and this holds {x.sort}")
    return x


def alike(x: Shaped, y: Shaped | float) -> Shaped:
    """A scalar made of two arrays of the same shape, or of an array and a number."""
    each(x)
    if isinstance(y, Shaped) and None not in (x.shape, y.shape) and x.shape != y.shape:
        raise Misfit(f"takes two arrays of the same shape, not {x} and {y}")
    return SCALAR


def labelled(logits: Shaped, label: Shaped) -> None:
    """Raise Misfit unless labels belong to logits (..., classes)."""
    each(logits)
    if logits.shape is None or label.shape is None:
        return
    if len(logits.shape) < 2:
        raise Misfit(f"takes logits (..., classes), not {logits}")
    if label.sort == "fractions":
        if label.shape != logits.shape:
            raise Misfit(f"takes labels {shape_text(logits.shape[:-1])}, or shares {logits}, not {label}")
    elif label.shape != logits.shape[:-1]:
        raise Misfit(f"takes labels {shape_text(logits.shape[:-1])} for logits {logits}, not {label}")


def pictures(image: Shaped) -> Shaped:
    """Pictures as they are. Raises Misfit for anything else."""
    if image.shape is not None and len(image.shape) != 4:
        raise Misfit(f"takes pictures (N, channels, height, width), not {image}")
    return each(image)


class ShapeOps:
    """`Ops` for shapes."""

    def normal(self, *shape: Size) -> Shaped:
        return Shaped(bounded(shape), "fractions")

    def uniform(self, *shape: Size) -> Shaped:
        return Shaped(bounded(shape), "fractions")

    def bernoulli(self, probability: Shaped | float, *shape: Size) -> Shaped:
        if isinstance(probability, Shaped):
            if shape:
                raise Misfit("takes a shape with a number, and none with an array of probabilities")
            return each(probability)
        if not 0 <= probability <= 1:
            raise Misfit(f"takes a probability from 0 to 1, not {probability:g}")
        return Shaped(bounded(shape), "fractions")

    def categorical(self, logits: Shaped) -> Shaped:
        return self.argmax(each(logits))

    def random_shift(self, image: Shaped, pixels: int) -> Shaped:
        if pixels < 0:
            raise Misfit("takes a number of pixels from 0 on")
        return pictures(image)

    def random_zoom(self, image: Shaped, most: float) -> Shaped:
        if most < 1:
            raise Misfit("takes a factor from 1 on")
        return pictures(image)

    def random_flip(self, image: Shaped) -> Shaped:
        return pictures(image)

    def abs(self, x: Shaped) -> Shaped:
        return each(x)

    def sign(self, x: Shaped) -> Shaped:
        return each(x)

    def floor(self, x: Shaped) -> Shaped:
        return each(x)

    def exp(self, x: Shaped) -> Shaped:
        return each(x)

    def log(self, x: Shaped) -> Shaped:
        return each(x)

    def sqrt(self, x: Shaped) -> Shaped:
        return each(x)

    def sin(self, x: Shaped) -> Shaped:
        return each(x)

    def cos(self, x: Shaped) -> Shaped:
        return each(x)

    def tanh(self, x: Shaped) -> Shaped:
        return each(x)

    def sigmoid(self, x: Shaped) -> Shaped:
        return each(x)

    def relu(self, x: Shaped) -> Shaped:
        return each(x)

    def softplus(self, x: Shaped) -> Shaped:
        return each(x)

    def hinge(self, x: Shaped) -> Shaped:
        return each(x)

    def clamp(self, x: Shaped, low: float, high: float) -> Shaped:
        if low > high:
            raise Misfit(f"takes a low end that is not above the high one, not {low:g} and {high:g}")
        return each(x)

    def minimum(self, x: Shaped, y: Shaped | float) -> Shaped:
        return together(x, y)

    def maximum(self, x: Shaped, y: Shaped | float) -> Shaped:
        return together(x, y)

    def where(self, condition: Shaped, x: Shaped | float, y: Shaped | float) -> Shaped:
        if condition.sort not in ("truth values", None):
            raise Misfit(f"takes a condition such as x > 0 first, and this holds {condition.sort}")
        chosen = together(x, y) if isinstance(x, Shaped) or isinstance(y, Shaped) else None
        if chosen is None:
            sort = "fractions" if "fractions" in (sort_of(x), sort_of(y)) else "whole numbers"
            return Shaped(condition.shape, sort)  # type: ignore[arg-type]  # one of the sorts
        return together(condition, chosen, chosen.sort)

    def sum(self, x: Shaped, axis: Axes = None) -> Shaped:
        return Shaped(without(x, axis), "whole numbers" if x.sort == "truth values" else x.sort)

    def mean(self, x: Shaped, axis: Axes = None) -> Shaped:
        return Shaped(without(x, axis), "fractions")

    def max(self, x: Shaped, axis: int = -1) -> Shaped:
        return Shaped(without(x, axis), x.sort)

    def argmax(self, x: Shaped, axis: int = -1) -> Shaped:
        return Shaped(without(x, axis), "whole numbers")

    def logsumexp(self, x: Shaped, axis: int = -1) -> Shaped:
        return Shaped(without(each(x), axis), "fractions")

    def softmax(self, x: Shaped, axis: int = -1) -> Shaped:
        without(x, axis)
        return each(x)

    def log_softmax(self, x: Shaped, axis: int = -1) -> Shaped:
        without(x, axis)
        return each(x)

    def normalize(self, x: Shaped, axis: int = -1) -> Shaped:
        without(x, axis)
        return each(x)

    def norm(self, x: Shaped) -> Shaped:
        return Shaped(None if x.shape is None else x.shape[:1], each(x).sort)

    def concat(self, *parts: Shaped, axis: int = 1) -> Shaped:
        if not parts:
            raise Misfit("takes arrays to put behind each other")
        shapes = [part.shape for part in parts if part.shape is not None]
        if len({part.sort for part in parts if part.sort}) > 1:
            raise Misfit("takes arrays that hold the same: fractions, or whole numbers")
        if len(shapes) < len(parts):
            return Shaped(None, parts[0].sort)
        place = axis_of(parts[0], axis)
        rests = {shape[:place] + shape[place + 1 :] for shape in shapes}
        if len(rests) > 1 or len({len(shape) for shape in shapes}) > 1:
            texts = " and ".join(shape_text(shape) for shape in shapes)
            raise Misfit(f"{texts} differ in more than axis {axis}")
        first, rest = shapes[0], [shape[place] for shape in shapes]
        return Shaped((*first[:place], _added(rest), *first[place + 1 :]), parts[0].sort)

    def split(self, x: Shaped, parts: int, axis: int = 1) -> tuple[Shaped, ...]:
        if not 1 <= parts <= 100:
            raise Misfit(f"takes a number of parts from 1 to 100, not {parts}")
        if x.shape is None:
            return (x,) * parts
        place = axis_of(x, axis)
        size = x.shape[place]
        amount = size.times if isinstance(size, Examples) else size
        if amount % parts:
            raise Misfit(f"axis {axis} of {x} does not divide into {parts} equal parts")
        part: Size = Examples(amount // parts) if isinstance(size, Examples) else amount // parts
        return (Shaped((*x.shape[:place], part, *x.shape[place + 1 :]), x.sort),) * parts

    def slice(self, x: Shaped, start: int, stop: int, axis: int = 1) -> Shaped:
        if x.shape is None:
            return x
        place = axis_of(x, axis)
        size = x.shape[place]
        if isinstance(size, Examples):
            raise Misfit(f"axis {axis} of {x} is that of the examples; a loss takes all of them")
        length = len(range(*slice(start, stop).indices(size)))
        if not length:
            raise Misfit(f"nothing of {x} lies from {start} to before {stop} along axis {axis}")
        return Shaped((*x.shape[:place], length, *x.shape[place + 1 :]), x.sort)

    def reshape(self, x: Shaped, *shape: Size) -> Shaped:
        bounded(shape)
        if x.shape is not None and volume(x.shape) != volume(shape):
            raise Misfit(f"{shape_text(shape)} does not hold as many values as {x}")
        return Shaped(shape, x.sort)

    def expand(self, x: Shaped, like: Shaped) -> Shaped:
        if together(x, like).shape != like.shape and None not in (x.shape, like.shape):
            raise Misfit(f"{x} cannot be repeated to {like}")
        return Shaped(like.shape, x.sort)

    def transpose(self, x: Shaped) -> Shaped:
        if x.shape is None:
            return x
        if len(x.shape) < 2:
            raise Misfit(f"takes an array of two axes or more, not {x}")
        return Shaped((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.sort)

    def matmul(self, x: Shaped, y: Shaped) -> Shaped:
        each(x), each(y)
        if x.shape is None or y.shape is None:
            return Shaped(None, "fractions")
        if min(len(x.shape), len(y.shape)) < 2 or x.shape[-1] != y.shape[-2]:
            raise Misfit(f"the last axis of {x} and the last but one of {y} must agree")
        front = together(Shaped(x.shape[:-2], x.sort), Shaped(y.shape[:-2], y.sort)).shape
        return Shaped((*(front or ()), x.shape[-2], y.shape[-1]), "fractions")

    def eye(self, like: Shaped) -> Shaped:
        if like.shape is None:
            return Shaped(None, "fractions")
        if len(like.shape) < 2:
            raise Misfit(f"takes an array of two axes or more, not {like}")
        return Shaped(like.shape[-2:], "fractions")

    def positions(self, like: Shaped) -> Shaped:
        return Shaped(None if like.shape is None else like.shape[:1], "whole numbers")

    def one_hot(self, label: Shaped, classes: int) -> Shaped:
        if label.sort not in ("whole numbers", None):
            raise Misfit(f"takes whole numbers, and this holds {label.sort}")
        return Shaped(None if label.shape is None else bounded((*label.shape, classes)), "fractions")

    def detach(self, x: Shaped) -> Shaped:
        return x

    def cross_entropy(
        self, logits: Shaped, label: Shaped, *, smoothing: float = 0.0, weight: Shaped | None = None
    ) -> Shaped:
        labelled(logits, label)
        if not 0 <= smoothing <= 1:
            raise Misfit(f"takes a smoothing from 0 to 1, not {smoothing:g}")
        if weight is not None and logits.shape is not None and weight.shape not in (None, logits.shape[:-1]):
            raise Misfit(f"takes weights {shape_text(logits.shape[:-1])} for logits {logits}, not {weight}")
        return SCALAR

    def bce(self, logits: Shaped, target: Shaped | float) -> Shaped:
        return alike(logits, target)

    def mse(self, x: Shaped, y: Shaped | float) -> Shaped:
        return alike(x, y)

    def l1(self, x: Shaped, y: Shaped | float) -> Shaped:
        return alike(x, y)

    def huber(self, x: Shaped, y: Shaped | float, *, delta: float = 1.0) -> Shaped:
        if delta <= 0:
            raise Misfit(f"takes a delta above 0, not {delta:g}")
        return alike(x, y)

    def kl_normal(self, mean: Shaped, log_variance: Shaped) -> Shaped:
        return alike(mean, log_variance)

    def kl_categorical(self, logits: Shaped, other: Shaped) -> Shaped:
        return alike(logits, other)

    def cosine(self, x: Shaped, y: Shaped) -> Shaped:
        alike(x, y)
        return Shaped(without(x, -1), "fractions")

    def gradient(self, function: Function, x: Shaped) -> Shaped:
        each(function(each(x)))
        return x

    def gradient_penalty(self, function: Function, x: Shaped, *, target: float = 1.0) -> Shaped:
        each(function(each(x)))
        return SCALAR

    def fgsm(self, function: Function, x: Shaped, *, eps: float, low: float, high: float) -> Shaped:
        return self.pgd(function, x, eps=eps, steps=1, low=low, high=high)

    def pgd(
        self,
        function: Function,
        x: Shaped,
        *,
        eps: float,
        steps: int,
        low: float,
        high: float,
        step_size: float | None = None,
        norm: Literal["linf", "l2"] = "linf",
        random_start: bool = True,
    ) -> Shaped:
        if eps < 0 or steps < 1 or low >= high:
            raise Misfit("takes an eps from 0 on, one step or more, and a low end below the high one")
        each(function(each(x)))
        return x

    def factor(self, schedule: Schedule) -> float:
        return 1.0

    def call(self, imported: Imported, prediction: Shaped, target: Shaped, *, at: str) -> Shaped:
        return SCALAR


def _added(sizes: list[Size]) -> Size:
    """How long arrays are behind each other."""
    grown = [size.times for size in sizes if isinstance(size, Examples)]
    if grown and len(grown) < len(sizes):
        raise Misfit("examples and what is not examples cannot stand behind each other")
    return Examples(sum(grown)) if grown else sum(size for size in sizes if isinstance(size, int))
