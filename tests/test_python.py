"""dtrain as a Python library: load, setup, train, watch, load_models."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import cut_off, last_tensors, metrics_of

import dtrain
from dtrain.checkpoint.read import open_checkpoint
from dtrain.events import Evaluated, Finished, Sampled, Saved, Started, Stepped
from dtrain.format.locks import try_lock


def test_a_run_is_a_loop_over_events_and_leaves_models(gan: Path, tmp_path: Path) -> None:
    recipe = dtrain.load(gan, ["train.steps=4"])
    with dtrain.setup(recipe, runs=tmp_path / "runs") as run:
        events = list(dtrain.train(run))
    assert events[-1] == Finished(4)
    models = dtrain.load_models(run.folder / "checkpoints" / "step-00000004")
    assert models["discriminator"](models["generator"](torch.randn(3, 4))).shape == (3, 1)
    assert not (run.folder / "metrics.jsonl").exists()  # nobody watched


def test_events_come_in_the_order_in_which_things_happen(gan: Path, tmp_path: Path) -> None:
    recipe = dtrain.load(gan, ["train.steps=5", "every.log=2", "every.sample=4"])
    seen = []
    with dtrain.setup(recipe, runs=tmp_path) as run:
        for event in dtrain.train(run):
            seen.append((type(event), event.step))
            match event:
                case Started():
                    assert (event.total, event.batch_size) == (5, 8)
                case Stepped():
                    assert bool(event.metrics) == (event.step in (2, 4, 5))
                case Evaluated():
                    assert event.metrics.keys() == {f"evaluate/{term}" for term in ("loss", "real", "fake")}
                case Sampled():
                    assert all(path.is_file() for path in event.pictures.values())
                case Saved():
                    assert open_checkpoint(event.path).step == event.step
                case Finished():
                    assert run.step == event.step
    # When a checkpoint is whole depends on the disk; it is before the next one, and before the end.
    assert [each for each in seen if each[0] is not Saved] == [
        (Started, 0),
        (Stepped, 1),
        (Stepped, 2),
        *((Stepped, 3), (Evaluated, 3)),
        *((Stepped, 4), (Sampled, 4)),
        *((Stepped, 5), (Evaluated, 5), (Sampled, 5)),
        (Finished, 5),
    ]
    reached = [max(step for _, step in seen[:place]) for place, (kind, _) in enumerate(seen) if kind is Saved]
    saves = list(zip([step for kind, step in seen if kind is Saved], reached, strict=True))
    assert [step for step, _ in saves] == [2, 3, 4, 5]  # the first evaluation, at 3, is the best so far
    assert all(step <= after <= then for (step, after), then in zip(saves, (3, 4, 5, 5), strict=True))
    assert seen[-1] == (Finished, 5)


def test_a_step_names_losses_norms_and_rates_of_every_model(gan: Path, tmp_path: Path) -> None:
    recipe = dtrain.load(gan, ["train.steps=1", "optimizers.*.schedule.warmup=0"])
    with dtrain.setup(recipe, runs=tmp_path) as run:
        (stepped,) = [event for event in dtrain.train(run) if isinstance(event, Stepped)]
    of_both = {f"{name}/{term}" for name in recipe.models for term in ("loss", "grad_norm", "lr")}
    critic = {"discriminator/real", "discriminator/fake"}
    assert stepped.metrics.keys() == of_both | critic | {"examples_per_second"}
    assert stepped.metrics["generator/lr"] == 2e-3


def test_watching_or_not_changes_nothing_that_is_learned(gan: Path, tmp_path: Path) -> None:
    recipe = dtrain.load(gan, ["train.steps=4"])
    ends = []
    for watched in (True, False):
        with dtrain.setup(recipe, runs=tmp_path / str(watched)) as run:
            if watched:
                with dtrain.watch(run) as observe:
                    for event in dtrain.train(run):
                        observe(event)
                assert [step for step, values in metrics_of(run.folder) if "generator/loss" in values] == [
                    1,
                    2,
                    3,
                    4,
                ]
            else:
                for _ in dtrain.train(run):
                    torch.rand(3)  # nor does a caller's own randomness
            ends.append(last_tensors(run.folder))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("how", ["break", "raise"])
def test_breaking_off_and_closing_leaves_a_run_that_carries_on(gan: Path, tmp_path: Path, how: str) -> None:
    with dtrain.setup(dtrain.load(gan), runs=tmp_path / "alone") as whole:
        for _ in dtrain.train(whole):
            pass
    if how == "break":
        folder = cut_off(gan, tmp_path / "runs", 4)
    else:
        with (
            suppress(ZeroDivisionError),
            dtrain.setup(dtrain.load(gan), runs=tmp_path / "runs") as run,
        ):
            folder = run.folder
            for event in dtrain.train(run):
                assert try_lock(folder) is None
                if isinstance(event, Saved) and event.step == 4:
                    raise ZeroDivisionError
    held = try_lock(folder)
    assert held is not None
    held.close()
    with dtrain.setup(dtrain.load(gan), runs=tmp_path / "runs") as again:
        assert (again.folder, again.step) == (folder, 4)
        for _ in dtrain.train(again):
            pass
    assert last_tensors(folder) == last_tensors(whole.folder)


def test_two_loops_over_one_run_go_on_where_the_first_left_off(gan: Path, tmp_path: Path) -> None:
    with dtrain.setup(dtrain.load(gan), runs=tmp_path / "alone") as whole:
        list(dtrain.train(whole))
    with dtrain.setup(dtrain.load(gan), runs=tmp_path / "runs") as run:
        for event in dtrain.train(run):
            if isinstance(event, Stepped) and event.step == 3:
                break
        assert next(iter(dtrain.train(run))) == Started(3, 8, 8)
        list(dtrain.train(run))
        assert list(dtrain.train(run)) == [Started(8, 8, 8), Finished(8)]
    assert last_tensors(run.folder) == last_tensors(whole.folder)


def test_two_runs_in_one_process_do_not_disturb_each_other(
    gan: Path, classifier: Path, tmp_path: Path
) -> None:
    alone, together = {}, {}
    for path in (gan, classifier):
        with dtrain.setup(dtrain.load(path), runs=tmp_path / "alone") as run:
            list(dtrain.train(run))
        alone[run.recipe.name] = last_tensors(run.folder)
    with (
        dtrain.setup(dtrain.load(gan), runs=tmp_path / "together") as first,
        dtrain.setup(dtrain.load(classifier), runs=tmp_path / "together") as second,
    ):
        loops = [dtrain.train(first), dtrain.train(second)]
        while loops:  # an event of each in turn
            loops = [loop for loop in loops if next(loop, None) is not None]
    for run in (first, second):
        together[run.recipe.name] = last_tensors(run.folder)
    assert alone == together


def test_errors_of_the_library_are_dtrain_errors(gan: Path, tmp_path: Path) -> None:
    with pytest.raises(dtrain.RecipeErrors, match="seed: found -1"):
        dtrain.load(gan, ["seed=-1"])
    with pytest.raises(dtrain.DataError, match="does not exist"):
        dtrain.setup(dtrain.load(gan, ["data.path=gone.npz"]), runs=tmp_path)
    with pytest.raises(dtrain.CheckpointError, match="nowhere does not exist"):
        dtrain.load_models(tmp_path / "nowhere")
    for name in dtrain.__all__:
        if name.endswith(("Error", "Errors")):
            assert issubclass(getattr(dtrain, name), dtrain.DtrainError)
    assert not list(tmp_path.glob("tiny-gan/*"))  # nothing was begun
