"""Numbers that are not finite: the run stops at the very step, or skips the update on every rank alike."""

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Said, cut_off, last_tensors, metrics_of, only_run, start_two

import dtrain
from dtrain.backends.torch_weights import tensors_of
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.data.order import Order
from dtrain.diverged import MOST_SKIPPED, turn_of
from dtrain.errors import DivergedError
from dtrain.events import Finished, Stepped
from dtrain.systems.base import Phase

pytestmark = pytest.mark.alone

Here = Callable[..., Said]
EXAMPLES, BATCH, MICRO, SEED = 120, 8, 2, 5
POISONED = 33  # the example that is not finite, in one way or another

RECIPE = """
name = "fragile"
seed = 5
[system]
kind = "fragile:Fragile"
trap = "loss"
[models.left]
input = [3]
layers = [
    { kind = "linear", out = 4, bias = false },
    { kind = "batch_norm" },
    { kind = "linear", out = 2 },
]
[optimizers.left]
kind = "adam"
lr = 1e-2
schedule = { kind = "cosine" }
[averages.left]
decay = 0.9
[data]
kind = "arrays"
path = "points.npz"
[train]
steps = 12
batch_size = 8
micro_batch_size = 2
[every]
log = 3
save = 1
[track]
kinds = ["jsonl"]
"""


def first_poisoned_update() -> int:
    """The first update of the trapped phase with the poisoned example: of three a step, not the first."""
    order = Order(EXAMPLES, BATCH, MICRO, SEED)
    return next(n for n in range(100) if n % 3 and POISONED in np.concatenate(indices(order, n)))


def indices(order: Order, update: int) -> list[np.ndarray]:
    return [micro.indices for micro in order.share(update, 0, 1)]


UPDATE = first_poisoned_update()
STEP = UPDATE // 3 + 1
PLACE = f"step {STEP}, phase left-2 (update {UPDATE % 3} of 2)"
TRAPPED = {
    "loss": f"{PLACE}: the loss that left should minimise is nan",
    "gradient": f"{PLACE}: the loss is finite, but the gradient",
}


@pytest.fixture
def fragile(tmp_path: Path, on_cpu: None) -> Path:
    """A recipe whose loss is not finite at one example, which comes after some good steps."""
    return written(tmp_path, poisoned=[POISONED])


def written(folder: Path, poisoned: list[int]) -> Path:
    poison = np.zeros(EXAMPLES, np.float32)
    poison[poisoned] = 1
    x = np.random.default_rng(0).standard_normal((EXAMPLES, 3)).astype(np.float32)
    np.savez(folder / "points.npz", x=x, poison=poison)
    (folder / "fragile.toml").write_text(RECIPE)
    return folder / "fragile.toml"


def error_of(recipe: Path, runs: Path, *overrides: str) -> DivergedError:
    run = dtrain.setup(dtrain.load(recipe, overrides), runs=runs)
    with run, pytest.raises(DivergedError) as caught:
        list(dtrain.train(run))
    return caught.value


def test_the_poisoned_example_comes_after_some_good_steps() -> None:
    assert 2 < STEP < 6
    assert STEP % 3


@pytest.mark.parametrize("trap", TRAPPED)
@pytest.mark.parametrize("log", [0, 1, 3])
def test_the_first_bad_step_is_named_however_seldom_it_is_looked(
    fragile: Path, tmp_path: Path, trap: str, log: int
) -> None:
    error = error_of(fragile, tmp_path, f'system.trap="{trap}"', f"every.log={log}", "every.save=0")
    assert str(error).startswith(TRAPPED[trap])
    assert error.checkpoint is None


def test_the_terms_of_a_loss_are_told_and_those_first_that_are_not_finite(
    fragile: Path, tmp_path: Path
) -> None:
    _, terms, *_ = str(error_of(fragile, tmp_path)).splitlines()
    assert terms.strip().startswith("its terms: spoilt nan, size 0.")


