"""Specs say beforehand what PyTorch's modules, optimizers and schedulers then do."""

import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import label
from torch import nn

from dtrain.backends.torch_backend import build_model
from dtrain.backends.torch_optimizers import build_optimizer
from dtrain.backends.torch_schedules import Schedules
from dtrain.spec.blocks import Block, LayerError
from dtrain.spec.decode import decoded
from dtrain.spec.initial import Initial
from dtrain.spec.keys import generator, seed_of
from dtrain.spec.layers import Layer
from dtrain.spec.lengths import Pace
from dtrain.spec.models import ModelSpec
from dtrain.spec.optimizers import AnyOptimizer, ImportedOptimizer, Optimizer
from dtrain.spec.table import KINDS

Row = tuple[dict[str, Any], tuple[int, ...]]  # a layer's table, and a shape that it takes


def model_of(layers: list[dict[str, Any]], shape: tuple[int, ...]) -> ModelSpec:
    spec: ModelSpec = decoded(ModelSpec, {"input": shape, "layers": layers})
    return spec


def module_of(spec: ModelSpec, seed: int = 0, name: str = "model") -> nn.Module:
    return build_model(name, spec, seed=seed)


# --- layers ---

FUNCTIONS = ("relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softplus")
LAYERS: dict[str, list[Row]] = {
    "linear": [({"out": 5}, (3,)), ({"out": 5, "bias": False}, (7, 3))],
    "conv": [
        ({"out": 4, "kernel": 3}, (2, 9)),
        ({"out": 4, "kernel": [3, 5], "stride": [1, 2], "padding": [0, 2]}, (2, 9, 8)),
        ({"out": 4, "kernel": 2, "dilation": 2, "groups": 2, "bias": False}, (6, 5, 6, 7)),
    ],
    "conv_transpose": [
        ({"out": 4, "kernel": 3, "stride": 2, "output_padding": 1}, (2, 9)),
        ({"out": 4, "kernel": [4, 3], "stride": [2, 1], "padding": [1, 0]}, (2, 5, 6)),
        ({"out": 4, "kernel": 2, "groups": 2, "bias": False}, (6, 3, 3, 3)),
    ],
    "upsample": [({}, (2, 5)), ({"factor": 3}, (2, 4, 5)), ({"mode": "bilinear"}, (2, 4, 5))],
    "pool": [
        ({"mode": "max"}, (2, 9)),
        ({"mode": "max", "size": 3, "stride": 2, "padding": 1}, (2, 9, 8)),
        ({"mode": "average", "size": [2, 3]}, (2, 9, 8)),
        ({"mode": "average", "size": 2, "stride": 1}, (2, 4, 5, 6)),
        ({"mode": "global"}, (2, 9, 8)),
    ],
    "reshape": [({"shape": [2, 3, 4]}, (24,)), ({"shape": [6]}, (2, 3))],
    "flatten": [({}, (2, 3, 4)), ({}, (5,))],
    "group_norm": [({"groups": 2}, (4, 3, 3)), ({"groups": 4, "eps": 1e-3}, (4,))],
    "layer_norm": [({}, (6,)), ({"eps": 1e-3}, (5, 6))],
    "batch_norm": [({}, (4,)), ({"momentum": 0.3}, (4, 5)), ({"eps": 1e-3}, (4, 5, 6))],
    "activation": [
        *(({"function": name}, (3,)) for name in FUNCTIONS),
        ({"function": "leaky_relu", "slope": 0.3}, (3, 4)),
        ({"function": "leaky_relu"}, (3,)),
    ],
    "dropout": [({"rate": 0.5}, (3, 4))],
    "embedding": [({"size": 11, "out": 3}, (5,)), ({"size": 11, "out": 3}, (2, 5))],
    "position": [({}, (5, 3)), ({"initial": {"kind": "normal", "std": 0.1}}, (5, 3))],
    "attention": [({"heads": 2}, (5, 6)), ({"heads": 3, "causal": False, "rotary": True}, (5, 12))],
    "gru": [({"out": 4}, (5, 3))],
    "residual": [
        ({"layers": [{"kind": "conv", "out": 3, "kernel": 3, "padding": 1}]}, (3, 6, 6)),
        ({"layers": [{"kind": "conv", "out": 5, "kernel": 3, "stride": 2, "padding": 1}]}, (3, 7, 6)),
        ({"layers": [{"kind": "linear", "out": 4}]}, (3,)),
        ({"layers": [{"kind": "linear", "out": 4}]}, (5, 3)),
        ({"layers": [{"kind": "conv", "out": 4, "kernel": 3, "stride": 2, "padding": 1}]}, (3, 9)),
    ],
    "skip": [
        ({"layers": [{"kind": "conv", "out": 5, "kernel": 3, "padding": 1}]}, (3, 6, 6)),
        ({"layers": [{"kind": "linear", "out": 4}]}, (3,)),
        ({"layers": [{"kind": "skip", "layers": [{"kind": "dropout", "rate": 0}]}]}, (3, 4, 6)),
    ],
    "repeat": [
        ({"times": 3, "layers": [{"kind": "linear", "out": 4}, {"kind": "batch_norm"}]}, (3,)),
        ({"times": 2, "layers": [{"kind": "residual", "layers": [{"kind": "linear", "out": 4}]}]}, (5, 3)),
        ({"times": 2, "layers": [{"kind": "repeat", "times": 2, "layers": [{"kind": "upsample"}]}]}, (1, 2)),
    ],
}  # fmt: skip
EVERY_LAYER = [({"kind": kind, **table}, shape) for kind, rows in LAYERS.items() for table, shape in rows]
layers = pytest.mark.parametrize(("table", "shape"), EVERY_LAYER, ids=label)


