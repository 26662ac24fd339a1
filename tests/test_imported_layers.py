"""Any torch module as a layer: its shape, its first weights, its place in errors."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from dtrain.backends.torch_backend import batch_norms, build_model
from dtrain.errors import RecipeError
from dtrain.recipe.write import encode
from dtrain.spec.decode import decoded
from dtrain.spec.keys import seed_of
from dtrain.spec.models import ModelSpec
from dtrain.spec.trust import Trust

LAYERS: list[tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...]]] = [
    ("PReLU", {"num_parameters": 2}, (2, 6, 6), (2, 6, 6)),
    ("Mish", {}, (5,), (5,)),
    ("Softmax", {"dim": -1}, (5,), (5,)),
    ("GLU", {"dim": 1}, (6,), (3,)),
    ("LazyLinear", {"out_features": 3}, (5,), (3,)),
    ("Conv2d", {"in_channels": 2, "out_channels": 4, "kernel_size": (3, 1)}, (2, 6, 6), (4, 4, 6)),
    ("ConvTranspose1d", {"in_channels": 2, "out_channels": 1, "kernel_size": 2}, (2, 6), (1, 7)),
    ("BatchNorm2d", {"num_features": 2, "momentum": 0.3}, (2, 6, 6), (2, 6, 6)),
    ("BatchNorm1d", {"num_features": 5, "affine": False}, (5,), (5,)),
    ("InstanceNorm2d", {"num_features": 2, "affine": True}, (2, 6, 6), (2, 6, 6)),
    ("RMSNorm", {"normalized_shape": 5}, (5,), (5,)),
    ("AdaptiveAvgPool2d", {"output_size": (2, 3)}, (2, 6, 6), (2, 2, 3)),
    ("Unfold", {"kernel_size": 2}, (2, 6, 6), (8, 25)),
    ("PixelShuffle", {"upscale_factor": 2}, (4, 3, 3), (1, 6, 6)),
    ("ZeroPad2d", {"padding": (1, 2, 0, 0)}, (2, 6, 6), (2, 6, 9)),
    ("Unflatten", {"dim": 1, "unflattened_size": (2, 3)}, (6,), (2, 3)),
    ("Embedding", {"num_embeddings": 9, "embedding_dim": 4}, (5,), (5, 4)),
    (
        "TransformerEncoderLayer",
        {"d_model": 4, "nhead": 2, "dim_feedforward": 8, "batch_first": True},
        (5, 4),
        (5, 4),
    ),
]


def spec_of(layers: list[dict[str, Any]], shape: tuple[int, ...]) -> ModelSpec:
    spec: ModelSpec = decoded(ModelSpec, {"input": list(shape), "layers": layers})
    return spec


def table_of(name: str, arguments: Mapping[str, Any], before: Any, after: Any) -> dict[str, Any]:
    return {"kind": f"torch.nn:{name}", **arguments} | ({"output": list(after)} if after != before else {})


@pytest.mark.parametrize(("name", "arguments", "before", "after"), LAYERS, ids=lambda value: str(value)[:16])
def test_any_module_of_torch_is_a_layer(
    name: str, arguments: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    spec = spec_of([table_of(name, arguments, before, after)], before)
    assert spec.output == after
    model = build_model("net", spec, seed=3, trust=Trust())
    torch.manual_seed(seed_of(3, "weights", "net/0"))
    alone = getattr(nn, name)(**arguments)
    dtype = torch.int64 if name == "Embedding" else torch.float32
    alone.eval()(torch.zeros(1, *before, dtype=dtype))  # a lazy one draws its weights only now
    x = torch.zeros(4, *before, dtype=dtype) if name == "Embedding" else torch.rand(4, *before)
    assert torch.equal(model.eval()(x), alone(x))
    assert list(model.state_dict()) == [f"0.{key}" for key in alone.state_dict()]
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), alone.state_dict().values(), strict=True)
    )
    assert model.train().training
    assert all(child.training for child in model.modules())
    assert bool(batch_norms(model)) == name.startswith("BatchNorm")
    assert decoded(ModelSpec, encode(spec)) == spec


def test_first_weights_of_an_imported_layer_depend_on_its_place_alone() -> None:
    conv = {"kind": "torch.nn:Conv2d", "in_channels": 2, "out_channels": 2, "kernel_size": 3, "padding": 1}
    relu = {"kind": "activation", "function": "relu"}
    dropout = {"kind": "torch.nn:RReLU"}
    inside = {"kind": "residual", "layers": [relu, conv]}
    twice = {"kind": "repeat", "times": 2, "layers": [conv]}
    skip = {"kind": "skip", "layers": [relu, conv]}
    wide = {"kind": "conv", "out": 2, "kernel": 1}
    states = []
    for first in (relu, dropout, wide):
        spec = spec_of([first, conv, inside, twice, skip], (2, 6, 6))
        states.append(build_model("net", spec, seed=3).state_dict())
    names = [
        f"{place}.{of}"
        for place in ("1", "2.layers.1", "3.0.0", "3.1.0", "4.layers.1")
        for of in ("weight", "bias")
    ]
    assert list(states[0]) == names
    assert spec.parameter_count() == 6  # of its own layers
    assert spec.imports_layers
    for state in states[1:]:
        assert all(torch.equal(states[0][name], state[name]) for name in names)
    weights = [states[0][name] for name in names if name.endswith("weight")]
    assert all(not torch.equal(a, b) for n, a in enumerate(weights) for b in weights[:n])
    other = build_model("other", spec, seed=3).state_dict()
    assert not torch.equal(other["1.weight"], states[0]["1.weight"])
    torch.manual_seed(5)
    build_model("net", spec_of([conv], (2, 6, 6)), seed=3)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize(
    ("layer", "key", "said"),
    [
        ({"kind": "torch.nn:Flatten"}, "", r"makes \[72\] of \[2, 6, 6\]; say so: output = \[72\]"),
        ({"kind": "torch.nn:ReLU", "output": [3]}, ".output", r"found \[3\], but .* makes \[2, 6, 6\]"),
        ({"kind": "torch.nn:Linear", "in_features": 5, "out_features": 1}, "", "does not take one array of"),
        (
            {"kind": "torch.nn:Bilinear", "in1_features": 1, "in2_features": 1, "out_features": 1},
            "",
            "one array",
        ),
        ({"kind": "torch.nn:LSTM", "input_size": 6, "hidden_size": 3}, "", "does not take|gives a tuple"),
        ({"kind": "torch.nn:Flatten", "start_dim": 0, "output": [72]}, "", "must be that of the examples"),
        ({"kind": "torch.nn:Dropout", "p": 3}, "", "dropout probability has to be between 0 and 1"),
        ({"kind": "torch.nn:MSELoss"}, "", "does not take one array"),
        ({"kind": "torch.nn.functional:relu"}, ".kind", "a recipe from elsewhere|would do"),
    ],
)
def test_a_layer_that_does_not_fit_is_named(layer: dict[str, Any], key: str, said: str) -> None:
    for stack, place in (
        ([layer], "layers[0]"),
        ([{"kind": "torch.nn:ReLU"}, {"kind": "residual", "layers": [layer]}], "layers[1].layers[0]"),
    ):
        if "output" in layer and place != "layers[0]":
            continue
        with pytest.raises(RecipeError, match=said) as caught:
            build_model("net", spec_of(stack, (2, 6, 6)), seed=0, trust=Trust())
        assert caught.value.key == f"models.net.{place}{key}"
