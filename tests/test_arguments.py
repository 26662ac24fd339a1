"""Arguments of what is imported: compared with signatures, and made of import paths themselves."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from dtrain.spec.arguments import argument_problems, call
from dtrain.spec.table import freeze
from dtrain.spec.trust import Trust


def plain(a, b=2, *, c): ...  # type: ignore[no-untyped-def]
def open_ended(a, **more): ...  # type: ignore[no-untyped-def]
def by_position(x, /, a=1): ...  # type: ignore[no-untyped-def]
def many(*all, c=1): ...  # type: ignore[no-untyped-def]


class Made:
    def __init__(self, width: int, depth: int = 2): ...


@pytest.mark.parametrize(
    ("found", "arguments", "options", "said"),
    [
        (plain, ["a", "c"], {}, {}),
        (plain, ["a", "d"], {}, {"x.d": 'no such argument; did you mean "c"?'}),
        (
            plain,
            ["a", "verbose"],
            {},
            {"x.verbose": "plain takes no such argument", "x.c": "required by plain"},
        ),
        (plain, [], {}, {"x.a": "required by plain, but missing", "x.c": "required by plain, but missing"}),
        (plain, ["c"], {"positions": 1}, {}),
        (plain, ["a", "c"], {"positions": 1}, {"x.a": "dtrain gives plain this argument itself"}),
        (plain, ["a"], {"supplied": ["c"]}, {}),
        (plain, ["a", "c"], {"supplied": ["lr"]}, {"x.kind": "plain takes no lr, which dtrain gives it"}),
        (plain, ["c"], {"positions": 3}, {"x.kind": "takes 2 arguments by position, and dtrain gives it 3"}),
        (plain, ["a", "c", "clop"], {"known": ["clip"]}, {"x.clop": 'did you mean "clip"?'}),
        (plain, ["c"], {"elsewhere": {"a": ("y", "a"), "z": ("y", "z")}}, {"y.z": "no such argument"}),
        (open_ended, ["a", "anything"], {"supplied": ["lr"]}, {}),
        (open_ended, ["anything"], {}, {"x.a": "required by open_ended"}),
        (
            by_position,
            ["a"],
            {},
            {"x.kind": "takes x by position alone, which a recipe cannot give; a function"},
        ),
        (by_position, ["a"], {"positions": 1}, {}),
        (by_position, ["x"], {"positions": 1}, {"x.x": "dtrain gives by_position this argument itself"}),
        (many, ["c"], {"positions": 2}, {}),
        (many, ["all"], {}, {"x.all": "many takes no such argument"}),
        (Made, ["width"], {}, {}),
        (Made, ["widht"], {}, {"x.widht": 'Made takes no such argument; did you mean "width"?'}),
        (nn.PReLU, ["num_parameter"], {}, {"x.num_parameter": 'did you mean "num_parameters"?'}),
        (nn.LSTM, ["anything"], {}, {}),
        (dict.get, ["a"], {}, {"x.kind": "by position alone"}),
        (getattr, ["a"], {}, {}),  # has no signature
    ],
)
def test_arguments_are_compared_with_the_signature(
    found: Any, arguments: list[str], options: Mapping[str, Any], said: Mapping[str, str]
) -> None:
    errors = {e.key: e for e in argument_problems(found, arguments, place=("x",), **options)}
    if found is dict.get:
        errors = {key: error for key, error in errors.items() if key == "x.kind"}
    assert errors.keys() == said.keys()
    for key, text in said.items():
        assert text in errors[key].message
        assert errors[key].is_key == (key in ("x.d", "x.z") or key.rpartition(".")[2] in (*arguments, "z"))


def stair(step: int) -> float:
    return 0.5**step


def test_what_is_named_among_arguments_is_made_too() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    table = {
        "schedulers": [
            {"kind": "torch.optim.lr_scheduler:LinearLR", "start_factor": 0.25, "total_iters": 3},
            {"kind": "torch.optim.lr_scheduler:LambdaLR", "lr_lambda": f"{__name__}:stair"},
        ],
        "milestones": [3],
    }
    path = "torch.optim.lr_scheduler:SequentialLR"
    schedule = call(path, freeze(table), "schedule", optimizer=optimizer)
    found = []
    for _ in range(6):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.5, 0.25])


def test_a_layer_is_made_of_layers_among_its_arguments() -> None:
    inner = {"kind": "torch.nn:TransformerEncoderLayer", "d_model": 8, "nhead": 2, "activation": "gelu"}
    table = {"encoder_layer": inner, "num_layers": 2, "enable_nested_tensor": False}
    made = call("torch.nn:TransformerEncoder", freeze(table), "layer", Trust())
    assert len(made.layers) == 2
    assert made.layers[0].activation is nn.functional.gelu
    wide = {**inner, "activation": f"{__name__}:stair"}  # its signature asks for a string or a callable
    assert call("torch.nn:TransformerEncoderLayer", without(wide, "kind"), "layer").activation is stair
    with pytest.raises(ValueError, match="not in a trusted package"):
        call("torch.nn:TransformerEncoder", freeze({**table, "encoder_layer": wide}), "layer", Trust())


def without(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != key}
