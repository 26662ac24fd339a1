"""Every optimizer of torch and one from elsewhere trains as by hand and resumes to the bit, or is refused."""

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSIFIER, Said, cut_off, last_tensors, only_run, written
from torch import nn

import dtrain
from dtrain.backends.torch_optimizers import build_optimizer
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.engines.precision import check_precision
from dtrain.engines.torch_state import NamedOptimizer
from dtrain.errors import RecipeError
from dtrain.spec.decode import decoded
from dtrain.spec.optimizers import AnyOptimizer

ROOT = Path(__file__).resolve().parents[1]
MATRICES = CLASSIFIER.partition("layers = [")[0] + (
    'layers = [{ kind = "flatten" }, { kind = "linear", out = 3, bias = false }]\n'
    "[optimizers.classifier]" + CLASSIFIER.partition("[optimizers.classifier]")[2]
)

# Arguments of each optimizer beside lr, one or more times; Muon trains matrices alone.
ROWS: dict[str, list[dict[str, Any]]] = {
    "Adadelta": [{}, {"rho": 0.8}],
    "Adafactor": [{}, {"beta2_decay": -0.5, "d": 2.0}],
    "Adagrad": [{}, {"lr_decay": 0.1, "initial_accumulator_value": 0.2}],
    "Adam": [{}, {"betas": [0.5, 0.9], "amsgrad": True}],
    "AdamW": [{"weight_decay": 0.1}],
    "Adamax": [{"betas": [0.5, 0.9]}],
    "ASGD": [{}, {"t0": 2.0, "weight_decay": 0.1}],
    "Muon": [{}, {"momentum": 0.9, "nesterov": False}],
    "NAdam": [{}, {"momentum_decay": 0.1, "decoupled_weight_decay": True}],
    "RAdam": [{}, {"betas": [0.5, 0.9]}],
    "RMSprop": [{}, {"centered": True, "momentum": 0.5}],
    "Rprop": [{}, {"etas": [0.4, 1.3]}],
    "SGD": [{}, {"momentum": 0.9, "nesterov": True}],
}
REFUSED = {
    "LBFGS": "evaluates the loss again inside a step",
    "SparseAdam": "takes sparse gradients alone",
}
CASES = [(name, arguments) for name, rows in ROWS.items() for arguments in rows]


class AsksAgain(torch.optim.SGD):
    """A user's own that needs what dtrain does not give."""

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return closure()


class KeepsAList(torch.optim.SGD):
    """A user's own whose state is no tensor or number."""

    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["history"] = [1, 2]


class CountsForAll(torch.optim.SGD):
    """A user's own with state that belongs to no parameter."""

    def step(self, closure: Any = None) -> Any:
        self.state["calls"] = {"count": 1}


def test_every_optimizer_of_torch_has_a_row() -> None:
    classes = {name for name, found in vars(torch.optim).items() if inspect.isclass(found)} - {"Optimizer"}
    assert set(ROWS) | set(REFUSED) == classes


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_an_optimizer_steps_as_by_hand(name: str, arguments: dict[str, Any]) -> None:
    table = {"kind": f"torch.optim:{name}", "lr": 0.05, **arguments}
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(5, 3))
    theirs = nn.Parameter(ours.detach().clone())
    optimizer = build_optimizer("model", decoded(AnyOptimizer, table), {"weight": ours})
    options = {key: tuple(item) if isinstance(item, list) else item for key, item in arguments.items()}
    twin = getattr(torch.optim, name)([theirs], lr=0.05, **options)
    for _ in range(5):
        gradient = torch.randn(5, 3)
        for parameter, each in ((ours, optimizer), (theirs, twin)):
            parameter.grad = gradient.clone()
            each.step()
    assert ours.detach().numpy().tobytes() == theirs.detach().numpy().tobytes()


def recipe_with(folder: Path, kind: str, arguments: dict[str, Any], text: str = CLASSIFIER) -> Path:
    """A recipe whose optimizer is of this kind."""
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in arguments.items())
    return written(folder, "recipe.toml", text.replace('kind = "adamw"\n', f'kind = "{kind}"\n{lines}'))


