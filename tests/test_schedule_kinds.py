"""dtrain's own schedules follow their formulas and torch's schedulers, with lengths of every sort."""

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CLASSIFIER, written
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from dtrain.spec.decode import decoded
from dtrain.spec.lengths import Length, Pace
from dtrain.spec.rates import AnySchedule, Plateau
from dtrain.spec.schedules import Schedule, in_steps
from dtrain.spec.table import KINDS
from dtrain.systems.base import Phase, steps_for, updates_before

ByHand = Callable[[int], float]


def schedule_of(total: int, **table: Any) -> Callable[[int], float]:
    """A schedule of a run of so many steps, one update each."""
    schedule = in_steps(decoded(AnySchedule, table), Pace(total, 80, 8, int))
    return partial(schedule, total=total)


def with_warmup(warmup: int, after: ByHand) -> ByHand:
    return lambda step: min((step + 1) / warmup, 1) * after(max(step - warmup, 0))


def halves(*milestones: int) -> ByHand:
    return lambda step: 0.5 ** sum(step >= milestone for milestone in milestones)


def in_a_row(step: int) -> float:
    if step < 3:
        return 0.5 * (step + 1) / 3
    return 1 - (step - 3) / 9 if step < 13 else 0.25


def falling(last: int, fall: ByHand, warmup: int = 1, total: int = 20) -> ByHand:
    """1 after a warm-up, and in the `last` steps what `fall` says of the share that is done."""
    rise, first = with_warmup(warmup, lambda _: 1.0), total - last
    return lambda step: rise(step) if step < first else fall((step + 1 - first) / last)


FORMULAS: dict[str, list[tuple[dict[str, Any], int, ByHand]]] = {  # table, steps, by hand
    "constant": [({}, 5, lambda step: 1.0), ({"warmup": 3}, 6, with_warmup(3, lambda step: 1.0))],
    "linear": [
        ({}, 5, lambda step: 1 - step / 4),
        ({"floor": 0.5}, 5, lambda step: 1 - 0.5 * step / 4),
        ({"warmup": 4, "floor": 0.1}, 15, with_warmup(4, lambda after: 1 - 0.9 * after / 10)),
    ],
    "cosine": [
        ({}, 9, lambda step: (1 + math.cos(math.pi * step / 8)) / 2),
        ({"warmup": 4, "floor": 0.1}, 15,
         with_warmup(4, lambda after: 0.1 + 0.45 * (1 + math.cos(math.pi * after / 10)))),
    ],
    "step": [
        ({"every": 4, "factor": 0.5}, 10, halves(4, 8)),
        ({"milestones": [3, 4], "factor": 0.5, "warmup": 2}, 9,
         lambda step: halves(3, 4)(step) * min((step + 1) / 2, 1)),
    ],
    "exponential": [
        ({"factor": 0.9}, 8, lambda step: 0.9**step),
        ({"factor": 0.5, "every": 4, "warmup": 3}, 12, with_warmup(3, lambda after: 0.5 ** (after / 4))),
    ],
    "one_cycle": [
        ({"rise": 5, "start": 0.2, "floor": 0.0, "shape": "linear"}, 11,
         lambda step: 0.2 + 0.2 * step if step < 4 else 1 - (step - 4) / 6),
        ({"rise": 0}, 4, lambda step: 4e-6 + (1 - 4e-6) * (1 + math.cos(math.pi * step / 3)) / 2),
    ],
    "warmup_stable_decay": [
        ({}, 20, falling(2, lambda done: 1 - done)),
        ({"decay": 0, "warmup": 2}, 20, falling(0, lambda done: 1.0, warmup=2)),
        ({"decay": 5, "warmup": 3, "floor": 0.5}, 20, falling(5, lambda done: 1 - 0.5 * done, warmup=3)),
        ({"decay": 5, "shape": "cosine"}, 20, falling(5, lambda done: (1 + math.cos(math.pi * done)) / 2)),
        ({"decay": 5, "shape": "square_root"}, 20, falling(5, lambda done: 1 - math.sqrt(done))),
        ({"decay": 5, "shape": "exponential", "floor": 0.01}, 20, falling(5, lambda done: 0.01**done)),
    ],
    "sequence": [
        ({"parts": [
            {"length": 3, "schedule": {"kind": "constant", "warmup": {"share": 1.0}}, "factor": 0.5},
            {"length": {"epochs": 1}, "schedule": {"kind": "linear"}},
            {"schedule": {"kind": "constant"}, "factor": 0.25},
        ]}, 16, in_a_row),
    ],
}  # fmt: skip