def test_a_gradient_names_the_model_and_its_parameters(fragile: Path, tmp_path: Path) -> None:
    head, parameters, *_ = str(error_of(fragile, tmp_path, 'system.trap="gradient"')).splitlines()
    assert "the gradient of model left is not" in head
    assert parameters.strip() == "parameters: 0.weight, 1.weight, 1.bias, 2.weight, and 1 more"


def test_weights_that_overflow_are_not_saved(fragile: Path, tmp_path: Path) -> None:
    points = np.load(tmp_path / "points.npz")
    np.savez(tmp_path / "points.npz", x=points["x"], poison=0 * points["poison"])
    optimizer = ['optimizers.left.kind="sgd"', "optimizers.left.lr=3e38", "optimizers.left.weight_decay=1e3"]
    error = error_of(fragile, tmp_path / "runs", *optimizer)
    assert str(error).startswith("step 1, phase left")
    assert checkpoints_in(only_run(tmp_path / "runs")) == []


def test_a_term_that_is_no_part_of_the_loss_may_be_infinite(fragile: Path, tmp_path: Path) -> None:
    with dtrain.setup(dtrain.load(fragile, ['system.trap="aside"']), runs=tmp_path) as run:
        assert list(dtrain.train(run))[-1] == Finished(12)


def test_the_last_good_checkpoint_stays_and_is_named(fragile: Path, tmp_path: Path) -> None:
    error = error_of(fragile, tmp_path / "runs", "checkpoint.keep=1", "every.log=0")
    found = checkpoints_in(only_run(tmp_path / "runs"))
    assert [path.name for path in found] == [f"step-{STEP - 1:08d}"]
    assert error.checkpoint == found[0]
    assert f"the last good checkpoint: {found[0]}" in str(error)


@pytest.mark.parametrize("save", [0, 2])
@pytest.mark.parametrize("trap", TRAPPED)
def test_the_printed_command_stops_again_at_the_same_step(
    fragile: Path, tmp_path: Path, dtrain_here: Here, trap: str, save: int
) -> None:
    given = [f'system.trap="{trap}"', f"every.save={save}", "every.log=0", "--runs", tmp_path / "runs"]
    first = dtrain_here("run", fragile, *given)
    assert first.code == 2
    assert first.errors.startswith(f"dtrain: {TRAPPED[trap]}")
    *said, command = first.errors.splitlines()
    program, *arguments = shlex.split(command.partition("to see it again: ")[2])
    assert program == "dtrain"
    second = dtrain_here(*arguments)
    assert second.code == 2
    assert second.errors.splitlines()[:2] == said[:2]
    assert f"step {STEP - 1:>2}/12" in second.out  # each step is told until then
    assert ("carrying on" in second.out) == (save > 0)


