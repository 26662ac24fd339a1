"""What systems compute with, whatever the backend: the functions of `ops`, and of expressions in a recipe.

Arrays have their examples along axis 0, and axes count from there. In an expression the number of examples
goes without saying: `normal(128)` there is `ops.normal(len(image), 128)` here. What each function does to
shapes is in `shape_ops`, what computes it with torch in `dtrain.backends.torch_ops`.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

from dtrain.spec.schedules import Schedule
from dtrain.spec.table import Imported

Array = Any  # torch.Tensor or jax.Array
Function = Callable[[Array], Array]
Axes = int | tuple[int, ...] | None  # None: all of them


class Ops(Protocol):
    """Whatever is random comes from here, and depends on (seed, update, micro-batch) alone."""

    # Random numbers

    def normal(self, *shape: int) -> Array:
        """Numbers from N(0, 1), in the precision of the models."""
        ...

    def uniform(self, *shape: int) -> Array:
        """Numbers from U(0, 1), in the precision of the models."""
        ...

    def bernoulli(self, probability: Array | float, *shape: int) -> Array:
        """1 with a probability, else 0: one for each of an array of them, or of a shape for a number."""
        ...

    def categorical(self, logits: Array) -> Array:
        """A class drawn for each row of logits (..., classes), by their softmax: whole numbers (...)."""
        ...

    def random_shift(self, image: Array, pixels: int) -> Array:
        """Pictures (N, C, H, W), each moved by up to so many pixels both ways; its edge is repeated."""
        ...

    def random_zoom(self, image: Array, most: float) -> Array:
        """Pictures (N, C, H, W), each a part of itself, drawn and enlarged to its size, by up to `most`."""
        ...

    def random_flip(self, image: Array) -> Array:
        """Pictures (N, C, H, W), each mirrored left to right or not."""
        ...

    # Of each element

    def abs(self, x: Array) -> Array:
        """The value without its sign."""
        ...

    def sign(self, x: Array) -> Array:
        """-1, 0 or 1."""
        ...

    def floor(self, x: Array) -> Array:
        """The largest whole number that is not above x, as a fraction."""
        ...

    def exp(self, x: Array) -> Array:
        """e to the power of x."""
        ...

    def log(self, x: Array) -> Array:
        """The natural logarithm."""
        ...

    def sqrt(self, x: Array) -> Array:
        """The square root."""
        ...

    def sin(self, x: Array) -> Array:
        """The sine of radians."""
        ...

    def cos(self, x: Array) -> Array:
        """The cosine of radians."""
        ...

    def tanh(self, x: Array) -> Array:
        """The hyperbolic tangent."""
        ...

    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + exp(-x))."""
        ...

    def relu(self, x: Array) -> Array:
        """max(x, 0)."""
        ...

    def softplus(self, x: Array) -> Array:
        """log(1 + exp(x)), without overflow."""
        ...

    def hinge(self, x: Array) -> Array:
        """max(1 - x, 0)."""
        ...

    def clamp(self, x: Array, low: float, high: float) -> Array:
        """The nearest value between `low` and `high`."""
        ...

    def minimum(self, x: Array, y: Array | float) -> Array:
        """The smaller of two."""
        ...

    def maximum(self, x: Array, y: Array | float) -> Array:
        """The larger of two."""
        ...

    def where(self, condition: Array, x: Array | float, y: Array | float) -> Array:
        """x where the condition holds, else y."""
        ...

    # Over axes

    def sum(self, x: Array, axis: Axes = None) -> Array:
        """The sum over axes; over all of them, those of the examples too, if left out."""
        ...

    def mean(self, x: Array, axis: Axes = None) -> Array:
        """The mean over axes; over all of them, those of the examples too, if left out."""
        ...

    def max(self, x: Array, axis: int = -1) -> Array:
        """The largest value along an axis."""
        ...

    def argmax(self, x: Array, axis: int = -1) -> Array:
        """Where along an axis the largest value is: whole numbers."""
        ...

    def logsumexp(self, x: Array, axis: int = -1) -> Array:
        """log(sum(exp(x))) along an axis, without overflow."""
        ...

    def softmax(self, x: Array, axis: int = -1) -> Array:
        """exp(x) as shares of their sum along an axis."""
        ...

    def log_softmax(self, x: Array, axis: int = -1) -> Array:
        """The logarithm of softmax, without overflow."""
        ...

    def normalize(self, x: Array, axis: int = -1) -> Array:
        """x with a Euclidean length of 1 along an axis."""
        ...

    def norm(self, x: Array) -> Array:
        """Euclidean length of each example, (N,); its slope at 0 is 0."""
        ...

    # Shapes

    def concat(self, *parts: Array, axis: int = 1) -> Array:
        """Arrays behind each other along an axis."""
        ...

    def split(self, x: Array, parts: int, axis: int = 1) -> tuple[Array, ...]:
        """Equal parts along an axis: `split(x, 2)[0]` is the first half of the channels."""
        ...

    def slice(self, x: Array, start: int, stop: int, axis: int = 1) -> Array:
        """The elements from `start` to before `stop` along an axis; below 0 they count from its end."""
        ...

    def reshape(self, x: Array, *shape: int) -> Array:
        """The same values in another shape."""
        ...

    def expand(self, x: Array, like: Array) -> Array:
        """x repeated along its axes of size 1 until it has the shape of `like`."""
        ...

    def transpose(self, x: Array) -> Array:
        """The last two axes exchanged."""
        ...

    def matmul(self, x: Array, y: Array) -> Array:
        """The matrix product over the last two axes."""
        ...

    def eye(self, like: Array) -> Array:
        """1 on the diagonal and 0 elsewhere, a matrix with the last two axes of `like`."""
        ...

    def positions(self, like: Array) -> Array:
        """0, 1, 2, ... for the examples of `like`: whole numbers (N,)."""
        ...

    def one_hot(self, label: Array, classes: int) -> Array:
        """1 at the class and 0 elsewhere, along a new last axis."""
        ...

    def detach(self, x: Array) -> Array:
        """The same values; no gradient flows through them."""
        ...

    # Losses: means over all elements, or over the examples

    def cross_entropy(
        self, logits: Array, label: Array, *, smoothing: float = 0.0, weight: Array | None = None
    ) -> Array:
        """Mean cross-entropy of logits (..., classes) and labels (...), or probabilities (..., classes).

        `smoothing` is the share of each label that goes to all classes; `weight` (...) makes it the
        weighted mean, as of tokens of which some are padding.
        """
        ...

    def bce(self, logits: Array, target: Array | float) -> Array:
        """Mean binary cross-entropy of logits and targets from 0 to 1."""
        ...

    def mse(self, x: Array, y: Array | float) -> Array:
        """Mean squared difference of two arrays of the same shape, or from a number."""
        ...

    def l1(self, x: Array, y: Array | float) -> Array:
        """Mean absolute difference."""
        ...

    def huber(self, x: Array, y: Array | float, *, delta: float = 1.0) -> Array:
        """Mean of d²/2 for differences d below `delta`, and of delta (|d| - delta/2) above. Huber 1964."""
        ...

    def kl_normal(self, mean: Array, log_variance: Array) -> Array:
        """Divergence of N(mean, variance) from N(0, 1): summed over each example, averaged over them.

        Source: Kingma & Welling 2013 (arXiv:1312.6114), appendix B.
        """
        ...

    def kl_categorical(self, logits: Array, other: Array) -> Array:
        """KL(p || q) of the classes that logits (..., classes) give, p, and the other ones, q: the mean."""
        ...

    def cosine(self, x: Array, y: Array) -> Array:
        """Cosine of the angle between two vectors, along the last axis."""
        ...

    # Gradients in the input; in an expression the first argument is written in terms of the second

    def gradient(self, function: Function, x: Array) -> Array:
        """Slope of sum(function(x)) in x, of the shape of x; itself differentiable, for penalties."""
        ...

    def gradient_penalty(self, function: Function, x: Array, *, target: float = 1.0) -> Array:
        """Mean squared distance of the slope's length at x from `target`: Gulrajani et al. 2017
        (arXiv:1704.00028); with a target of 0, R1: Mescheder et al. 2018 (arXiv:1801.04406)."""
        ...

    def fgsm(self, function: Function, x: Array, *, eps: float, low: float, high: float) -> Array:
        """x moved by eps in each element, up the slope of `function`, and kept between `low` and `high`.

        Source: Goodfellow et al. 2014 (arXiv:1412.6572).
        """
        ...

    def pgd(
        self,
        function: Function,
        x: Array,
        *,
        eps: float,
        steps: int,
        low: float,
        high: float,
        step_size: float | None = None,
        norm: Literal["linf", "l2"] = "linf",
        random_start: bool = True,
    ) -> Array:
        """x moved up the slope of `function` in steps, within eps of x and between `low` and `high`.

        `step_size` is 2.5 eps / steps if left out. Source: Madry et al. 2017 (arXiv:1706.06083).
        """
        ...

    # The run

    def factor(self, schedule: Schedule) -> float:
        """The factor of a schedule at the step of the run."""
        ...

    def call(self, imported: Imported, prediction: Array, target: Array, *, at: str) -> Array:
        """What a loss or a metric given by an import path makes of predictions and targets: a scalar.

        It must be a mean over the examples: so it is averaged over micro-batches by how many each has.
        `at` is its key in the recipe, for errors.
        """
        ...
