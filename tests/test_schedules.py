"""Schedules of torch's kind set what they would in a loop written by hand, and go on from a checkpoint."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSIFIER, GAN, cut_off, label, last_tensors, metrics_of, only_run, start_two, written
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

import dtrain
from dtrain.backends.torch_backend import build_model
from dtrain.backends.torch_optimizers import build_optimizer
from dtrain.backends.torch_schedules import Schedules
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.engines.torch_state import NamedOptimizer
from dtrain.errors import RecipeError
from dtrain.events import Evaluated, Stepped
from dtrain.spec.decode import decoded
from dtrain.spec.lengths import Pace
from dtrain.spec.optimizers import AnyOptimizer

STEPS = 30
PACE = Pace(STEPS, None, 8, int)  # without data: whole numbers and shares alone
TORCH = "torch.optim.lr_scheduler:"
# What evaluations gave: better, worse for long, no number, better again.
METRICS = [2.0, 1.5, 1.5, 1.6, 1.7, math.nan, 1.2, math.inf, 1.3, 1.25]
Make = Callable[[Optimizer], LRScheduler]


def warmed(step: int) -> float:
    """A factor, for LambdaLR."""
    return min(1.0, (step + 1) / 7)


def slower(step: int) -> float:
    """A factor of the last rate, for MultiplicativeLR."""
    return 0.9 if step % 2 else 1.01


class Halving(LRScheduler):
    """A user's own: halves the rate every so many steps, and raises the weight decay with them."""

    def __init__(self, optimizer: Optimizer, *, after: int):
        self.after = after
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0.01 * self.last_epoch
        return [base / 2 ** (self.last_epoch // self.after) for base in self.base_lrs]


class Falling(LRScheduler):
    """A user's own that ends before the run does."""

    def get_lr(self) -> list[float | Tensor]:
        return [base * [1.0, 0.5, 0.25, 0.1][self.last_epoch] for base in self.base_lrs]


class BestOfTwo(ReduceLROnPlateau):
    """A user's own that goes by a metric."""


def one(name: str, **arguments: Any) -> tuple[dict[str, Any], Make]:
    """A scheduler with the same arguments in a recipe and in a loop."""
    return arguments, lambda optimizer: getattr(lr_scheduler, name)(optimizer, **arguments)


def part(name: str, **arguments: Any) -> dict[str, Any]:
    """A scheduler inside another one, in a recipe."""
    return {"kind": TORCH + name, **arguments}


def sequence(optimizer: Optimizer) -> LRScheduler:
    rise = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    return lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[5])


def chain(optimizer: Optimizer) -> LRScheduler:
    rise = lr_scheduler.ConstantLR(optimizer, factor=0.1, total_iters=4)
    return lr_scheduler.ChainedScheduler([rise, lr_scheduler.ExponentialLR(optimizer, gamma=0.9)])


SEQUENCE = {
    "schedulers": [
        part("LinearLR", start_factor=0.1, total_iters=5),
        part("CosineAnnealingLR", T_max=20),
    ],
    "milestones": [5],
}
CHAIN = {"schedulers": [part("ConstantLR", factor=0.1, total_iters=4), part("ExponentialLR", gamma=0.9)]}

# In a recipe, and by hand.
ROWS: dict[str, list[tuple[dict[str, Any], Make]]] = {
    "LambdaLR": [
        (
            {"lr_lambda": "test_schedules:warmed"},
            lambda optimizer: lr_scheduler.LambdaLR(optimizer, warmed),
        )
    ],
    "MultiplicativeLR": [
        (
            {"lr_lambda": ["test_schedules:slower"]},
            lambda optimizer: lr_scheduler.MultiplicativeLR(optimizer, [slower]),
        )
    ],
    "StepLR": [one("StepLR", step_size=4, gamma=0.3)],
    "MultiStepLR": [one("MultiStepLR", milestones=[3, 3, 11], gamma=0.5)],
    "ConstantLR": [one("ConstantLR", factor=0.2, total_iters=6)],
    "LinearLR": [one("LinearLR"), one("LinearLR", start_factor=0.7, end_factor=0.1, total_iters=40)],
    "ExponentialLR": [one("ExponentialLR", gamma=0.97)],
    "SequentialLR": [(SEQUENCE, sequence)],
    "CosineAnnealingLR": [one("CosineAnnealingLR", T_max=7, eta_min=1e-3)],
    "ChainedScheduler": [(CHAIN, chain)],
    "ReduceLROnPlateau": [
        one("ReduceLROnPlateau", factor=0.5, patience=1),
        one("ReduceLROnPlateau", mode="max", threshold_mode="abs", patience=0, cooldown=1, min_lr=1e-3),
    ],
    "CyclicLR": [
        one("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=4),
        one("CyclicLR", base_lr=[0.02], max_lr=0.2, step_size_up=3, mode="exp_range", gamma=0.9),
        one("CyclicLR", base_lr=0.01, max_lr=0.1, step_size_up=5, cycle_momentum=False),
    ],
    "CosineAnnealingWarmRestarts": [one("CosineAnnealingWarmRestarts", T_0=4, T_mult=2)],
    "OneCycleLR": [
        one("OneCycleLR", max_lr=0.1, total_steps=STEPS),
        one("OneCycleLR", max_lr=0.1, epochs=3, steps_per_epoch=10, three_phase=True),
    ],
    "PolynomialLR": [one("PolynomialLR", total_iters=20, power=2.0)],
}
CASES = [(name, *row) for name, rows in ROWS.items() for row in rows]


def monitor_of(name: str) -> dict[str, str]:
    return {"monitor": "evaluate/loss"} if name == "ReduceLROnPlateau" else {}


def spec_of(kind: str, schedule: Mapping[str, Any], **arguments: Any) -> Any:
    return decoded(AnyOptimizer, {"kind": kind, "lr": 0.05, **arguments, "schedule": schedule})


def gradients() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn(5, 3, generator=generator)


def test_every_scheduler_of_torch_has_a_row() -> None:
    assert set(ROWS) == set(lr_scheduler.__all__) - {"LRScheduler"}


@pytest.mark.parametrize(("name", "arguments", "make"), CASES, ids=label)
@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_a_schedule_moves_an_optimizer_as_in_a_loop_by_hand(
    kind: str, name: str, arguments: dict[str, Any], make: Make
) -> None:
    options: dict[str, Any] = {"momentum": 0.9} if kind == "sgd" else {"betas": [0.5, 0.9]}
    spec = spec_of(kind, {"kind": TORCH + name, **arguments, **monitor_of(name)}, **options)
    ours, theirs = (nn.Parameter(torch.ones(5, 3)) for _ in range(2))
    optimizer = build_optimizer("model", spec, {"weight": ours})
    optimizers, schedules = (
        NamedOptimizer("model", optimizer, {"weight": ours}, spec.lr),
        Schedules({"m": spec}, PACE),
    )
    twin = torch.optim.Adam([theirs], lr=0.05, betas=(0.5, 0.9), fused=True)
    if kind == "sgd":
        twin = torch.optim.SGD([theirs], lr=0.05, momentum=0.9, fused=True)
    scheduler = make(twin)
    for step, gradient in zip(range(STEPS), gradients(), strict=False):
        settings = schedules.at("m", step)
        assert {key: twin.param_groups[0][key] for key in settings} == settings, step
        optimizers.set(settings)
        for parameter, each in ((ours, optimizer), (theirs, twin)):
            parameter.grad = gradient.clone()
            each.step()
        if not monitor_of(name):
            scheduler.step()
        elif step % 3 == 2:
            scheduler.step(METRICS[step // 3])
            schedules.observe({"evaluate/loss": METRICS[step // 3]})
    assert ours.detach().numpy().tobytes() == theirs.detach().numpy().tobytes()
    kept = [f"model/{name}/{key}" for name, key, _ in optimizers.state()]
    assert not any("group:" in key for key in kept)  # what a schedule moves is no state of the optimizer's


@pytest.mark.parametrize(("name", "arguments", "make"), CASES, ids=label)
def test_a_schedule_goes_on_from_what_a_checkpoint_holds(
    name: str, arguments: dict[str, Any], make: Make
) -> None:
    spec = spec_of("adam", {"kind": TORCH + name, **arguments, **monitor_of(name)})

    def go(schedules: Schedules, first: int, end: int) -> list[Mapping[str, Any]]:
        seen = []
        for step in range(first, end):
            seen.append(schedules.at("m", step))
            if step % 3 == 2:
                schedules.observe({"evaluate/loss": METRICS[step // 3]})
        return seen

    alone, first, second = (Schedules({"m": spec}, PACE) for _ in range(3))
    before = go(first, 0, 13)
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    assert before + go(second, 13, STEPS) == go(alone, 0, STEPS)
    assert second.state() == alone.state()


def test_a_changed_schedule_is_the_one_that_it_would_be_by_now() -> None:
    first = Schedules({"m": spec_of("adam", part("StepLR", step_size=3))}, PACE)
    first.at("m", 20)
    changed = spec_of("adam", part("StepLR", step_size=5, gamma=0.5))
    resumed, alone = Schedules({"m": changed}, PACE), Schedules({"m": changed}, PACE)
    resumed.restore(first.state())
    assert resumed.at("m", 20) == [alone.at("m", step) for step in range(21)][-1]

    plateau = {"patience": 0, "monitor": "evaluate/loss"}
    first = Schedules({"m": spec_of("adam", part("ReduceLROnPlateau", **plateau))}, PACE)
    for value in (1.0, 2.0, 3.0):
        first.observe({"evaluate/loss": value})
    assert first.at("m", 9)["lr"] == pytest.approx(0.05 * 0.01)
    gentler = spec_of("adam", part("ReduceLROnPlateau", **plateau, factor=0.5))
    other = spec_of("adam", part("ReduceLROnPlateau", patience=0, monitor="evaluate/accuracy"))
    for spec, factor in ((gentler, 0.25), (other, 1.0), (spec_of("adam", {"kind": "constant"}), 1.0)):
        resumed = Schedules({"m": spec}, PACE)
        resumed.restore(first.state())
        assert resumed.at("m", 9)["lr"] == pytest.approx(0.05 * factor)


def test_a_schedule_of_ones_own_moves_what_it_likes() -> None:
    spec = spec_of("torch.optim:AdamW", {"kind": "test_schedules:Halving", "after": 2})
    schedules = Schedules({"m": spec}, replace(PACE, total=6))
    seen = [dict(schedules.at("m", step)) for step in range(6)]
    assert [each["lr"] for each in seen] == [0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125]
    assert [each["weight_decay"] for each in seen] == [0.01 * step for step in range(6)]


# --- whole runs ---

PLAIN = CLASSIFIER.replace('    { kind = "dropout", rate = 0.3 },\n', "").replace(
    '    { kind = "batch_norm" },\n', ""
)


def plain(folder: Path, schedule: str, **lines: str) -> Path:
    """A classifier whose loss is simple enough to write by hand, with a schedule."""
    text = PLAIN.replace("lr = 1e-2", f"lr = 1e-2\nschedule = {schedule}").replace("micro_batch_size = 4", "")
    for old, new in lines.items():
        text = text.replace(f"{old} = 2", f"{old} = {new}")
    return written(folder, "plain.toml", text.replace("batch_size = 8", "batch_size = 10"))


PLATEAU, EVALUATED = f'kind = "{TORCH}ReduceLROnPlateau"', 'monitor = "evaluate/loss"'
HANDS = ["OneCycleLR", "plateau", "ReduceLROnPlateau"]
DROPS = f"{{ {PLATEAU}, patience = 0, threshold = 0.2, {EVALUATED} }}"
BY_HAND: dict[str, Make] = {
    f'{{ kind = "{TORCH}OneCycleLR", max_lr = 0.1, total_steps = 12 }}': lambda optimizer: (
        lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=12)
    ),
    f'{{ kind = "plateau", patience = 0, threshold = 0.2, factor = 0.5, {EVALUATED} }}': lambda optimizer: (
        lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.2, factor=0.5)
    ),
    DROPS: lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.2),
}


@pytest.mark.parametrize(("schedule", "make"), BY_HAND.items(), ids=HANDS)
def test_a_run_equals_a_loop_by_hand(tmp_path: Path, on_cpu: None, schedule: str, make: Make) -> None:
    recipe = dtrain.load(plain(tmp_path, schedule, epochs="6"))
    model = build_model("classifier", recipe.models["classifier"], seed=recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    scheduler, rates, logged = make(optimizer), [], []
    with dtrain.setup(recipe, runs=tmp_path / "runs") as run:
        for event in dtrain.train(run):
            if isinstance(event, Stepped):
                ((_, batch),) = run.loader.load(event.step - 1)
                output = model(torch.from_numpy(batch["image"]))
                labels = torch.from_numpy(batch["label"])
                nn.functional.cross_entropy(output, labels, label_smoothing=0.1).backward()
                rates.append(optimizer.param_groups[0]["lr"])
                logged.append(event.metrics["classifier/lr"])
                optimizer.step()
                optimizer.zero_grad()
                if not isinstance(scheduler, ReduceLROnPlateau):
                    scheduler.step()
            if isinstance(event, Evaluated) and isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(event.metrics["evaluate/loss"])
        assert logged == rates
        assert len(set(rates)) > 2
        own = run.engine.bare["classifier"].state_dict()  # type: ignore[attr-defined]
    for name, tensor in model.state_dict().items():
        assert tensor.numpy().tobytes() == own[name].numpy().tobytes(), name


@pytest.mark.parametrize("schedule", BY_HAND, ids=HANDS)
def test_a_run_that_was_cut_off_goes_on_with_the_same_bits(
    tmp_path: Path, on_cpu: None, schedule: str
) -> None:
    recipe = plain(tmp_path, schedule, epochs="6")
    cut_off(recipe, tmp_path / "runs", 6)
    for runs in ("runs", "alone"):
        with dtrain.setup(dtrain.load(recipe), runs=tmp_path / runs) as run, dtrain.run.watch(run) as observe:
            assert run.step == (6 if runs == "runs" else 0)
            for event in dtrain.train(run):
                observe(event)
    run, alone = only_run(tmp_path / "runs"), only_run(tmp_path / "alone")
    assert last_tensors(run) == last_tensors(alone)
    later = [[line for line in metrics_of(each) if line[0] > 6] for each in (run, alone)]
    assert later[0] == later[1]
    states = [open_checkpoint(checkpoints_in(each)[-1]).state for each in (run, alone)]
    assert states[0] == states[1]


def test_a_longer_run_equals_a_shorter_one_that_went_on(tmp_path: Path, on_cpu: None) -> None:
    recipe = plain(tmp_path, DROPS)
    ends = []
    for runs, resume in ((5, False), (10, True), (10, False)):
        steps = [f"train.steps={runs}", 'train.epochs="${unset}"']
        with dtrain.setup(
            dtrain.load(recipe, steps),
            runs=tmp_path / f"{runs}-{resume}",
            resume=only_run(tmp_path / "5-False") if resume else None,
        ) as run:
            for _ in dtrain.train(run):
                pass
        ends.append(open_checkpoint(checkpoints_in(run.folder)[-1]).state["schedules"])
        tensors = last_tensors(run.folder)
    assert last_tensors(only_run(tmp_path / "10-True")) == tensors
    assert [len(end["classifier"]["values"]) for end in ends] == [2, 5, 5]
    assert ends[1] == ends[2]


def say_rates(arguments: list[str]) -> int:
    """Train, and write what this rank was told of evaluations, and the rates that it went by."""
    recipe, runs, said = map(Path, arguments)
    seen: list[Any] = []
    with dtrain.setup(dtrain.load(recipe), runs=runs) as run:
        for event in dtrain.train(run):
            if isinstance(event, Evaluated):
                seen.append(event.metrics["evaluate/loss"])
            if isinstance(event, Stepped):
                seen.append(event.metrics["classifier/lr"])
        said.with_suffix(f".{run.engine.rank}").write_text(json.dumps(seen))
    return 0


def test_all_ranks_go_by_the_same_evaluations(tmp_path: Path, on_cpu: None) -> None:
    text = CLASSIFIER.replace("lr = 1e-2", f"lr = 1e-2\nschedule = {DROPS}")
    recipe = written(tmp_path, "two.toml", text.replace("epochs = 2", "epochs = 4"))
    lives = start_two(recipe, tmp_path / "runs", tmp_path / "said", log=tmp_path / "log", action=say_rates)
    assert [life.end() for life in lives] == [0, 0], [life.said for life in lives]
    first, second = (json.loads((tmp_path / f"said.{rank}").read_text()) for rank in (0, 1))
    assert first == second
    assert first[-2] < first[0]  # the last rate is a lower one


# --- mistakes ---

MONITOR = "schedule.monitor"
ADAGRAD = 'optimizers.classifier.kind="torch.optim:Adagrad"'
SHORT_CYCLE = (
    f'kind = "{TORCH}SequentialLR", milestones = [4], schedulers = ['
    f'{{ kind = "{TORCH}OneCycleLR", max_lr = 1, total_steps = 3 }}, {{ kind = "{TORCH}ConstantLR" }}]'
)
WRONG = [  # schedule, overrides, the key under the optimizer's, what is said of it
    (PLATEAU, (), MONITOR, "goes by a metric of evaluation; monitor ="),
    (f'kind = "{TORCH}StepLR", step_size = 2, {EVALUATED}', (), MONITOR, "goes by steps"),
    (f'{PLATEAU}, monitor = "loss"', (), MONITOR, 'did you mean "evaluate/loss"?'),
    (f'{PLATEAU}, monitor = "evaluate/los"', (), MONITOR, 'did you mean "evaluate/loss"?'),
    (f'{PLATEAU}, monitor = "evaluate/x"', (), MONITOR, "evaluate/loss or evaluate/accuracy would do"),
    (f"{PLATEAU}, {EVALUATED}", ("every.evaluate=0",), MONITOR, "nothing is evaluated before the end"),
    ('kind = "test_schedules:BestOfTwo"', (), MONITOR, "goes by a metric of evaluation"),
    (f'kind = "test_schedules:Halving", after = 2, {EVALUATED}', (), MONITOR, "goes by steps"),
    (f'kind = "{TORCH}StepsLR", step_size = 2', (), "schedule.kind", "StepLR"),
    (f'kind = "{TORCH}StepLR", steps = 2', (), "schedule", "step_size"),
    (f'kind = "{TORCH}OneCycleLR", max_lr = 1, total_steps = 5', (), "schedule", "total_steps = 6 would do"),
    (
        SHORT_CYCLE,
        (),
        "schedule",
        "its part of the run has 4; total_steps = 4 would do",
    ),
    (f'kind = "{TORCH}CyclicLR", base_lr = 1, max_lr = 2', (ADAGRAD,), "schedule", "must support momentum"),
]


@pytest.mark.parametrize(("schedule", "overrides", "key", "said"), WRONG)
def test_a_schedule_that_cannot_be_followed_is_a_mistake_before_training(
    tmp_path: Path, on_cpu: None, schedule: str, overrides: tuple[str, ...], key: str, said: str
) -> None:
    text = CLASSIFIER.replace("lr = 1e-2", f"lr = 1e-2\nschedule = {{ {schedule} }}")
    recipe = written(tmp_path, "wrong.toml", text)
    with (
        pytest.raises(RecipeError) as caught,
        dtrain.setup(dtrain.load(recipe, overrides), runs=tmp_path / "runs") as run,
    ):
        list(islice(dtrain.train(run), 1))
    assert said in str(caught.value)
    assert f"optimizers.classifier.{key}" in str(caught.value)


def test_a_schedule_that_fails_in_the_middle_is_told_at_its_place(tmp_path: Path) -> None:
    spec = spec_of("adam", {"kind": "test_schedules:Falling"})
    schedules = Schedules({"generator": spec}, replace(PACE, total=12))
    assert schedules.at("generator", 3)["lr"] > 0
    with pytest.raises(RecipeError, match=r"^optimizers\.generator\.schedule: .*index out of range"):
        schedules.at("generator", 4)


def test_the_plan_names_a_schedule_by_its_path(tmp_path: Path, dtrain_here: Callable[..., Any]) -> None:
    text = GAN.replace('{ kind = "cosine", warmup = 4 }', f'{{ kind = "{TORCH}StepLR", step_size = 3 }}')
    said = dtrain_here("check", written(tmp_path, "gan.toml", text))
    assert f"adam lr 0.002 {TORCH}StepLR" in said.out, said.errors


def test_the_plan_draws_the_rates_of_a_run(tmp_path: Path, dtrain_here: Callable[..., Any]) -> None:
    schedule = '{ kind = "linear", warmup = { share = 0.5 }, floor = 0.25 }'
    text = CLASSIFIER.replace("lr = 1e-2", f"lr = 1e-2\nschedule = {schedule}")
    said = dtrain_here("check", written(tmp_path, "drawn.toml", text))
    assert "  classifier  ▃▆██▅▃  0.0025 to 0.01 (step 3), 0.00333 at first, 0.0025 at last" in said.out
