"""Parameters have the settings of the first group that matches them, in any run and after any resume."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSIFIER, GAN, cut_off, last_tensors, only_run, written
from test_optimizers_built_in import Both, in_toml, some_parameters, steps
from torch import nn

import dtrain
from dtrain.backends.torch_optimizers import build_optimizer
from dtrain.engines.torch_state import NamedOptimizer
from dtrain.errors import CheckpointError, RecipeError, RecipeErrors
from dtrain.recipe.write import encode
from dtrain.spec.decode import decoded
from dtrain.spec.groups import Trainable, problems
from dtrain.spec.optimizers import AnyOptimizer, Optimizer

STEPS = ['train.epochs="${unset}"', "train.steps=4", "track.kinds=[]"]


def bits(parameters: Mapping[str, nn.Parameter]) -> dict[str, bytes]:
    return {name: parameter.detach().numpy().tobytes() for name, parameter in parameters.items()}


# --- what a group does ---

# Of the parameters 0.weight (a matrix), 1.weight (a kernel) and 1.bias: an optimizer, and torch's alike.
ALIKE = {
    "an override of one setting": (
        {"kind": "adamw", "lr": 0.05, "groups": [{"match": "*.bias", "weight_decay": 0}]},
        lambda p: torch.optim.AdamW(
            [
                {"params": [p["0.weight"], p["1.weight"]]},
                {"params": [p["1.bias"]], "weight_decay": 0.0},
            ],
            lr=0.05,
            fused=True,
        ),
    ),
    "the first of two that match": (
        {
            "kind": "sgd",
            "lr": 0.05,
            "momentum": 0.9,
            "groups": [
                {"match": ["0.*", "*.bias"], "lr": 0.01, "momentum": 0.5},
                {"match": "1.*", "weight_decay": 0.1},
            ],
        },
        lambda p: torch.optim.SGD(
            [
                {"params": [p["0.weight"], p["1.bias"]], "lr": 0.01, "momentum": 0.5},
                {"params": [p["1.weight"]], "weight_decay": 0.1},
            ],
            lr=0.05,
            momentum=0.9,
            fused=True,
        ),
    ),
    "settings of one number each": (
        {"kind": "adafactor", "lr": 0.05, "groups": [{"match": "0.*", "eps1": 1e-3, "d": 2.0}]},
        lambda p: torch.optim.Adafactor(
            [
                {"params": [p["1.weight"], p["1.bias"]]},
                {"params": [p["0.weight"]], "eps": (1e-3, 1e-3), "d": 2.0},
            ],
            lr=0.05,
        ),
    ),
    "both halves of muon": (
        {
            "kind": "muon",
            "lr": 0.05,
            "others": {"lr": 0.01},
            "groups": [{"match": ["0.*", "*.bias"], "weight_decay": 0, "momentum": 0.5}],
        },
        lambda p: Both(
            torch.optim.Muon([p["0.weight"]], lr=0.05, weight_decay=0.0, momentum=0.5),
            torch.optim.AdamW(
                [{"params": [p["1.weight"]]}, {"params": [p["1.bias"]], "weight_decay": 0.0}],
                lr=0.01,
                fused=True,
            ),
        ),
    ),
    "an imported optimizer": (
        {
            "kind": "torch.optim:NAdam",
            "lr": 0.05,
            "groups": [{"match": "0.*", "lr": 0.01, "momentum_decay": 0.1}],
        },
        lambda p: torch.optim.NAdam(
            [
                {"params": [p["1.weight"], p["1.bias"]]},
                {"params": [p["0.weight"]], "lr": 0.01, "momentum_decay": 0.1},
            ],
            lr=0.05,
        ),
    ),
}


@pytest.mark.parametrize("case", ALIKE)
def test_a_group_steps_as_a_group_of_torch_does(case: str) -> None:
    table, twin = ALIKE[case]
    ours, theirs = some_parameters(torch.float32), some_parameters(torch.float32)
    steps(build_optimizer("model", decoded(AnyOptimizer, table), ours), ours)
    steps(twin(theirs), theirs)
    assert bits(ours) == bits(theirs)


def with_groups(groups: list[dict[str, Any]], **keys: Any) -> tuple[NamedOptimizer, dict[str, nn.Parameter]]:
    """The optimizers of a run of one model."""
    parameters = some_parameters(torch.float64)
    table = {"kind": "sgd", "lr": 0.1, "momentum": 0.9, **keys, "groups": groups}
    spec = decoded(AnyOptimizer, table)
    made = build_optimizer("m", spec, parameters)
    return NamedOptimizer("m", made, parameters, spec.lr), parameters


def test_a_schedule_moves_the_rates_of_groups_in_proportion_and_no_other_setting_of_theirs() -> None:
    optimizers, _ = with_groups([{"match": "0.*", "lr": 0.02}, {"match": "*.bias", "momentum": 0.5}])
    optimizers.set({"lr": 0.05, "momentum": 0.8})
    found = [(group["lr"], group["momentum"]) for group in optimizers.optimizer.param_groups]
    assert found == [(0.05, 0.8), (0.01, 0.8), (0.05, 0.5)]


def test_a_schedule_moves_both_halves_of_muon() -> None:
    optimizers, _ = with_groups(
        [], kind="muon", lr=0.1, momentum=0.95, others={"lr": 0.02, "weight_decay": 0.3}
    )
    optimizers.set({"lr": 0.05, "momentum": 0.8, "weight_decay": 0.0})
    matrices, others = optimizers.optimizer.param_groups
    assert (matrices["lr"], matrices["momentum"], matrices["weight_decay"]) == (0.05, 0.8, 0.0)
    assert (others["lr"], others["weight_decay"]) == (0.01, 0.3)
    assert "momentum" not in others


def recipe_of(folder: Path, table: Mapping[str, Any], text: str = CLASSIFIER) -> Path:
    """The tiny classifier with this optimizer: 0.weight, 0.bias, 1.weight, 1.bias, 6.weight, 6.bias."""
    lines = "".join(f"{key} = {in_toml(value)}\n" for key, value in table.items())
    return written(folder, "recipe.toml", text.replace('kind = "adamw"\nlr = 1e-2\n', lines))


ADAMW = {"kind": "adamw", "lr": 0.01}
CYCLE = {"kind": "torch.optim.lr_scheduler:OneCycleLR", "max_lr": 0.05, "total_steps": 4}


def optimizers_of(engine: Any) -> dict[str, torch.optim.Optimizer]:
    """The optimizers of a run by model, as torch's own."""
    return {name: engine.held[name].optimizer.optimizer for name in engine.trained}


