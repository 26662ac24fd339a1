"""Each built-in kind of optimizer steps as torch's class or its paper does, and resumes to the bit."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSIFIER, cut_off, last_tensors, only_run, written
from torch import Tensor, nn

import dtrain
from dtrain.backends.torch_optimizers import build_optimizer
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.errors import RecipeErrors
from dtrain.recipe.plan import plan_memory
from dtrain.spec.decode import decoded
from dtrain.spec.optimizers import AnyOptimizer, Optimizer
from dtrain.spec.table import KINDS

Twin = Callable[[list[Tensor]], Any]


class Both:
    """Two optimizers of torch's, one behind the other."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = optimizers

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


@dataclass(frozen=True)
class Row:
    """Keys of a built-in kind, and torch's optimizer that is to step alike, where torch has one."""

    keys: Mapping[str, Any] = field(default_factory=dict)
    twin: Twin | None = None


# Each kind as it is when nothing but lr is given, and with all of its keys.
ROWS: Mapping[str, list[Row]] = {
    "sgd": [
        Row({}, lambda own: torch.optim.SGD(own, lr=0.05, fused=True)),
        Row(
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
            lambda own: torch.optim.SGD(
                own, lr=0.05, fused=True, momentum=0.9, nesterov=True, weight_decay=0.1
            ),
        ),
    ],
    "adam": [
        Row({}, lambda own: torch.optim.Adam(own, lr=0.05, fused=True)),
        Row(
            {"betas": [0.5, 0.9], "eps": 1e-4, "weight_decay": 0.1},
            lambda own: torch.optim.Adam(
                own, lr=0.05, fused=True, betas=(0.5, 0.9), eps=1e-4, weight_decay=0.1
            ),
        ),
    ],
    "adamw": [
        Row({}, lambda own: torch.optim.AdamW(own, lr=0.05, fused=True)),
        Row(
            {"betas": [0.5, 0.9], "eps": 1e-4, "weight_decay": 0.1},
            lambda own: torch.optim.AdamW(
                own, lr=0.05, fused=True, betas=(0.5, 0.9), eps=1e-4, weight_decay=0.1
            ),
        ),
    ],
    "rmsprop": [
        Row({}, lambda own: torch.optim.RMSprop(own, lr=0.05)),
        Row(
            {"alpha": 0.9, "eps": 1e-4, "momentum": 0.5, "centered": True, "weight_decay": 0.1},
            lambda own: torch.optim.RMSprop(
                own, lr=0.05, alpha=0.9, eps=1e-4, momentum=0.5, centered=True, weight_decay=0.1
            ),
        ),
    ],
    "adafactor": [
        Row({}, lambda own: torch.optim.Adafactor(own, lr=0.05)),
        Row(
            {"beta2_decay": -0.5, "eps1": 1e-6, "eps2": 1e-2, "d": 2.0, "weight_decay": 0.1},
            lambda own: torch.optim.Adafactor(
                own, lr=0.05, beta2_decay=-0.5, eps=(1e-6, 1e-2), d=2.0, weight_decay=0.1
            ),
        ),
    ],
    "muon": [  # of a matrix, a kernel and a vector it trains the matrix
        Row(
            {"others": {"lr": 0.01}},
            lambda own: Both(
                torch.optim.Muon(own[:1], lr=0.05), torch.optim.AdamW(own[1:], lr=0.01, fused=True)
            ),
        ),
        Row(
            {"others": {"lr": 0.01, "match": "0.*"}},
            lambda own: torch.optim.AdamW(own, lr=0.01, fused=True),
        ),
        Row(
            {
                "momentum": 0.9,
                "nesterov": False,
                "ns_steps": 3,
                "adjust_lr_fn": "match_rms_adamw",
                "weight_decay": 0.2,
                "others": {"lr": 0.01, "betas": [0.5, 0.9], "eps": 1e-4, "weight_decay": 0.3},
            },
            lambda own: Both(
                torch.optim.Muon(
                    own[:1],
                    lr=0.05,
                    momentum=0.9,
                    nesterov=False,
                    ns_steps=3,
                    adjust_lr_fn="match_rms_adamw",
                    weight_decay=0.2,
                ),
                torch.optim.AdamW(own[1:], lr=0.01, betas=(0.5, 0.9), eps=1e-4, weight_decay=0.3, fused=True),
            ),
        ),
    ],
    "lion": [Row(), Row({"betas": [0.8, 0.95], "weight_decay": 0.1})],
}
CASES = [(kind, row) for kind, rows in ROWS.items() for row in rows]