def test_every_kind_of_schedule_has_a_row() -> None:
    assert set(FORMULAS) == set(KINDS[Schedule])


@pytest.mark.parametrize(
    ("kind", "table", "total", "by_hand"),
    [(kind, *row) for kind, rows in FORMULAS.items() for row in rows],
    ids=lambda value: None if callable(value) else str(value)[:40],
)
def test_a_schedule_follows_its_formula(
    kind: str, table: dict[str, Any], total: int, by_hand: ByHand
) -> None:
    schedule = schedule_of(total, kind=kind, **table)
    assert [schedule(step) for step in range(total)] == pytest.approx([by_hand(n) for n in range(total)])
    if kind not in ("step", "exponential"):  # these go on
        assert schedule(total + 5) == pytest.approx(schedule(total - 1), abs=1e-12)


FULL = {
    "step": {"every": 1},
    "exponential": {"factor": 0.5},
    "sequence": {"parts": [{"schedule": {"kind": "linear"}}]},
}


def test_schedules_end_where_they_should_even_when_all_is_warm_up_or_one_step() -> None:
    for kind in KINDS[Schedule]:
        if kind not in ("one_cycle", "warmup_stable_decay"):
            assert schedule_of(1, kind=kind, **FULL.get(kind, {}))(0) == 1.0
    assert schedule_of(1, kind="one_cycle")(0) == 1.0
    assert schedule_of(1, kind="warmup_stable_decay", decay=1)(0) == 0.0
    for kind in ("constant", "linear", "cosine", "exponential"):
        warm = schedule_of(5, kind=kind, warmup=10, **FULL.get(kind, {}))
        assert [warm(step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def chained(optimizer: Optimizer) -> LRScheduler:
    flat = lr_scheduler.ConstantLR(optimizer, factor=0.1, total_iters=100)
    fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=9, eta_min=0.4)
    rest = lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    return lr_scheduler.SequentialLR(optimizer, [flat, fall, rest], milestones=[4, 14])


def one_cycle(optimizer: Optimizer, **arguments: Any) -> LRScheduler:
    return lr_scheduler.OneCycleLR(optimizer, max_lr=2.0, total_steps=30, **arguments)


OF_TORCH: dict[str, tuple[dict[str, Any], Callable[[Optimizer], LRScheduler]]] = {
    "CosineAnnealingLR": (
        {"kind": "cosine", "floor": 0.1},
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=29, eta_min=0.2),
    ),
    "LinearLR": (
        {"kind": "linear", "floor": 0.25},
        partial(lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.25, total_iters=29),
    ),
    "StepLR": (
        {"kind": "step", "every": 7, "factor": 0.3},
        partial(lr_scheduler.StepLR, step_size=7, gamma=0.3),
    ),
    "MultiStepLR": (
        {"kind": "step", "milestones": [3, 12, {"epochs": 1.5}]},
        partial(lr_scheduler.MultiStepLR, milestones=[3, 12, 15], gamma=0.1),
    ),
    "ExponentialLR": (
        {"kind": "exponential", "factor": 0.9},
        partial(lr_scheduler.ExponentialLR, gamma=0.9),
    ),
    "OneCycleLR": ({"kind": "one_cycle"}, one_cycle),
    "OneCycleLR, linear": (
        {"kind": "one_cycle", "rise": 12, "start": 0.1, "floor": 0.1 / 50, "shape": "linear"},
        partial(one_cycle, pct_start=0.4, div_factor=10, final_div_factor=50, anneal_strategy="linear"),
    ),
    "SequentialLR": (
        {"kind": "sequence", "parts": [
            {"length": 4, "schedule": {"kind": "constant"}, "factor": 0.1},
            {"length": 10, "schedule": {"kind": "cosine", "floor": 0.2}},
            {"schedule": {"kind": "exponential", "factor": 0.9}},
        ]},
        chained,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_TORCH)
def test_a_schedule_is_torchs(name: str) -> None:
    table, make = OF_TORCH[name]
    schedule = schedule_of(30, **table)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    theirs = make(optimizer)
    for step in range(30):
        assert 2.0 * schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"]), step
        optimizer.step()
        theirs.step()


METRICS = [
    2.0,
    1.5,
    1.5,
    1.49999,
    1.6,
    math.nan,
    1.2,
    math.inf,
    1.3,
    1.25,
    1.3,
    1.4,
    1.5,
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
]
PLATEAUS: list[dict[str, Any]] = [
    {"patience": 0},
    {"patience": 1, "factor": 0.5, "threshold": 0.01},
    {"patience": 0, "cooldown": 2, "floor": 0.2, "factor": 0.6},
    {"patience": 2, "mode": "max", "threshold": 0.5},
]


@pytest.mark.parametrize("metrics", [METRICS, [math.inf, *METRICS], [math.nan] * 4], ids=["", "inf", "nan"])
@pytest.mark.parametrize("table", PLATEAUS, ids=str)
def test_a_plateau_is_torchs(table: dict[str, Any], metrics: list[float]) -> None:
    plateau: Plateau = decoded(AnySchedule, {"kind": "plateau", "monitor": "evaluate/loss", **table})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    arguments = {key: value for key, value in table.items() if key != "floor"}
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, min_lr=2.0 * table.get("floor", 0.0), eps=0, **arguments
    )
    for seen, metric in enumerate(metrics, 1):
        theirs.step(metric)
        reached = plateau.after(metrics[:seen])
        assert 2.0 * reached == pytest.approx(optimizer.param_groups[0]["lr"]), seen