def trained(recipe: Path, runs: Path, *overrides: str) -> Any:
    """The settings of every group at the end of a run, by the names of parameters."""
    with dtrain.setup(dtrain.load(recipe, [*STEPS, *overrides]), runs=runs) as run:
        list(dtrain.train(run))
        optimizers = optimizers_of(run.engine)
        names = iter(run.engine.held["classifier"].optimizer.names)  # type: ignore[attr-defined]
        groups = optimizers["classifier"].param_groups
        return {name: group for group in groups for name in [next(names) for _ in group["params"]]}


def test_a_scheduler_of_torch_moves_groups_with_their_optimizer(tmp_path: Path, on_cpu: None) -> None:
    groups = [{"match": "6.*", "lr": 0.001}, {"match": "*.bias", "betas": [0.5, 0.9]}]
    table = {"kind": "adam", "lr": 0.01, "groups": groups, "schedule": CYCLE}
    found = trained(recipe_of(tmp_path, table), tmp_path / "runs")
    plain = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(plain, max_lr=0.05, total_steps=4)
    for _ in range(3):
        plain.step()
        scheduler.step()
    last = plain.param_groups[0]
    assert last["betas"] != (0.9, 0.999)
    assert found["0.weight"]["lr"] == last["lr"]
    assert found["6.weight"]["lr"] == pytest.approx(last["lr"] / 10, rel=1e-14)
    assert found["6.weight"]["betas"] == found["0.weight"]["betas"] == last["betas"]
    assert (found["0.bias"]["lr"], found["0.bias"]["betas"]) == (last["lr"], (0.5, 0.9))