def test_every_kind_has_rows() -> None:
    assert ROWS.keys() == KINDS[Optimizer].keys()


def some_parameters(dtype: torch.dtype) -> dict[str, nn.Parameter]:
    """A matrix, a kernel and a vector."""
    torch.manual_seed(0)
    shapes = {"0.weight": (5, 3), "1.weight": (2, 1, 3, 3), "1.bias": (2,)}
    return {name: nn.Parameter(torch.randn(shape, dtype=dtype)) for name, shape in shapes.items()}


def steps(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], count: int = 7) -> None:
    """Step along gradients that are the same for all."""
    draws = torch.Generator().manual_seed(1)
    for _ in range(count):
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize(
    ("kind", "row"), [(kind, row) for kind, row in CASES if row.twin], ids=lambda part: str(part)[:20]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_kind_steps_as_the_class_of_torch_does(kind: str, row: Row, dtype: torch.dtype) -> None:
    ours, theirs = some_parameters(dtype), some_parameters(dtype)
    assert row.twin is not None
    spec = decoded(AnyOptimizer, {"kind": kind, "lr": 0.05, **row.keys})
    steps(build_optimizer("model", spec, ours), ours)
    steps(row.twin([*theirs.values()]), theirs)
    for name, parameter in ours.items():
        assert parameter.detach().numpy().tobytes() == theirs[name].detach().numpy().tobytes()


@pytest.mark.parametrize("row", ROWS["lion"], ids=["plain", "with keys"])
def test_lion_steps_by_the_formula_of_its_paper(row: Row) -> None:
    ours, theirs = some_parameters(torch.float64), some_parameters(torch.float64)
    spec = decoded(AnyOptimizer, {"kind": "lion", "lr": 0.05, **row.keys})
    steps(build_optimizer("model", spec, ours), ours)
    first, second = row.keys.get("betas", (0.9, 0.99))
    decay, draws = row.keys.get("weight_decay", 0.0), torch.Generator().manual_seed(1)
    means = {name: torch.zeros_like(parameter) for name, parameter in theirs.items()}
    for _ in range(7):
        for name, parameter in theirs.items():
            g, m = torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype), means[name]
            direction = (first * m + (1 - first) * g).sign()
            parameter.data = parameter.data - 0.05 * (direction + decay * parameter.data)
            means[name] = second * m + (1 - second) * g
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-13, atol=1e-13)


def recipe_of(folder: Path, table: Mapping[str, Any], text: str = CLASSIFIER) -> Path:
    """The tiny classifier with this optimizer."""
    lines = "".join(f"{key} = {in_toml(value)}\n" for key, value in table.items())
    return written(folder, "recipe.toml", text.replace('kind = "adamw"\nlr = 1e-2\n', lines))


