"""A recipe's kinds come back from TOML as they were; a user's own are read as strictly; values are frozen."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import tomli
from conftest import CLASSIFIER, GAN
from reading import RECIPES, changed, mistakes_in, read

import dtrain
from dtrain.recipe.load import from_table
from dtrain.recipe.values import Recipe
from dtrain.recipe.write import encode, to_toml
from dtrain.spec.blocks import Layers
from dtrain.spec.decode import decoded
from dtrain.spec.layers import Layer
from dtrain.spec.optimizers import Optimizer
from dtrain.spec.schedules import RateSchedule
from dtrain.spec.table import OneOf
from dtrain.systems.base import System

EVERY_LAYER: dict[str, dict[str, Any]] = {  # of each kind a table with every key
    "linear": {"out": 3, "bias": False, "initial": {"kind": "normal", "std": 0.1, "mean": 0.0}},
    "conv": {
        "out": 4,
        "kernel": [3, 3],
        "stride": 1,
        "padding": [1, 0],
        "dilation": 1,
        "groups": 1,
        "bias": True,
    },
    "conv_transpose": {"out": 4, "kernel": 2, "stride": 2, "padding": 0, "output_padding": 1, "groups": 1},
    "upsample": {"factor": 2, "mode": "bilinear"},
    "pool": {"mode": "max", "size": 2, "stride": 1, "padding": 1},
    "reshape": {"shape": [2, 2]},
    "flatten": {},
    "group_norm": {"groups": 2, "eps": 1e-6},
    "layer_norm": {"eps": 1e-6},
    "batch_norm": {"momentum": 0.2, "eps": 1e-6},
    "activation": {"function": "leaky_relu", "slope": 0.3},
    "dropout": {"rate": 0.1},
    "embedding": {"size": 7, "out": 3, "initial": {"kind": "constant", "value": 0.5}},
    "position": {"initial": {"kind": "normal", "std": 0.1, "mean": 0.0}},
    "attention": {"heads": 2, "causal": False, "rotary": True},
    "gru": {"out": 3},
    "residual": {"layers": [{"kind": "flatten"}]},
    "skip": {"layers": [{"kind": "activation", "function": "relu"}]},
    "repeat": {"times": 2, "layers": [{"kind": "repeat", "times": 1, "layers": [{"kind": "flatten"}]}]},
}
EVERY_OPTIMIZER: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "clip": 2.0},
    "adam": {"betas": [0.5, 0.9], "eps": 1e-6, "weight_decay": 0.1},
    "adamw": {"betas": [0.5, 0.9], "eps": 1e-6, "weight_decay": 0.1, "clip_value": 0.5},
    "rmsprop": {"alpha": 0.9, "eps": 1e-6, "momentum": 0.9, "centered": True, "weight_decay": 0.1},
    "adafactor": {"beta2_decay": -0.7, "eps1": 1e-9, "eps2": 1e-2, "d": 2.0, "weight_decay": 0.1},
    "lion": {"betas": [0.5, 0.9], "weight_decay": 0.1, "groups": [{"match": "*.bias", "weight_decay": 0.0}]},
    "muon": {
        "others": {"lr": 0.1, "betas": [0.5, 0.9], "eps": 1e-6, "weight_decay": 0.1, "match": ["0.weight"]},
        "momentum": 0.9,
        "nesterov": False,
        "ns_steps": 4,
        "adjust_lr_fn": "match_rms_adamw",
        "weight_decay": 0.2,
    },
}
EVERY_SCHEDULE: dict[str, dict[str, Any]] = {
    "constant": {"warmup": 3},
    "linear": {"warmup": 3, "floor": 0.1},
    "cosine": {"warmup": {"epochs": 0.5}, "floor": 0.1},
    "step": {"milestones": [2, {"examples": 20}], "factor": 0.5, "warmup": 1},
    "exponential": {"factor": 0.5, "every": {"share": 0.25}, "warmup": 1},
    "one_cycle": {"rise": {"share": 0.5}, "start": 0.1, "floor": 0.01, "shape": "linear"},
    "warmup_stable_decay": {"warmup": 1, "decay": 2, "floor": 0.1, "shape": "exponential"},
    "sequence": {"parts": [{"length": 2, "schedule": {"kind": "constant", "warmup": 1}, "factor": 0.5},
                           {"schedule": {"kind": "cosine", "warmup": 0, "floor": 0.1}, "factor": 1.0}]},
    "plateau": {"monitor": "evaluate/loss", "mode": "max", "factor": 0.5, "patience": 1, "threshold": 0.1,
                "cooldown": 1, "floor": 0.01, "warmup": 1},
}  # fmt: skip


def tables_of(rows: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"kind": kind, **row} for kind, row in rows.items()]


def assert_comes_back(recipe: Recipe) -> None:
    text = to_toml(recipe)
    again = read(text)
    assert again == recipe
    assert to_toml(again) == text
    assert from_table(encode(recipe), folder=Path("/nowhere"), source="again") == recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_comes_back_as_it_was(shipped: Path, path: Path) -> None:
    assert_comes_back(dtrain.load(shipped / path.name))


@pytest.mark.parametrize(
    ("rows", "family"),
    [(EVERY_LAYER, Layer), (EVERY_OPTIMIZER, Optimizer), (EVERY_SCHEDULE, RateSchedule)],
    ids=["layers", "optimizers", "schedules"],
)
def test_every_kind_has_a_row(rows: Mapping[str, Any], family: type) -> None:
    kinds = OneOf(family).kinds
    assert set(rows) == set(kinds)
    for kind, row in rows.items():
        fields = {field.name for field in dataclasses.fields(kinds[kind])}
        assert row.keys() <= fields


@pytest.mark.parametrize("layer", tables_of(EVERY_LAYER), ids=lambda layer: layer["kind"])
def test_every_layer_comes_back_as_it_was(layer: dict[str, Any]) -> None:
    (value,) = decoded(Layers, [layer])
    assert decoded(Layers, [encode(value)]) == (value,)
    assert encode(value).items() >= layer.items()


@pytest.mark.parametrize("schedule", tables_of(EVERY_SCHEDULE), ids=lambda schedule: schedule["kind"])
@pytest.mark.parametrize("optimizer", tables_of(EVERY_OPTIMIZER), ids=lambda optimizer: optimizer["kind"])
def test_every_optimizer_and_schedule_comes_back_as_it_was(
    optimizer: dict[str, Any], schedule: dict[str, Any]
) -> None:
    table = tomli.loads(GAN)
    table["optimizers"] = {"*": {**optimizer, "lr": 0.1, "schedule": schedule}}
    recipe = from_table(table, folder=Path("/nowhere"), source="r.toml")
    assert_comes_back(recipe)
    assert encode(recipe)["optimizers"]["generator"].items() >= {**optimizer, "schedule": schedule}.items()


def test_imported_kinds_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kinds_of_mine.py").write_text("def pictures(folder):\n    return []\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = CLASSIFIER.replace('kind = "adamw"', 'kind = "torch.optim:NAdam"\nbetas = [0.5, 0.9]\nclip = 1.0')
    head, _, tail = text.partition("input = [1, 8, 8]")
    model = 'kind = "torch.nn:Linear"\nin_features = 3\nout_features = 4\n'
    text = head + model + tail[tail.index("\n[optimizers") :]
    text = text.replace(
        'kind = "arrays"\npath = "pictures.npz"', 'kind = "kinds_of_mine:pictures"\nfolder = "x"'
    )
    recipe = read(text)
    assert recipe.optimizers["classifier"].clip == 1.0
    assert dict(recipe.optimizers["classifier"].arguments) == {"betas": (0.5, 0.9)}
    assert_comes_back(recipe)
    unread = read(text.replace('kind = "classifier"', 'kind = "mine:System"'), imports=False)
    table = encode(unread)
    assert table["system"] == {"kind": "mine:System", "label_smoothing": 0.1}
    assert from_table(table, folder=Path("/nowhere"), source="again", imports=False) == unread


def test_a_system_of_ones_own_is_decoded_as_strictly_as_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_gan.py").write_text(MY_GAN)
    monkeypatch.syspath_prepend(tmp_path)
    text = changed('kind = "gan"\n', 'kind = "my_gan:MyGAN"\n')
    recipe = read(text.replace("critic_steps = 2", "wisdom = 0.5"))
    assert isinstance(recipe.system, System)
    assert recipe.system.wisdom == 0.5
    assert_comes_back(recipe)
    found = mistakes_in(text.replace("critic_steps = 2", "wisdon = 0.5"))
    assert found == {"system.wisdon": 'unknown key; did you mean "wisdom"?'}
    found = mistakes_in(text.replace("critic_steps = 2", "wisdom = 2.5"))
    assert found == {"system.wisdom": "found 2.5; a number at least 0 and at most 1 would do"}
    for path, said in {
        "my_gan:MyGun": "has no attribute 'MyGun'",
        "no_gan:MyGAN": "No module named 'no_gan'",
        "my_gan:make": "is a function; a subclass of dtrain.systems.base.System would do",
        "collections:OrderedDict": "is a class of another sort; a subclass of dtrain",
    }.items():
        assert said in mistakes_in(text.replace("my_gan:MyGAN", path))["system.kind"]


MY_GAN = """
from dtrain.spec.table import Fraction, table
from dtrain.systems.gan import GAN

@table
class MyGAN(GAN):
    wisdom: Fraction = 0.0

def make(**arguments):
    return 3
"""


def test_values_are_frozen_to_the_bottom() -> None:
    def visit(value: Any, place: str) -> int:
        if dataclasses.is_dataclass(value):
            with pytest.raises(dataclasses.FrozenInstanceError):
                value.any = None
            return 1 + sum(
                visit(getattr(value, f.name), f"{place}.{f.name}") for f in dataclasses.fields(value)
            )
        if isinstance(value, Mapping):
            assert isinstance(value, MappingProxyType), place
            return sum(visit(item, f"{place}.{key}") for key, item in value.items())
        if isinstance(value, tuple):
            return sum(visit(item, f"{place}[{number}]") for number, item in enumerate(value))
        assert not isinstance(value, list | dict | set), place
        return 1

    assert visit(read(GAN), "recipe") > 60
    extra = changed("lr = 2e-3", "lr = 2e-3\nsizes = [1, 2]\nplan = { kind = 'linear' }")
    assert visit(read(extra), "recipe") > 60