def test_every_kind_of_layer_has_a_row() -> None:
    assert set(LAYERS) == set(KINDS[Layer])


def batch_of(table: dict[str, Any], shape: tuple[int, ...]) -> torch.Tensor:
    if table["kind"] == "embedding":
        return torch.randint(0, table["size"], (2, *shape))
    return torch.randn(2, *shape)


@layers
def test_the_shape_that_comes_out_is_the_one_foretold(table: dict[str, Any], shape: tuple[int, ...]) -> None:
    spec = model_of([table], shape)
    module = module_of(spec)
    assert tuple(module(batch_of(table, shape)).shape) == (2, *spec.output)
    assert spec.rows()[0].after == spec.output


@layers
def test_parameters_and_buffers_are_the_modules_own(table: dict[str, Any], shape: tuple[int, ...]) -> None:
    spec = model_of([table], shape)
    module = module_of(spec)
    foretold = {
        f"{row.name}.{key}": p.shape
        for row in spec.rows()
        for key, p in row.layer.parameters(row.before).items()
    }
    assert foretold == {name: tuple(value.shape) for name, value in module.named_parameters()}
    buffers = {
        f"{row.name}.{key}": s for row in spec.rows() for key, s in row.layer.buffers(row.before).items()
    }
    assert buffers == {name: tuple(value.shape) for name, value in module.named_buffers()}
    assert spec.parameter_count() == sum(value.numel() for value in module.parameters())
    assert dict(spec.first_weights(0, "model")).keys() == foretold.keys()