def in_toml(value: Any) -> str:
    """A value in the brackets of an array or a table."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {in_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(in_toml, value)) + "]"
    return json.dumps(value)


def assert_resumes(recipe: Path, folder: Path, *overrides: str) -> None:
    """Cut a run off at step 2 of 4, carry it on, and compare with one left alone."""
    overrides = ('train.epochs="${unset}"', "train.steps=4", "track.kinds=[]", *overrides)
    cut_off(recipe, folder / "runs", 2, *overrides)
    for runs, first in (("runs", 2), ("alone", 0)):
        with dtrain.setup(dtrain.load(recipe, overrides), runs=folder / runs) as run:
            assert run.step == first
            list(dtrain.train(run))
    run, alone = only_run(folder / "runs"), only_run(folder / "alone")
    assert last_tensors(run) == last_tensors(alone)
    states = [open_checkpoint(checkpoints_in(each)[-1]).state for each in (run, alone)]
    assert states[0] == states[1]


@pytest.mark.parametrize("kind", ROWS)
def test_a_run_with_a_kind_goes_on_with_the_same_bits(tmp_path: Path, on_cpu: None, kind: str) -> None:
    recipe = recipe_of(tmp_path, {"kind": kind, "lr": 0.01, **ROWS[kind][-1].keys})
    assert_resumes(recipe, tmp_path)


@pytest.mark.parametrize("kind", ROWS)
def test_the_plan_counts_what_an_optimizer_keeps(tmp_path: Path, on_cpu: None, kind: str) -> None:
    rows = [row for row in ROWS[kind] if "match" not in row.keys.get("others", ())]
    for number, row in enumerate(rows):
        folder = tmp_path / str(number)
        folder.mkdir()
        recipe = recipe_of(folder, {"kind": kind, "lr": 0.01, **row.keys})
        planned = plan_memory(found := dtrain.load(recipe, ["track.kinds=[]"]))
        with dtrain.setup(found, runs=folder / "runs") as run:
            list(dtrain.train(run))
            kept = sum(
                tensor.numel()
                for part, name, tensor in run.engine.tensors()
                if part == "optimizers" and not name.endswith("/step")
            )
        assert planned is not None
        assert planned.optimizers == 4 * kept


@pytest.mark.parametrize("kind", ["lbfgs", "LBFGS", "l-bfgs", "sparse_adam"])
def test_a_kind_that_many_know_is_refused_with_the_reason(tmp_path: Path, kind: str) -> None:
    recipe = recipe_of(tmp_path, {"kind": kind, "lr": 0.01})
    with pytest.raises(
        RecipeErrors, match=r"recipe.toml:\d+:8: optimizers\.classifier\.kind: .*dtrain eval|dense"
    ):
        dtrain.load(recipe, imports=False)


# --- clipping ---


@pytest.mark.parametrize("limits", [{"clip_value": 0.01}, {"clip": 0.1}, {"clip_value": 0.02, "clip": 0.1}])
def test_a_gradient_is_cut_number_by_number_and_then_as_a_whole(
    tmp_path: Path, on_cpu: None, limits: Mapping[str, float]
) -> None:
    before, gradients = {}, {}
    for name, keys in (("free", {}), ("cut", limits)):
        folder = tmp_path / name
        folder.mkdir()
        recipe = recipe_of(folder, {"kind": "sgd", "lr": 1.0, **keys})
        overrides = ['train.epochs="${unset}"', "train.steps=1", "track.kinds=[]"]
        with dtrain.setup(dtrain.load(recipe, overrides), runs=folder / "runs") as run:
            module = run.engine.bare["classifier"]  # type: ignore[attr-defined]
            before = {key: value.detach().clone() for key, value in module.named_parameters()}
            list(dtrain.train(run))
            gradients[name] = {key: before[key] - value for key, value in module.named_parameters()}
    wanted = gradients["free"]
    if "clip_value" in limits:
        limit = limits["clip_value"]
        wanted = {key: value.clamp(-limit, limit) for key, value in wanted.items()}
    if "clip" in limits:
        norm = torch.cat([value.flatten() for value in wanted.values()]).norm()
        assert norm > limits["clip"]
        wanted = {key: value * limits["clip"] / norm for key, value in wanted.items()}
    for key, value in wanted.items():
        torch.testing.assert_close(gradients["cut"][key], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(gradients["cut"][key], value) for key, value in gradients["free"].items())