def test_two_processes_stop_alike_where_one_has_the_bad_example(
    fragile: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    alone = dtrain_here("run", fragile, "--runs", tmp_path / "alone")
    lives = start_two("run", fragile, "--runs", tmp_path / "runs", log=tmp_path / "log")
    assert [life.end() for life in lives] == [2, 2]
    first, *more = alone.errors.splitlines()[:2]
    assert lives[0].said.splitlines()[:2] == [
        first.replace("(micro-batch 3)", "(micro-batch 3, of rank 1)"),
        *more,
    ]
    assert lives[1].said == ""
    assert [path.name for path in checkpoints_in(only_run(tmp_path / "runs"))][-1] == f"step-{STEP - 1:08d}"


SKIP = 'train.on_nonfinite="skip"'


@pytest.mark.parametrize("trap", TRAPPED)
def test_a_skipped_update_moves_nothing(fragile: Path, tmp_path: Path, trap: str) -> None:
    recipe = dtrain.load(fragile, [SKIP, f'system.trap="{trap}"', "every.log=1"])
    with dtrain.setup(recipe, runs=tmp_path) as run:
        update, before, unmoved = run.engine.update, state_of(run), []

        def watched(*arguments):  # type: ignore[no-untyped-def]
            nonlocal before
            measured = update(*arguments)
            after = state_of(run)
            if after == before:
                unmoved.append(arguments[0].number)
            assert (measured.skipped is not None) == (after == before)
            before = after
            return measured

        run.engine.update = watched  # type: ignore[method-assign]
        events = list(dtrain.train(run))
    poisoned = [n for n in range(36) if n % 3 and POISONED in np.concatenate(indices(run.order, n))]
    assert unmoved == poisoned
    assert events[-1] == Finished(12, skipped=len(poisoned))
    counts = [event.metrics["skipped"] for event in events if isinstance(event, Stepped)]
    assert counts == [sum(n // 3 < step for n in poisoned) for step in range(1, 13)]


def state_of(run: dtrain.Run) -> dict[str, bytes]:
    return {f"{part}/{name}": tensor.numpy().tobytes() for part, name, tensor in run.engine.tensors()}


def test_two_processes_skip_alike_where_one_has_the_bad_example(
    fragile: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    command = ["run", fragile, SKIP, 'train.precision="fp64"', "every.log=1"]
    assert dtrain_here(*command, "--runs", tmp_path / "alone").code == 0
    lives = start_two(*command, "--runs", tmp_path / "runs", log=tmp_path / "log")
    assert [life.end() for life in lives] == [0, 0], lives[0].said
    both, alone = only_run(tmp_path / "runs"), only_run(tmp_path / "alone")
    first, second = (open_checkpoint(checkpoints_in(run)[-1]) for run in (both, alone))
    assert first.state["skipped"] == second.state["skipped"]
    assert first.state["skipped"][0] > 0
    for part in ("models", "optimizers", "averages"):
        theirs = tensors_of(second, part)
        for name, tensor in tensors_of(first, part).items():
            assert np.abs((tensor - theirs[name]).numpy()).max() < 4e-12, name


def test_a_resumed_run_has_skipped_as_many_updates(fragile: Path, tmp_path: Path, dtrain_here: Here) -> None:
    command = ["run", fragile, SKIP, 'track.kinds=["console", "jsonl"]']
    assert dtrain_here(*command, "--runs", tmp_path / "alone").code == 0
    cut_off(fragile, tmp_path / "runs", STEP, *command[2:])
    resumed = dtrain_here(*command, "--runs", tmp_path / "runs")
    assert "carrying on" in resumed.out
    run, alone = only_run(tmp_path / "runs"), only_run(tmp_path / "alone")
    assert last_tensors(run) == last_tensors(alone)
    assert metrics_of(run)[-1][1]["skipped"] == metrics_of(alone)[-1][1]["skipped"]
    states = [open_checkpoint(checkpoints_in(each)[-1]).state for each in (run, alone)]
    assert states[0] == states[1]
    total = states[0]["skipped"][0]
    assert f"{total} updates skipped, as their numbers were not finite" in resumed.out


def test_a_run_that_skips_all_updates_stops_in_the_end(tmp_path: Path, on_cpu: None) -> None:
    recipe = written(tmp_path, poisoned=list(range(EXAMPLES)))
    error = error_of(recipe, tmp_path / "runs", SKIP, "train.steps=200", "system.begins_well=false")
    assert str(error).startswith(f"step {MOST_SKIPPED // 2}, phase left (update 2 of 2): the loss")
    assert "so it was in the 99 updates before, and all were skipped" in str(error)


def test_the_turn_of_an_update_is_where_counting_them_out_ends() -> None:
    def loss(models, batch, ops):  # type: ignore[no-untyped-def]
        raise AssertionError

    phases = (
        Phase(("a",), loss, repeat=2),
        Phase(("b",), loss, every=3),
        Phase(("a",), loss, every=2, repeat=3),
    )
    labels = ("a", "b", "a-2")
    counted = [
        (step + 1, label, repeat + 1)
        for step in range(20)
        for label, phase in zip(labels, phases, strict=True)
        for repeat in range(0 if step % phase.every else phase.repeat)
    ]
    turns = [turn_of(phases, update) for update in range(len(counted))]
    assert [(turn.step, turn.label, turn.repeat) for turn in turns] == counted