def test_a_recipe_with_groups_is_written_and_read_again(tmp_path: Path) -> None:
    for number, (table, _) in enumerate(ALIKE.values()):
        spec = decoded(AnyOptimizer, table)
        assert decoded(AnyOptimizer, encode(spec)) == spec, number


# --- what comes with "*" ---


def test_a_group_of_all_models_serves_those_that_it_matches(tmp_path: Path) -> None:
    every, _, rest = GAN.partition("[optimizers.discriminator]")

    def load(groups: str) -> Mapping[str, Optimizer]:
        text = every.replace('[optimizers."*"]\n', f'[optimizers."*"]\ngroups = {groups}\n')
        text += rest[rest.index("[averages") :]
        return dtrain.load(written(tmp_path, "recipe.toml", text)).optimizers

    shared = '{ match = ["0.bias", "2.bias"], weight_decay = 0.5 }'  # a batch_norm of the generator is 2
    with pytest.raises(RecipeErrors, match=r'recipe\.toml:\d+:\d+: .*groups\[1\]\.match: "7\.\*" matches no'):
        load(f'[{shared}, {{ match = "7.*" }}]')
    found = load(f"[{shared}]")
    assert found["generator"].groups[0].match == ("0.bias", "2.bias")
    assert found["discriminator"].groups[0].match == ("0.bias",)
    found = load('[{ match = "2.bias", weight_decay = 0.5 }]')
    assert (len(found["generator"].groups), len(found["discriminator"].groups)) == (1, 0)


def test_models_of_one_phase_have_rates_of_their_own(tmp_path: Path, on_cpu: None) -> None:
    text = GAN.replace("[averages.generator]", "[averages.discriminator]")
    recipe = written(tmp_path, "recipe.toml", text)
    with dtrain.setup(
        dtrain.load(recipe, ["train.steps=4", "track.kinds=[]"]), runs=tmp_path / "runs"
    ) as run:
        list(dtrain.train(run))
        optimizers = optimizers_of(run.engine)
        assert optimizers["discriminator"].param_groups[0]["lr"] == 0.05
        assert optimizers["generator"].param_groups[0]["lr"] != 0.05


# --- resume ---