@pytest.mark.parametrize(
    ("name", "arguments", "precision"),
    [(*case, "fp32") for case in CASES] + [("NAdam", {}, "fp64"), ("ASGD", {"t0": 2.0}, "fp64")],
    ids=str,
)
def test_a_run_with_it_goes_on_with_the_same_bits(
    tmp_path: Path, on_cpu: None, name: str, arguments: dict[str, Any], precision: str
) -> None:
    text = MATRICES if name == "Muon" else CLASSIFIER
    recipe = recipe_with(tmp_path, f"torch.optim:{name}", arguments, text)
    overrides = [
        'train.epochs="${unset}"',
        "train.steps=4",
        f'train.precision="{precision}"',
        "track.kinds=[]",
    ]
    assert_resumes(recipe, tmp_path, overrides)


def assert_resumes(recipe: Path, folder: Path, overrides: list[str]) -> None:
    """Cut a run off at step 2 of 4, carry it on, and compare with one left alone."""
    cut_off(recipe, folder / "runs", 2, *overrides)
    for runs, first in (("runs", 2), ("alone", 0)):
        with dtrain.setup(dtrain.load(recipe, overrides), runs=folder / runs) as run:
            assert run.step == first
            for _ in dtrain.train(run):
                pass
    run, alone = only_run(folder / "runs"), only_run(folder / "alone")
    assert last_tensors(run) == last_tensors(alone)
    states = [open_checkpoint(checkpoints_in(each)[-1]).state for each in (run, alone)]
    assert states[0] == states[1]


def test_adam_of_the_shipped_gan_is_replaced_by_adabelief(
    tmp_path: Path, on_cpu: None, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("adabelief_pytorch")
    text = (ROOT / "recipes" / "gan.toml").read_text()
    assert text.count('kind = "adam"') == 1
    text = text.replace('kind = "adam"', 'kind = "adabelief_pytorch:AdaBelief"')
    (tmp_path / "gan.toml").write_text(text.replace('"data/', f'"{ROOT}/recipes/data/'))
    overrides = ["train.steps=4", "every.save=2", "every.sample=0", "every.evaluate=0", "track.kinds=[]"]
    assert_resumes(tmp_path / "gan.toml", tmp_path, overrides)
    tensors = last_tensors(only_run(tmp_path / "runs"))
    assert "optimizers/generator/0.weight/exp_avg_var" in tensors
    assert "Rectification enabled in AdaBelief" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        *((CLASSIFIER, f"torch.optim:{name}", said) for name, said in REFUSED.items()),
        (CLASSIFIER, "torch.optim.lbfgs:LBFGS", "evaluates the loss again inside a step"),
        (CLASSIFIER, "test_optimizers:AsksAgain", "evaluates the loss again inside a step"),
        (CLASSIFIER, "torch.optim:Muon", r"the model's 0\.weight is \[4, 1, 3, 3\]; kind = \"muon\", which"),
        (CLASSIFIER, "torch.optim:Adm", "Adam"),
        (CLASSIFIER, "torch.optim.lr_scheduler:StepLR", "Optimizer would do"),
    ],
)
def test_an_optimizer_that_cannot_train_is_refused_with_a_reason(
    tmp_path: Path, on_cpu: None, text: str, kind: str, said: str
) -> None:
    recipe = recipe_with(tmp_path, kind, {}, text)
    with pytest.raises(RecipeError, match=rf"(?s)optimizers\.classifier\.kind: .*{said}"):
        dtrain.setup(dtrain.load(recipe), runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("KeepsAList", "keeps a list .history."), ("CountsForAll", "of no parameter .calls.")]
)
def test_a_state_that_no_checkpoint_holds_is_refused(
    tmp_path: Path, on_cpu: None, name: str, said: str
) -> None:
    recipe = recipe_with(tmp_path, f"test_optimizers:{name}", {})
    with (
        dtrain.setup(dtrain.load(recipe), runs=tmp_path / "runs") as run,
        pytest.raises(dtrain.errors.CheckpointError, match=said),
    ):
        list(dtrain.train(run))