class Plus(nn.Module):
    """What a position layer is to compute."""

    def __init__(self, *shape: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight


class SelfAttention(nn.MultiheadAttention):
    """torch's attention, asked as an attention layer asks it."""

    def __init__(self, features: int, heads: int, *, causal: bool):
        super().__init__(features, heads, batch_first=True)
        self.causal = causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.causal else None
        return super().forward(x, x, x, attn_mask=mask, is_causal=self.causal, need_weights=False)[0]


class States(nn.GRU):
    """torch's GRU without the last state."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[0]


TWINS: list[tuple[dict[str, Any], tuple[int, ...], Callable[[], nn.Module]]] = [
    ({"kind": "linear", "out": 5}, (3,), lambda: nn.Linear(3, 5)),
    ({"kind": "conv", "out": 4, "kernel": 3, "stride": 2, "padding": 1, "dilation": 2, "groups": 2},
     (2, 9, 9), lambda: nn.Conv2d(2, 4, 3, 2, 1, 2, 2)),
    ({"kind": "conv", "out": 4, "kernel": 3, "bias": False}, (2, 9), lambda: nn.Conv1d(2, 4, 3, bias=False)),
    ({"kind": "conv_transpose", "out": 4, "kernel": 4, "stride": 2, "padding": 1, "output_padding": 1},
     (2, 5, 5), lambda: nn.ConvTranspose2d(2, 4, 4, 2, 1, 1)),
    ({"kind": "upsample", "mode": "bilinear"}, (2, 4, 5),
     lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    ({"kind": "upsample"}, (2, 4, 5), lambda: nn.Upsample(scale_factor=2)),
    ({"kind": "pool", "mode": "max", "size": 3, "stride": 2, "padding": 1}, (2, 9, 8),
     lambda: nn.MaxPool2d(3, 2, 1)),
    ({"kind": "pool", "mode": "average", "size": 2}, (2, 9, 8), lambda: nn.AvgPool2d(2)),
    ({"kind": "pool", "mode": "global"}, (2, 9, 8),
     lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
    ({"kind": "reshape", "shape": [3, 4]}, (12,), lambda: nn.Unflatten(1, (3, 4))),
    ({"kind": "flatten"}, (2, 3, 4), nn.Flatten),
    ({"kind": "group_norm", "groups": 2, "eps": 1e-3}, (4, 3, 3), lambda: nn.GroupNorm(2, 4, 1e-3)),
    ({"kind": "layer_norm", "eps": 1e-3}, (5, 6), lambda: nn.LayerNorm(6, 1e-3)),
    ({"kind": "batch_norm", "eps": 1e-3}, (4, 5, 6), lambda: nn.BatchNorm2d(4, 1e-3)),
    ({"kind": "dropout", "rate": 0.5}, (3, 4), lambda: nn.Dropout(0.5)),
    ({"kind": "embedding", "size": 11, "out": 3}, (5,), lambda: nn.Embedding(11, 3)),
    ({"kind": "position"}, (5, 3), lambda: Plus(5, 3)),
    ({"kind": "attention", "heads": 2}, (5, 6), lambda: SelfAttention(6, 2, causal=True)),
    ({"kind": "attention", "heads": 3, "causal": False}, (5, 6), lambda: SelfAttention(6, 3, causal=False)),
    ({"kind": "gru", "out": 4}, (5, 3), lambda: States(3, 4, batch_first=True)),
    *(
        ({"kind": "activation", "function": name}, (6,), twin)
        for name, twin in {
            "relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh,
            "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "leaky_relu": nn.LeakyReLU,
        }.items()
    ),
    ({"kind": "activation", "function": "leaky_relu", "slope": 0.3}, (6,), lambda: nn.LeakyReLU(0.3)),
]  # fmt: skip


@pytest.mark.parametrize(("table", "shape", "twin"), TWINS, ids=label)
def test_a_layer_computes_what_its_twin_in_torch_does(
    table: dict[str, Any], shape: tuple[int, ...], twin: Callable[[], nn.Module]
) -> None:
    ours, theirs = module_of(model_of([table], shape))[0], twin()
    if ours.state_dict():
        theirs.load_state_dict(ours.state_dict())
    batch = torch.randn(2, *shape) if table["kind"] != "embedding" else torch.randint(0, 11, (2, *shape))
    for training in (False, True):  # in this order, as training moves running statistics
        torch.manual_seed(0)
        out = ours.train(training)(batch)
        torch.manual_seed(0)
        rounding = 1e-6 if table["kind"] == "attention" else 0.0  # torch's takes its rows in another order
        torch.testing.assert_close(out, theirs.train(training)(batch), rtol=rounding, atol=rounding)


def test_every_kind_of_layer_but_the_blocks_has_a_twin() -> None:
    assert {table["kind"] for table, _, _ in TWINS} == set(KINDS[Layer]) - {
        block.kind for block in get_args(Block)
    }


@pytest.mark.parametrize(
    ("inside", "shape", "projection"),
    [
        ({"kind": "linear", "out": 3}, (3,), None),
        ({"kind": "linear", "out": 4}, (3,), nn.Linear),
        ({"kind": "linear", "out": 4}, (5, 3), nn.Linear),
        ({"kind": "conv", "out": 5, "kernel": 3, "padding": 1}, (3, 6, 6), nn.Conv2d),
        ({"kind": "conv", "out": 3, "kernel": 3, "stride": 2, "padding": 1}, (3, 7, 6), nn.Conv2d),
        ({"kind": "conv", "out": 4, "kernel": 3, "stride": 2, "padding": 1}, (3, 9), nn.Conv1d),
    ],
)
def test_a_residual_adds_its_input_projected_only_where_shapes_differ(
    inside: dict[str, Any], shape: tuple[int, ...], projection: type | None
) -> None:
    residual = module_of(model_of([{"kind": "residual", "layers": [inside]}], shape))[0]
    x = torch.randn(2, *shape)
    if projection is None:
        assert residual.projection is None
        assert torch.equal(residual(x), x + residual.layers(x))
    else:
        assert type(residual.projection) is projection
        assert residual.projection.bias is None
        assert torch.equal(residual(x), residual.projection(x) + residual.layers(x))


def test_a_skip_joins_its_input_and_what_becomes_of_it() -> None:
    inside = {"kind": "conv", "out": 5, "kernel": 3, "padding": 1}
    skip = module_of(model_of([{"kind": "skip", "layers": [inside]}], (3, 6, 6)))[0]
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(skip(x)[:, :3], x)
    assert torch.equal(skip(x)[:, 3:], skip.layers(x))


def test_repeated_layers_have_parameters_of_their_own() -> None:
    table = {"kind": "repeat", "times": 2, "layers": [{"kind": "linear", "out": 3}]}
    weights = dict(model_of([table], (3,)).first_weights(0, "model"))
    assert list(weights) == ["0.0.0.weight", "0.0.0.bias", "0.1.0.weight", "0.1.0.bias"]
    assert not np.array_equal(weights["0.0.0.weight"], weights["0.1.0.weight"])


MISFITS: list[tuple[str, dict[str, Any], tuple[int, ...], str]] = [
    ("linear", {"out": 3}, (1, 8, 8), "put a flatten before it"),
    ("conv", {"out": 3, "kernel": 3}, (8,), "conv needs (channels, height, width), not (8,)"),
    ("conv", {"out": 3, "kernel": 9}, (1, 8, 8), "a kernel of 9 does not fit into (8, 8)"),
    ("conv", {"out": 3, "kernel": [3, 3, 3]}, (1, 8, 8), "`kernel` has 3 numbers for an input with 2 axes"),
    ("conv", {"out": 3, "kernel": 3, "groups": 2}, (4, 8, 8), "do not both divide into 2 groups"),
    ("conv_transpose", {"out": 3, "kernel": 3, "output_padding": 1}, (1, 8, 8), "smaller than stride 1"),
    ("conv_transpose", {"out": 3, "kernel": 1, "padding": 4}, (1, 8, 8), "leaves nothing of (8, 8)"),
    ("conv_transpose", {"out": 3, "kernel": 3, "groups": 2}, (4, 8, 8), "do not both divide"),
    ("upsample", {"mode": "bilinear"}, (1, 8), "bilinear upsampling needs (channels, height, width)"),
    ("upsample", {}, (8,), "upsample needs"),
    ("pool", {"mode": "max", "size": 9}, (1, 8, 8), "a window of 9 does not fit into (8, 8)"),
    ("pool", {"mode": "max", "size": 2, "padding": 2}, (1, 8, 8), "more than half the window"),
    ("pool", {"mode": "global"}, (8,), "pool needs"),
    ("reshape", {"shape": [3, 3]}, (8,), "(3, 3) takes 9 values, not 8"),
    ("group_norm", {"groups": 3}, (4, 8, 8), "4 channels do not divide into 3 groups"),
    ("layer_norm", {}, (1, 8, 8), "for pictures use group_norm"),
    ("position", {}, (8,), "position needs (length, features), not (8,)"),
    ("attention", {"heads": 3}, (5, 8), "8 features do not divide into 3 heads"),
    ("attention", {"heads": 2, "rotary": True}, (5, 6), "turns pairs of features, but each head has 3"),
    ("gru", {"out": 4}, (3, 8, 8), "gru needs (length, features), not (3, 8, 8)"),
    ("residual", {"layers": [{"kind": "flatten"}]}, (1, 8, 8), "no projection leads from (1, 8, 8) to (64,)"),
    ("residual", {"layers": [{"kind": "upsample"}]}, (1, 8, 8), "no projection leads from"),
    ("skip", {"layers": [{"kind": "upsample"}]}, (1, 8, 8), "(1, 16, 16) cannot be joined to (1, 8, 8)"),
    ("skip", {"layers": [{"kind": "flatten"}]}, (1, 8, 8), "(64,) cannot be joined to (1, 8, 8)"),
]  # fmt: skip
NEVER_MISFITS = {"flatten", "batch_norm", "activation", "dropout", "embedding", "repeat"}


@pytest.mark.parametrize(("kind", "table", "shape", "said"), MISFITS)
def test_a_layer_that_does_not_fit_is_named_with_its_place(
    kind: str, table: dict[str, Any], shape: tuple[int, ...], said: str
) -> None:
    layer = {"kind": kind, **table}
    fine = {"kind": "dropout", "rate": 0.1}
    block = {"kind": "repeat", "times": 1, "layers": [{"kind": "residual", "layers": [fine, layer]}]}
    for stack, place in (
        ([layer], "layers[0]"),
        ([fine, layer], "layers[1]"),
        ([block], "layers[0].layers[0].layers[1]"),
    ):
        with pytest.raises(LayerError) as caught:
            model_of(stack, shape).rows()
        at = f"{place}.shape" if kind == "reshape" else place
        assert (caught.value.at, said in str(caught.value)) == (at, True), (place, str(caught.value))
        if place == "layers[1]":
            assert str(caught.value).endswith(f" (layers[0], dropout, gives {shape})")
            assert str(caught.value).startswith(kind)


def test_every_kind_of_layer_that_can_misfit_does() -> None:
    assert {kind for kind, *_ in MISFITS} == set(KINDS[Layer]) - NEVER_MISFITS


# --- first weights ---


def test_first_weights_depend_on_seed_and_name_alone() -> None:
    linear = {"kind": "linear", "out": 4}
    short, long = model_of([linear], (3,)), model_of([linear, linear], (3,))
    first = dict(short.first_weights(0, "model"))
    for same in map(dict, (short.first_weights(0, "model"), long.first_weights(0, "model"))):
        assert all(np.array_equal(same[name], value) for name, value in first.items())
    for other in map(dict, (short.first_weights(1, "model"), short.first_weights(0, "other"))):
        assert not any(np.array_equal(other[name], value) for name, value in first.items())
    assert seed_of("a", "b") != seed_of("b", "a")
    assert all(value.dtype == np.float32 for value in first.values())
    for ambient in (5, 6):
        torch.manual_seed(ambient)
        assert torch.equal(module_of(short)[0].weight, torch.from_numpy(first["0.weight"]))


LIKE_TORCH = [
    ({"kind": "linear", "out": 300}, (200,), lambda: nn.Linear(200, 300)),
    ({"kind": "conv", "out": 64, "kernel": 5, "groups": 2}, (32, 8, 8),
     lambda: nn.Conv2d(32, 64, 5, groups=2)),
    ({"kind": "conv_transpose", "out": 64, "kernel": 4, "groups": 2}, (32, 8, 8),
     lambda: nn.ConvTranspose2d(32, 64, 4, groups=2)),
    ({"kind": "embedding", "size": 300, "out": 200}, (5,), lambda: nn.Embedding(300, 200)),
    ({"kind": "group_norm", "groups": 2}, (64, 4, 4), lambda: nn.GroupNorm(2, 64)),
    ({"kind": "layer_norm"}, (64,), lambda: nn.LayerNorm(64)),
    ({"kind": "batch_norm"}, (64, 4, 4), lambda: nn.BatchNorm2d(64)),
    ({"kind": "attention", "heads": 4}, (5, 64), lambda: nn.MultiheadAttention(64, 4)),
    ({"kind": "gru", "out": 64}, (5, 48), lambda: nn.GRU(48, 64)),
]  # fmt: skip


@pytest.mark.parametrize(("table", "shape", "twin"), LIKE_TORCH, ids=label)
def test_first_weights_are_distributed_as_torchs_own(
    table: dict[str, Any], shape: tuple[int, ...], twin: Callable[[], nn.Module]
) -> None:
    torch.manual_seed(0)
    ours, theirs = module_of(model_of([table], shape))[0], twin()
    for name, value in theirs.named_parameters():
        own = ours.get_parameter(name)
        few = 4 / math.sqrt(value.numel())  # standard errors, about
        assert abs(own.mean() - value.mean()) <= few * (value.std() + 1e-9), name
        assert own.std().item() == pytest.approx(value.std().item(), rel=few, abs=1e-9), name
        if table["kind"] != "embedding":  # a normal has no bound
            assert own.abs().max().item() == pytest.approx(
                value.abs().max().item(), rel=10 / value.numel() + 1e-6
            )
        assert own.dtype == value.dtype


def test_every_layer_with_parameters_is_compared_with_torchs_own() -> None:
    with_parameters = {t["kind"] for t, s in EVERY_LAYER if model_of([t], s).parameter_count()}
    blocks = {block.kind for block in get_args(Block)}
    assert with_parameters == {table["kind"] for table, *_ in LIKE_TORCH} | blocks | {"position"}


def by_torch(function: Callable[..., Any], **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda weight: function(weight, **options)


leaky = {"nonlinearity": "leaky_relu"}
INITIALS: dict[str, list[tuple[dict[str, Any], Callable[[torch.Tensor], torch.Tensor]]]] = {
    "constant": [({"value": 0.3}, by_torch(nn.init.constant_, val=0.3))],
    "uniform": [({"bound": 0.2}, by_torch(nn.init.uniform_, a=-0.2, b=0.2))],
    "normal": [
        ({"std": 0.02}, by_torch(nn.init.normal_, std=0.02)),
        ({"std": 0.02, "mean": 1.0}, by_torch(nn.init.normal_, mean=1.0, std=0.02)),
    ],
    "kaiming_uniform": [
        ({}, by_torch(nn.init.kaiming_uniform_, a=0, **leaky)),
        ({"slope": 0.2}, by_torch(nn.init.kaiming_uniform_, a=0.2, **leaky)),
    ],
    "kaiming_normal": [({"slope": 0.2}, by_torch(nn.init.kaiming_normal_, a=0.2, **leaky))],
    "xavier_uniform": [({"gain": 2.0}, by_torch(nn.init.xavier_uniform_, gain=2.0))],
    "xavier_normal": [({"gain": 2.0}, by_torch(nn.init.xavier_normal_, gain=2.0))],
    "orthogonal": [({}, nn.init.orthogonal_), ({"gain": 2.0}, by_torch(nn.init.orthogonal_, gain=2.0))],
}  # fmt: skip


@pytest.mark.parametrize("shape", [(150, 100), (100, 150), (48, 32, 3, 3)], ids=str)
@pytest.mark.parametrize(
    ("kind", "table", "twin"), [(kind, *row) for kind, rows in INITIALS.items() for row in rows]
)
def test_an_initial_draws_as_torch_does(
    kind: str, table: dict[str, Any], twin: Callable[..., torch.Tensor], shape: tuple[int, ...]
) -> None:
    initial: Initial = decoded(KINDS[Initial][kind], table)
    ours = torch.from_numpy(initial.draw(shape, generator("test")))
    torch.manual_seed(0)
    theirs = twin(torch.empty(shape))
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    few = 4 / math.sqrt(math.prod(shape))
    assert abs(ours.mean() - theirs.mean()) <= few * (theirs.std() + 1e-6)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=few, abs=1e-7)
    if "uniform" in kind:
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
    if kind == "orthogonal":
        for weight in (ours.flatten(1), theirs.flatten(1)):
            product = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
            assert torch.allclose(product, initial.gain**2 * torch.eye(len(product)), atol=1e-4)


def test_every_kind_of_initial_has_a_row() -> None:
    assert set(INITIALS) == set(KINDS[Initial])


def test_a_layer_draws_its_weight_as_its_recipe_says() -> None:
    rows = [
        ({"kind": "linear", "out": 3}, (4,)),
        ({"kind": "conv", "out": 3, "kernel": 3}, (2, 5, 5)),
        ({"kind": "conv_transpose", "out": 3, "kernel": 3}, (2, 5, 5)),
        ({"kind": "embedding", "size": 3, "out": 2}, (4,)),
    ]
    for table, shape in rows:
        module = module_of(model_of([{**table, "initial": {"kind": "constant", "value": 0.5}}], shape))
        assert torch.all(module[0].weight == 0.5)


# --- optimizers; those that are built in: test_optimizers_built_in ---


def test_an_imported_optimizer_steps_as_torchs_own() -> None:
    table = {"kind": "torch.optim:NAdam", "lr": 0.1, "betas": [0.5, 0.9]}
    spec: Optimizer = decoded(AnyOptimizer, table)
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    theirs = nn.Parameter(ours.detach().clone())
    optimizers = (
        build_optimizer("model", spec, {"weight": ours}),
        torch.optim.NAdam([theirs], lr=0.1, betas=(0.5, 0.9)),
    )
    for _ in range(5):
        gradient = torch.randn(5, 3, dtype=torch.float64)
        for optimizer, parameter in zip(optimizers, (ours, theirs), strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_an_imported_optimizer_keeps_dtrains_own_keys_apart() -> None:
    table = {"kind": "torch.optim:NAdam", "lr": 0.1, "clip": 2.0, "schedule": {"kind": "linear"}, "eps": 1e-4}
    spec = decoded(AnyOptimizer, table)
    assert isinstance(spec, ImportedOptimizer)
    assert (spec.lr, spec.clip, spec.schedule.kind, dict(spec.arguments)) == (
        0.1,
        2.0,
        "linear",
        {"eps": 1e-4},
    )
    schedules = Schedules({"model": spec}, Pace(11, None, 1, int))
    assert [schedules.at("model", step)["lr"] for step in (0, 5)] == [0.1, pytest.approx(0.05)]