RESUMED = {
    "sgd": {"kind": "sgd", "lr": 0.01, "momentum": 0.9, "groups": [{"match": "*.bias", "momentum": 0.5}]},
    "adafactor": {"kind": "adafactor", "lr": 0.01, "groups": [{"match": "0.*", "d": 2.0}]},
    "muon": {
        "kind": "muon",
        "lr": 0.01,
        "others": {"lr": 0.01},
        "groups": [{"match": ["0.*", "6.*"], "lr": 0.002}, {"match": "*.bias", "weight_decay": 0}],
    },
    "a schedule": {**ADAMW, "schedule": CYCLE, "groups": [{"match": "*.weight", "lr": 0.03}]},
    "imported": {
        "kind": "torch.optim:NAdam",
        "lr": 0.01,
        "groups": [{"match": "6.*", "momentum_decay": 0.1}],
    },
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_run_with_groups_goes_on_with_the_same_bits(tmp_path: Path, on_cpu: None, case: str) -> None:
    recipe = recipe_of(tmp_path, RESUMED[case])
    cut_off(recipe, tmp_path / "runs", 2, *STEPS)
    trained(recipe, tmp_path / "runs")
    trained(recipe, tmp_path / "alone")
    assert last_tensors(only_run(tmp_path / "runs")) == last_tensors(only_run(tmp_path / "alone"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], [{"match": "*.bias", "weight_decay": 0.0, "lr": 0.1}]),
        (
            [{"match": "6.*", "lr": 0.3}, {"match": "*.bias", "betas": [0.1, 0.2]}],
            [{"match": "0.*", "eps": 1e-3}],
        ),
        ([{"match": "6.*", "lr": 0.3}], []),
    ],
)
def test_a_resumed_run_goes_by_the_groups_that_its_recipe_has_now(
    tmp_path: Path, on_cpu: None, before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    recipe = recipe_of(tmp_path, {**ADAMW, "groups": before})
    trained(recipe, tmp_path / "first", "train.steps=2")
    saved = only_run(tmp_path / "first")
    recipe = recipe_of(tmp_path, {**ADAMW, "groups": after})
    found = dtrain.load(recipe, [*STEPS, "train.steps=2"])
    with dtrain.setup(dtrain.load(recipe, STEPS), runs=tmp_path / "runs", resume=saved) as run:
        optimizers, spec = optimizers_of(run.engine), found.optimizers["classifier"]
        kept = {name: tensor.clone() for part, name, tensor in run.engine.tensors() if part == "optimizers"}
        assert len(optimizers["classifier"].param_groups) == len(after) + 1
        for group, settings in zip(optimizers["classifier"].param_groups[1:], spec.groups, strict=True):
            for key, value in {"weight_decay": 0.01, "eps": 1e-8, **after[0]}.items():
                if key not in ("match", "lr"):
                    assert group[key] == value, settings
    with dtrain.setup(
        dtrain.load(recipe_of(tmp_path, ADAMW), STEPS), runs=tmp_path / "b", resume=saved
    ) as run:
        other = {name: tensor for part, name, tensor in run.engine.tensors() if part == "optimizers"}
        assert {name: t.tolist() for name, t in kept.items()} == {
            name: t.tolist() for name, t in other.items()
        }


def test_a_parameter_that_changes_sides_in_muon_begins_its_means_anew(tmp_path: Path, on_cpu: None) -> None:
    table = {"kind": "muon", "lr": 0.01, "others": {"lr": 0.01}}
    trained(recipe_of(tmp_path, table), tmp_path / "first", "train.steps=2")
    saved = only_run(tmp_path / "first")
    for total, match in ((4, "6.*"), (6, "0.*")):
        recipe = recipe_of(tmp_path, {**table, "others": {"lr": 0.01, "match": match}})
        found = dtrain.load(recipe, [*STEPS, f"train.steps={total}"])
        with dtrain.setup(found, runs=tmp_path / match, resume=saved) as run:
            list(dtrain.train(run))
            keys = {name.rpartition("/")[2] for part, name, _ in run.engine.tensors() if "6.weight" in name}
            assert ("exp_avg" in keys) == (match == "6.*")
        saved = only_run(tmp_path / match)


class Moves(torch.optim.SGD):
    """A user's own that moves settings of each group, one of them a tensor."""

    def __init__(self, params: Any, lr: float, d: float = 1.0):
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group.setdefault("d", d)
            group.setdefault("size", torch.tensor(1.0))
            group.setdefault("pair", (1.0, 2.0))
        self.defaults["d"] = d

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["d"] *= 0.9
            group["size"] += group["d"]
            group["pair"] = (group["pair"][0] + 1, group["pair"][1])
            for parameter in group["params"]:
                parameter.data -= group["lr"] * group["d"] / group["size"] * parameter.grad


def test_what_an_optimizer_moves_in_its_groups_is_state(tmp_path: Path, on_cpu: None) -> None:
    table = {"kind": "test_parameter_groups:Moves", "lr": 0.1, "groups": [{"match": "*.bias", "d": 0.5}]}
    recipe = recipe_of(tmp_path, table)
    cut_off(recipe, tmp_path / "runs", 2, *STEPS)
    resumed = trained(recipe, tmp_path / "runs")
    alone = trained(recipe, tmp_path / "alone")
    assert last_tensors(only_run(tmp_path / "runs")) == last_tensors(only_run(tmp_path / "alone"))
    for name in ("0.weight", "0.bias"):
        assert {k: v for k, v in resumed[name].items() if k != "params"} == {
            k: v for k, v in alone[name].items() if k != "params"
        }
    assert resumed["0.bias"]["d"] == pytest.approx(0.5 * 0.9**4)
    assert resumed["0.bias"]["pair"] == (5.0, 2.0)
    # Groups that split what was one go on; those that put together what was apart cannot.
    saved = only_run(tmp_path / "runs")
    table["groups"] = [{"match": "6.bias"}, {"match": "*.bias"}]
    more = [*STEPS, "train.steps=5"]
    with dtrain.setup(
        dtrain.load(recipe_of(tmp_path, table), more), runs=tmp_path / "b", resume=saved
    ) as run:
        groups = optimizers_of(run.engine)["classifier"].param_groups
        assert [group["d"] for group in groups] == pytest.approx([0.9**4, 0.5 * 0.9**4, 0.5 * 0.9**4])
    table["groups"] = []
    with pytest.raises(CheckpointError, match="puts together what was in several"):
        dtrain.setup(dtrain.load(recipe_of(tmp_path, table), more), runs=tmp_path / "c", resume=saved)


# --- mistakes ---

MISTAKES = {
    "a pattern that matches nothing": (
        {**ADAMW, "groups": [{"match": ["*.bias", "7.*"]}]},
        r'groups\[0\]\.match\[1\]: "7\.\*" matches no parameter that is trained; they are such as 0\.weight',
    ),
    "a pattern behind another": (
        {**ADAMW, "groups": [{"match": "6.*"}, {"match": "6.bias", "lr": 1}]},
        r'groups\[1\]\.match: "6\.bias" matches nothing that an earlier group does not match',
    ),
    "no pattern": (
        {**ADAMW, "groups": [{"match": []}]},
        r"groups\[0\]\.match: found \[\]; at least one item",
    ),
    "an unknown setting": (
        {**ADAMW, "groups": [{"match": "*", "momentum": 0.5}]},
        r"groups\[0\]\.momentum: unknown key",
    ),
    "a misspelt setting": (
        {**ADAMW, "groups": [{"match": "*", "weigth_decay": 0.5}]},
        r'groups\[0\]\.weigth_decay: .*did you mean "weight_decay"',
    ),
    "a value out of bounds": (
        {**ADAMW, "groups": [{"match": "*", "betas": [0.5, 1.0]}]},
        r"groups\[0\]\.betas\[1\]: found 1",
    ),
    "settings that do not agree": (
        {
            "kind": "sgd",
            "lr": 1,
            "momentum": 0.9,
            "groups": [{"match": "*", "nesterov": True, "momentum": 0}],
        },
        r"groups\[0\]\.nesterov: needs a momentum above 0",
    ),
    "a share of no rate": (
        {"kind": "sgd", "lr": 0, "groups": [{"match": "*.bias", "lr": 1}]},
        r"groups\[0\]\.lr: .* which is 0",
    ),
    "a setting of the other half": (
        {"kind": "muon", "lr": 1, "others": {"lr": 1}, "groups": [{"match": "*.bias", "momentum": 0.5}]},
        r"groups\[0\]\.momentum: AdamW trains all of the group",
    ),
    "a setting of this half": (
        {"kind": "muon", "lr": 1, "others": {"lr": 1}, "groups": [{"match": "6.weight", "eps": 0.5}]},
        r"groups\[0\]\.eps: Muon trains all of the group",
    ),
    "others that are not there": (
        {"kind": "muon", "lr": 1, "others": {"lr": 1, "match": ["9.*"]}},
        r'others\.match\[0\]: "9\.\*" matches no parameter',
    ),
    "a pattern of an imported one": (
        {"kind": "torch.optim:NAdam", "lr": 1, "groups": [{"match": "7.*"}]},
        r'groups\[0\]\.match: "7\.\*" matches no parameter',
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_group_is_found_at_its_line_without_torch(tmp_path: Path, case: str) -> None:
    table, said = MISTAKES[case]
    with pytest.raises(RecipeErrors, match=rf"recipe\.toml:\d+:\d+: optimizers\.classifier\.{said}"):
        dtrain.load(recipe_of(tmp_path, table), imports=False)


def test_an_argument_that_an_imported_optimizer_lacks_is_found_before_the_run(tmp_path: Path) -> None:
    table = {"kind": "torch.optim:NAdam", "lr": 1, "groups": [{"match": "*", "momentum_decai": 1.0}]}
    with pytest.raises(RecipeErrors, match=r'groups\[0\]\.momentum_decai: .*did you mean "momentum_decay"'):
        dtrain.load(recipe_of(tmp_path, table))
    table["groups"] = [{"match": "*", "foreach": False}]
    dtrain.load(recipe_of(tmp_path, table))


def test_an_argument_that_is_no_setting_of_a_group_is_refused_at_the_start(
    tmp_path: Path, on_cpu: None
) -> None:
    table = {"kind": "test_parameter_groups:Whole", "lr": 1, "groups": [{"match": "*", "steps": 3}]}
    with pytest.raises(
        RecipeError, match=r"groups\[0\]\.steps: .* has no such setting of a group; it has lr"
    ):
        dtrain.setup(dtrain.load(recipe_of(tmp_path, table)), runs=tmp_path / "runs")


class Whole(torch.optim.SGD):
    """A user's own with an argument that is the same for all parameters."""

    def __init__(self, params: Any, lr: float, steps: int = 1):
        super().__init__(params, lr=lr)


class Frozen(nn.Module):
    """An imported model of which one part comes frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 8).requires_grad_(False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.body(x.flatten(1)).relu())
        return out


FROZEN = CLASSIFIER.replace(
    CLASSIFIER[CLASSIFIER.index("input = ") : CLASSIFIER.index("[optimizers")],
    'kind = "test_parameter_groups:Frozen"\n\n',
)


def test_what_comes_frozen_in_an_imported_model_stays_and_is_saved(tmp_path: Path, on_cpu: None) -> None:
    recipe = recipe_of(
        tmp_path, {**ADAMW, "clip": 0.1, "clip_value": 0.1}, FROZEN + "[averages.classifier]\ndecay = 0.5\n"
    )
    with dtrain.setup(dtrain.load(recipe, STEPS), runs=tmp_path / "runs") as run:
        before = {name: tensor.clone() for _, name, tensor in run.engine.tensors()}
        list(dtrain.train(run))
        after = {(part, name): tensor for part, name, tensor in run.engine.tensors()}
    moved = {name: not torch.equal(before[name], after["models", name]) for name in before}
    assert moved == {
        "classifier/body.weight": False,
        "classifier/body.bias": False,
        "classifier/head.weight": True,
        "classifier/head.bias": True,
    }
    assert torch.equal(after["averages", "classifier/body.weight"], before["classifier/body.weight"])
    assert {name.split("/")[1] for part, name in after if part == "optimizers"} == {
        "head.weight",
        "head.bias",
    }
    saved = {name for name in last_tensors(only_run(tmp_path / "runs")) if name.startswith("models/")}
    assert saved == {f"models/{name}" for name in before}


def test_a_pattern_for_a_model_without_parameters_is_a_mistake_too() -> None:
    optimizer = decoded(AnyOptimizer, {"kind": "adam", "lr": 1, "groups": [{"match": "*"}]})
    (problem,) = problems(optimizer, Trainable({}))
    assert str(problem) == '"*" matches no parameter that is trained; the model has none'


def test_patterns_match_what_an_imported_model_trains(tmp_path: Path, on_cpu: None) -> None:
    recipe = recipe_of(tmp_path, {**ADAMW, "groups": [{"match": "body.*", "lr": 1}]}, FROZEN)
    with pytest.raises(
        RecipeError, match=r'groups\[0\]\.match: "body\.\*" matches no parameter that is trained'
    ):
        dtrain.setup(dtrain.load(recipe), runs=tmp_path / "runs")
    found = trained(
        recipe_of(tmp_path, {**ADAMW, "groups": [{"match": "head.bias", "lr": 1}]}, FROZEN), tmp_path / "b"
    )
    assert {name: group["lr"] for name, group in found.items()} == {"head.weight": 0.01, "head.bias": 1}


class NoSchedule(torch.optim.SGD):
    """A user's own that evaluates other weights than it trains."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


def test_an_optimizer_without_a_schedule_is_refused_with_the_reason(tmp_path: Path, on_cpu: None) -> None:
    recipe = recipe_of(tmp_path, {"kind": "test_parameter_groups:NoSchedule", "lr": 1})
    with pytest.raises(
        RecipeError, match=r"optimizers\.classifier\.kind: .*must be told which \(train and eval\)"
    ):
        dtrain.setup(dtrain.load(recipe), runs=tmp_path / "runs")