def test_a_plateau_of_a_metric_below_0_asks_for_a_better_one() -> None:
    plateau = Plateau(monitor="evaluate/loss", patience=0, threshold=0.1, factor=0.5)
    assert plateau.after([-10.0, -10.5]) == 0.5  # torch takes any below -9 for better
    assert plateau.after([-10.0, -11.5]) == 1.0


# --- lengths ---


def phases(*rhythms: tuple[int, int]) -> list[Phase]:
    return [Phase(("model",), lambda *_: None, repeat=repeat, every=every) for repeat, every in rhythms]  # type: ignore[arg-type, return-value]


CRITICS = phases((5, 1), (1, 1))  # six updates a step
SELDOM = phases((1, 1), (2, 3))  # three updates on steps 0, 3, 6, ..., one on the others
# Phases, examples, batch size, a length, how many updates it is.
LENGTHS: list[tuple[list[Phase], int, int, dict[str, Any] | int, int]] = [
    (phases((1, 1)), 100, 10, {"epochs": 2}, 20),
    (phases((1, 1)), 101, 10, {"epochs": 2}, 22),  # each epoch ends with a small batch
    (phases((1, 1)), 100, 10, {"epochs": 0.25}, 2),
    (phases((1, 1)), 100, 10, {"examples": 95}, 10),
    (phases((1, 1)), 101, 10, {"examples": 102}, 12),  # 11 updates to the end of the epoch
    (CRITICS, 600, 1, {"epochs": 1}, 600),
    (CRITICS, 600, 1, {"examples": 7}, 7),
    (SELDOM, 100, 10, {"epochs": 1}, 10),
    (SELDOM, 100, 10, {"examples": 40}, 4),
]


@pytest.mark.parametrize(("system", "examples", "batch_size", "length", "updates"), LENGTHS)
def test_a_length_is_the_fewest_steps_whose_updates_make_it_up(
    system: list[Phase], examples: int, batch_size: int, length: dict[str, Any], updates: int
) -> None:
    pace = Pace(1000, examples, batch_size, partial(steps_for, system))
    steps = pace.steps(decoded(Length, length))
    assert updates_before(system, steps - 1) < updates <= updates_before(system, steps)


def test_a_share_is_of_the_run_or_of_the_part() -> None:
    pace = Pace(30, None, 8, int)
    assert [pace.steps(decoded(Length, {"share": share})) for share in (0.1, 0.5, 1.0, 0.01)] == [
        3,
        15,
        30,
        0,
    ]
    inner = {"kind": "constant", "warmup": {"share": 0.5}}
    row = schedule_of(30, kind="sequence", parts=[{"length": 8, "schedule": inner}, {"schedule": inner}])
    assert [step for step in range(30) if row(step) == 1.0] == [*range(3, 8), *range(18, 30)]


def test_a_length_beyond_any_run_is_no_overflow() -> None:
    pace = Pace(30, 100, 1, partial(steps_for, phases((1, 1))))
    assert pace.steps(decoded(Length, {"epochs": 1e300})) > 2**60


# --- what does not fit a run ---