def test_settings_that_an_optimizer_moves_itself_are_state_and_those_of_a_schedule_are_not() -> None:
    parameter = nn.Parameter(torch.zeros(2))

    def wrapped() -> NamedOptimizer:
        made = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
        return NamedOptimizer("m", made, {"weight": parameter}, 0.1)

    saved, restored = wrapped(), wrapped()
    saved.set({"lr": 0.2, "momentum": 0.8})
    saved.optimizer.param_groups[0]["dampening"] = 0.5
    restored.restore({name: json.loads(json.dumps({key: value})) for name, key, value in saved.state()})
    group = restored.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["dampening"]) == (0.1, 0.9, 0.5)


SWITCHED_ON = {  # settings that come with a resume, and what torch begins at zero where it begins with them
    "rmsprop": [("momentum", 0.9, "momentum_buffer"), ("centered", True, "grad_avg")],
    "sgd": [("momentum", 0.9, None)],  # which begins with the first gradient
    "torch.optim:Adam": [("amsgrad", True, "max_exp_avg_sq")],
    "torch.optim:AdamW": [("amsgrad", True, "max_exp_avg_sq")],
    "torch.optim:RMSprop": [("momentum", 0.9, "momentum_buffer")],
}
SWITCHES = [(kind, *row) for kind, rows in SWITCHED_ON.items() for row in rows]


@pytest.mark.parametrize(("kind", "setting", "value", "buffer"), SWITCHES, ids=str)
def test_a_setting_that_comes_with_a_resume_begins_as_in_torch(
    kind: str, setting: str, value: Any, buffer: str | None
) -> None:
    parameter = nn.Parameter(torch.ones(3, 2))
    gradients = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))

    def named(**settings: Any) -> NamedOptimizer:
        spec = decoded(AnyOptimizer, {"kind": kind, "lr": 0.05, **settings})
        return NamedOptimizer("m", build_optimizer("m", spec, {"w": parameter}), {"w": parameter}, 0.05)

    def stepped(own: NamedOptimizer) -> None:
        for gradient in gradients:
            parameter.grad = gradient.clone()
            own.step()

    before = named()
    stepped(before)
    state, start = {key: value for _, key, value in before.state()}, parameter.detach().clone()
    stepped_by_torch = copy.deepcopy(before.optimizer)
    after = named(**{setting: value})
    after.restore({"w": state})
    stepped(after)
    (twin,) = stepped_by_torch.param_groups[0]["params"]
    assert torch.equal(twin, start)
    stepped_by_torch.param_groups[0][setting] = value
    if buffer is not None:
        stepped_by_torch.state[twin][buffer] = torch.zeros(3, 2)
    for gradient in gradients:
        twin.grad = gradient.clone()
        stepped_by_torch.step()
    assert torch.equal(parameter, twin)
    assert not torch.equal(twin, start)


@pytest.mark.parametrize("setting", ["momentum=0.9", "centered=true"])
def test_a_run_goes_on_with_a_setting_that_it_began_without(
    classifier: Path, tmp_path: Path, dtrain_here: Callable[..., Said], setting: str
) -> None:
    own = ["optimizers.classifier.kind=rmsprop", "track.kinds=[]"]
    first = cut_off(classifier, tmp_path / "first", 2, *own)
    on = [*own, f"optimizers.classifier.{setting}", "--runs", tmp_path / "then"]
    said = dtrain_here("run", classifier, *on, "--resume", first)
    assert said.code == 0, said.errors
    assert dtrain_here("verify", only_run(tmp_path / "then")).code == 0


# --- precision ---


def test_a_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("fp32", "fp64", "bf16", "fp16"):
        check_precision(precision, torch.device("cpu"))
    with pytest.raises(RecipeError, match=r'^train\.precision: .*no fp64; "fp32" would do'):
        check_precision("fp64", torch.device("mps"))
    asked: list[bool] = []

    def no_bf16(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", no_bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    check_precision("fp16", torch.device("cuda"))
    with pytest.raises(RecipeError, match=r'^train\.precision: Tesla T4 has no bf16; "fp16" or "fp32" would'):
        check_precision("bf16", torch.device("cuda"))
    assert asked == [False]
