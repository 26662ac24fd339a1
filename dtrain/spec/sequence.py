"""Layers of sequences, (length, features), most of which let the elements of one know of each other."""

import math

from dtrain.spec.initial import Constant, Normal, Shape, Uniform, XavierUniform
from dtrain.spec.layers import InitialWeight, Layer, Parameter
from dtrain.spec.table import Positive, kind


def features_of(layer: Layer, shape: Shape) -> int:
    """The features of each element. Raises ValueError unless `shape` is that of a sequence."""
    if len(shape) != 2:
        raise ValueError(f"{layer.kind} needs (length, features), not {shape}; an embedding gives them")
    return shape[1]


@kind(Layer, "embedding")
class Embedding(Layer):
    """A learned vector for each of `size` whole numbers."""

    size: Positive  # the numbers are 0 to size - 1
    out: Positive  # length of each vector
    initial: InitialWeight = None  # normal with std 1 when left out

    def out_shape(self, shape: Shape) -> Shape:
        return (*shape, self.out)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        return {"weight": Parameter((self.size, self.out), self.initial or Normal(std=1.0))}


@kind(Layer, "position")
class Position(Layer):
    """Adds a learned vector for each place in the sequence, so that attention can tell them apart.

    A shorter sequence than the model's input uses the first of them. Source: Gehring et al. 2017
    (arXiv:1705.03122).
    """

    initial: InitialWeight = None  # normal with std 0.02 when left out

    def out_shape(self, shape: Shape) -> Shape:
        features_of(self, shape)
        return shape

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        return {"weight": Parameter(shape, self.initial or Normal(std=0.02))}


@kind(Layer, "attention")
class Attention(Layer):
    """Multi-head self-attention: each element of a sequence takes up what it asks the others for.

    Without normalisation and shortcut, which a layer_norm and a residual around it give. Rotary places:
    Su et al. 2021 (arXiv:2104.09864). Source: Vaswani et al. 2017 (arXiv:1706.03762).
    """

    heads: Positive  # the features must divide into them
    causal: bool = True  # whether an element sees only itself and those before it
    rotary: bool = False  # turns questions and keys by their place, instead of a position layer

    def out_shape(self, shape: Shape) -> Shape:
        features = features_of(self, shape)
        if features % self.heads:
            raise ValueError(f"{features} features do not divide into {self.heads} heads")
        if self.rotary and features // self.heads % 2:
            size = features // self.heads
            raise ValueError(
                f"rotary turns pairs of features, but each head has {size}; an even number would do"
            )
        return shape

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Those of torch.nn.MultiheadAttention; `in_proj` holds questions, keys and values, in this order."""
        features = features_of(self, shape)
        zero = Constant(value=0.0)
        return {
            "in_proj_weight": Parameter((3 * features, features), XavierUniform()),
            "in_proj_bias": Parameter((3 * features,), zero),
            "out_proj.weight": Parameter((features, features), Uniform(bound=1 / math.sqrt(features))),
            "out_proj.bias": Parameter((features,), zero),
        }


@kind(Layer, "gru")
class GRU(Layer):
    """A gated recurrent unit: it reads a sequence from the first element on and remembers what it needs.

    What comes out at each element is what it remembers there; before the first that is 0.
    Source: Cho et al. 2014 (arXiv:1406.1078), with the reset gate where torch.nn.GRU has it.
    """

    out: Positive  # numbers that it remembers

    def out_shape(self, shape: Shape) -> Shape:
        features_of(self, shape)
        return (shape[0], self.out)

    def parameters(self, shape: Shape) -> dict[str, Parameter]:
        """Those of torch.nn.GRU with one layer: reset, update and new state, in this order."""
        usual = Uniform(bound=1 / math.sqrt(self.out))
        return {
            "weight_ih_l0": Parameter((3 * self.out, features_of(self, shape)), usual),
            "weight_hh_l0": Parameter((3 * self.out, self.out), usual),
            "bias_ih_l0": Parameter((3 * self.out,), usual),
            "bias_hh_l0": Parameter((3 * self.out,), usual),
        }