# A schedule of the classifier, whose run has 6 steps, 3 an epoch of 20 examples; the key; what is said.
LINE = 'schedule = { kind = "linear" }'
UNFIT = [
    ('kind = "cosine", warmup = 7', "warmup", "found 7, but the whole run has 6 steps"),
    ('kind = "cosine", warmup = { epochs = 3 }', "warmup", "found { epochs = 3 }, 9 steps, but"),
    ('kind = "cosine", warmup = { epochs = 1, share = 0.5 }', "warmup.share", "give one of"),
    ('kind = "cosine", warmup = { epoch = 1 }', "warmup.epoch", 'did you mean "epochs"?'),
    ('kind = "cosine", warmup = {}', "warmup", "give one of `epochs`, `examples` and `share`"),
    ('kind = "step", milestones = [2, 4, 4]', "milestones[2]", "the one before it is at 4"),
    ('kind = "step", milestones = [4, { epochs = 1 }]', "milestones[1]", "{ epochs = 1 }, 3 steps, but"),
    ('kind = "step", milestones = [9]', "milestones[0]", "the whole run has 6 steps"),
    ('kind = "step", every = { share = 0.01 }', "every", "0 steps, which is no step"),
    ('kind = "step", every = 0', "every", "found 0; a number above 0 would do"),
    ('kind = "step", every = 1, milestones = [2]', "every", "give either `milestones` or `every`"),
    ('kind = "one_cycle", rise = { examples = 100 }', "rise", "{ examples = 100 }, 15 steps"),
    ('kind = "warmup_stable_decay", warmup = 4, decay = 3', "decay", "leaves 2 of the run's 6 steps"),
    ('kind = "warmup_stable_decay", shape = "exponential"', "floor", "never reaches 0"),
    ('kind = "plateau", monitor = "evaluate/los"', "monitor", 'did you mean "evaluate/loss"?'),
    ('kind = "plateau", monitor = "evaluate/loss", warmup = 8', "warmup", "the whole run has 6 steps"),
    ('kind = "plateau"', "monitor", "required, but missing"),
    (f"{{ROW}} [{{ length = 2, {LINE} }}, {{ length = {{ epochs = 2 }}, {LINE} }}, {{ {LINE} }}]",
     "parts[1].length", "6 steps, which leaves nothing of the run's 6 steps for the last part"),
    (f'{{ROW}} [{{ length = 2, schedule = {{ kind = "linear", warmup = 3 }} }}, {{ {LINE} }}]',
     "parts[0].schedule.warmup", "found 3, but the whole part has 2 steps"),
    (f"{{ROW}} [{{ {LINE} }}, {{ {LINE} }}]", "parts[0].length", "required, but missing"),
    (f"{{ROW}} [{{ length = 2, {LINE} }}]", "parts[0].length", "leave its length out"),
    ('{ROW} [{ schedule = { kind = "plateau" } }]', "parts[0].schedule.kind", "unknown kind"),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "key", "said"), UNFIT)
def test_a_schedule_that_does_not_fit_the_run_is_a_mistake_at_its_line(
    tmp_path: Path, dtrain_here: Callable[..., Any], schedule: str, key: str, said: str
) -> None:
    table = "{ " + schedule.replace("{ROW}", 'kind = "sequence", parts =') + " }"
    text = CLASSIFIER.replace("lr = 1e-2", f"lr = 1e-2\nschedule = {table}")
    recipe = written(tmp_path, "unfit.toml", text)
    line = text[: text.index("schedule = {")].count("\n") + 1
    found = dtrain_here("check", recipe)
    assert (found.code, said in found.errors) == (2, True), found.errors
    assert re.search(rf"^{recipe}:{line}:\d+: ", found.errors), found.errors
    assert f"optimizers.classifier.schedule.{key}" in found.errors


def test_the_weight_of_a_loss_has_a_schedule_that_fits_the_run(
    tmp_path: Path, dtrain_here: Callable[..., Any]
) -> None:
    said = (
        'losses.rise = { of = "mean(classifier(image))", '
        'schedule = { kind = "linear", warmup = { epochs = 3 } } }'
    )
    composed = f'[system]\nkind = "composed"\n\n[[system.phases]]\nupdates = ["classifier"]\n{said}\n'
    text = CLASSIFIER.replace('[system]\nkind = "classifier"\nlabel_smoothing = 0.1\n', composed)
    found = dtrain_here("check", written(tmp_path, "unfit.toml", text))
    assert "system.phases[0].losses.rise.schedule.warmup: found { epochs = 3 }, 9 steps, but" in found.errors
    text = text.replace("epochs = 3 }", "epochs = 1 }").replace("evaluate = 2", "evaluate = 0")
    found = dtrain_here("check", written(tmp_path, "fit.toml", text))
    assert (found.code, found.errors) == (0, "")
