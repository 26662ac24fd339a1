"""First values of parameters: drawn by NumPy, by name, so that every backend starts from the same bits."""

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

from dtrain.spec.table import Finite, Rate, Table, kind

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int, ...]


class Initial(Table):
    """How the first values of one parameter are drawn."""

    @abstractmethod
    def draw(self, shape: Shape, random: "np.random.Generator") -> "np.ndarray":
        """Draw an array of `shape`, in float32."""


def fans(shape: Shape) -> tuple[int, int]:
    """Inputs and outputs of one unit, as PyTorch counts them: axis 1 in, axis 0 out, the rest a window."""
    window = math.prod(shape[2:])
    return shape[1] * window, shape[0] * window


@kind(Initial, "constant")
class Constant(Initial):
    """The same value everywhere."""

    value: Finite  # of every element

    def draw(self, shape: Shape, random: "np.random.Generator") -> "np.ndarray":
        import numpy as np

        return np.full(shape, self.value, np.float32)


@kind(Initial, "uniform")
class Uniform(Initial):
    """Uniform between -bound and bound."""

    bound: Rate  # largest absolute value

    def draw(self, shape: Shape, random: "np.random.Generator") -> "np.ndarray":
        return random.uniform(-self.bound, self.bound, shape).astype("float32")


@kind(Initial, "normal")
class Normal(Initial):
    """Normal around `mean`."""

    std: Rate  # standard deviation
    mean: Finite = 0.0  # of the values

    def draw(self, shape: Shape, random: "np.random.Generator") -> "np.ndarray":
        return (self.mean + self.std * random.standard_normal(shape)).astype("float32")


@kind(Initial, "kaiming_uniform")
class KaimingUniform(Initial):
    """Keeps the variance through rectifiers. Source: He et al. 2015 (arXiv:1502.01852)."""

    slope: Finite = 0.0  # of the leaky rectifier that follows

    def draw(self, shape: Shape, random: "np.random.Generator") -> "np.ndarray":
        bound = math.sqrt(6 / ((1 + self.slope**2) * fans(shape)[0]))
        return Uniform(bound=bound).draw(shape, random)


@kind(Initial, "kaiming_normal")
class KaimingNormal(Initial):
    """Keeps the variance through rectifiers. Source: He et al. 2015 (arXiv:1502.01852)."""

    slope: Finite = 0.0  # of the leaky rectifier that follows

    def draw(self, shape: Shape, random: "np.random.Generator") -> "np.ndarray":
        return Normal(std=math.sqrt(2 / ((1 + self.slope**2) * fans(shape)[0]))).draw(shape, random)


@kind(Initial, "xavier_uniform")
class XavierUniform(Initial):
    """Keeps the variance both ways. Source: Glorot & Bengio 2010."""

    gain: Rate = 1.0  # factor of the standard deviation

    def draw(self, shape: Shape, random: "np.random.Generator") -> "np.ndarray":
        return Uniform(bound=self.gain * math.sqrt(6 / sum(fans(shape)))).draw(shape, random)


@kind(Initial, "xavier_normal")
class XavierNormal(Initial):
    """Keeps the variance both ways. Source: Glorot & Bengio 2010."""

    gain: Rate = 1.0  # factor of the standard deviation

    def draw(self, shape: Shape, random: "np.random.Generator") -> "np.ndarray":
        return Normal(std=self.gain * math.sqrt(2 / sum(fans(shape)))).draw(shape, random)


@kind(Initial, "orthogonal")
class Orthogonal(Initial):
    """A random rotation of the flattened weight. Source: Saxe et al. 2014 (arXiv:1312.6120)."""

    gain: Rate = 1.0  # factor of the rotation

    def draw(self, shape: Shape, random: "np.random.Generator") -> "np.ndarray":
        import numpy as np

        rows, columns = shape[0], math.prod(shape[1:])
        square = random.standard_normal((max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(square)
        q *= np.sign(np.diag(r))
        return (self.gain * (q if rows >= columns else q.T).reshape(shape)).astype(np.float32)
