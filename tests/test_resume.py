"""A run that was cut off goes on by itself and ends with the bits of one left alone; which run goes on."""

import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    Said,
    cut_off,
    last_tensors,
    metrics_of,
    only_run,
    start_two,
    tensors_of,
    written,
)
from test_data_identity import PICTURE, bytes_read, recipe_on

import dtrain
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.errors import CheckpointError
from dtrain.events import Started
from dtrain.format.locks import lock, remove_unused, try_lock

pytestmark = pytest.mark.alone

Here = Callable[..., Said]


def restore_and_go_on(arguments: list[str]) -> int:
    """Resume a run on every rank; 0 if what was restored has the checkpoint's bits and the run then ends."""
    recipe, run = map(Path, arguments)
    with dtrain.setup(dtrain.load(recipe), resume=run) as ready:
        own = {
            f"{part}/{name}": (str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes())
            for part, name, tensor in ready.engine.tensors()
        }
        assert ready.place.checkpoint is not None
        same = own == tensors_of(ready.place.checkpoint)
        for _ in dtrain.train(ready):
            pass
    return 0 if same and ready.step == ready.total else 1


def test_a_run_goes_on_on_another_number_of_processes_from_the_same_bits(gan: Path, tmp_path: Path) -> None:
    run = cut_off(gan, tmp_path / "runs", 4)
    lives = start_two(gan, run, log=tmp_path / "log", action=restore_and_go_on)
    assert [life.end() for life in lives] == [0, 0], [life.said for life in lives]
    saved_by_two = checkpoints_in(run)[-1]
    assert open_checkpoint(saved_by_two).manifest["environment"]["world"] == 2
    assert len(list(saved_by_two.glob("models-*-of-00002.safetensors"))) == 2
    # The reverse: what two saved, one takes up; a longer recipe makes it a run of its own.
    longer = gan.with_name("longer.toml")
    longer.write_text(gan.read_text().replace("steps = 8", "steps = 10"))
    assert restore_and_go_on([str(longer), str(run)]) == 0


def set_up_and_count(arguments: list[str]) -> int:
    """Make a run ready, and say how many bytes of files this rank read for it."""
    before = bytes_read()
    with dtrain.setup(dtrain.load(Path(arguments[0])), runs=arguments[1]):
        print("read", bytes_read() - before)
    return 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what was read")
def test_one_rank_alone_reads_the_data_for_its_fingerprint_and_reads_it_once(tmp_path: Path) -> None:
    recipe = recipe_on("images", tmp_path)
    large = 1 << 26  # bytes, after the end of a picture, where no decoder looks
    os.truncate(tmp_path / "data" / PICTURE, large)
    lives = start_two(recipe, tmp_path / "runs", log=tmp_path / "log", action=set_up_and_count)
    assert [life.end() for life in lives] == [0, 0], [life.said for life in lives]
    first, second = (int(life.said.split()[-1]) for life in lives)
    assert 0 < second < large / 2 < large <= first < 1.5 * large


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16", "fp16"])
def test_every_precision_resumes_with_the_same_bits(
    classifier: Path, tmp_path: Path, dtrain_here: Here, precision: str
) -> None:
    command = ["run", classifier, f'train.precision="{precision}"', 'optimizers.classifier.kind="sgd"']
    command += ["optimizers.classifier.momentum=0.9"]
    assert dtrain_here(*command, "--runs", tmp_path / "alone").code == 0
    cut_off(classifier, tmp_path / "runs", 4, *map(str, command[2:]))  # 3 steps are an epoch
    assert "carrying on" in dtrain_here(*command, "--runs", tmp_path / "runs").out
    run, alone = only_run(tmp_path / "runs"), only_run(tmp_path / "alone")
    assert last_tensors(run) == last_tensors(alone)
    scales = open_checkpoint(checkpoints_in(run)[-1]).state["loss_scales"]
    assert scales == open_checkpoint(checkpoints_in(alone)[-1]).state["loss_scales"]
    assert set(scales) == ({"classifier"} if precision == "fp16" else set())


def started(recipe: Path, runs: Path, *overrides: str, **options: Path | bool) -> tuple[Path, int]:
    """The folder of the run that is chosen, and the step from which it starts; it goes no further."""
    with dtrain.setup(dtrain.load(recipe, overrides), runs=runs, **options) as run:
        event = next(iter(dtrain.train(run)))
    assert isinstance(event, Started)
    return run.folder, event.step


def test_the_newest_run_of_the_recipe_that_was_cut_off_goes_on(gan: Path, tmp_path: Path) -> None:
    run = cut_off(gan, tmp_path, 4)
    assert started(gan, tmp_path) == (run, 4)
    (gan.parent / "moved.toml").write_text(gan.read_text() + "\n# the same but for a comment\n")
    assert started(gan.parent / "moved.toml", tmp_path) == (run, 4)


def test_a_run_cut_off_before_its_first_checkpoint_begins_again_in_its_folder(
    gan: Path, tmp_path: Path
) -> None:
    run, step = started(gan, tmp_path)
    assert step == 0
    assert started(gan, tmp_path) == (run, 0)


def test_what_a_cut_off_life_had_begun_to_write_is_cleared(gan: Path, tmp_path: Path) -> None:
    run = cut_off(gan, tmp_path, 2)
    partial = run / ".partial" / "step-00000004"
    partial.mkdir(parents=True)
    (partial / "models-00001-of-00001.safetensors").write_bytes(b"half of")
    assert started(gan, tmp_path) == (run, 2)
    assert not partial.exists()


def test_another_run_begins_where_none_is_to_be_carried_on(
    gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    cut = cut_off(gan, tmp_path / "cut", 4)
    cases = {
        "--fresh": lambda: started(gan, tmp_path / "cut", fresh=True),
        "another folder of runs": lambda: started(gan, tmp_path / "elsewhere"),
        "a changed recipe": lambda: started(gan, tmp_path / "cut", "optimizers.generator.lr=1e-4"),
        "another name": lambda: started(gan, tmp_path / "cut", 'name="other"'),
    }
    for case, begin in cases.items():
        folder, step = begin()
        assert (folder != cut, step) == (True, 0), case
    assert dtrain_here("run", gan, "--runs", tmp_path / "done").code == 0
    finished = only_run(tmp_path / "done")
    folder, step = started(gan, tmp_path / "done")
    assert (folder != finished, step) == (True, 0)


def test_a_run_that_is_passed_over_as_its_recipe_is_another_is_named(
    gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    """Where it was cut off, and nobody asked to begin anew."""
    cut, runs = cut_off(gan, tmp_path / "runs", 4), tmp_path / "runs"
    words = f"beginning anew: {cut} was cut off at step 4, and differs in "
    said = dtrain_here("run", gan, "hyperparameters.lr=1e-4", "--runs", runs)
    assert said.out.startswith(words + "optimizers.generator.lr\n"), said.out
    assert "beginning anew" not in dtrain_here("run", gan, "seed=4", "--runs", runs).out  # that one has ended
    cut = cut_off(
        gan,
        runs,
        2,
        "seed=5",
    )
    assert "beginning anew" not in dtrain_here("run", gan, "seed=6", "--fresh", "--runs", runs).out
    assert "beginning anew" not in dtrain_here("run", gan, "seed=7", "--resume", cut, "--runs", runs).out


def test_a_run_that_is_worked_on_is_left_alone(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    run = cut_off(gan, tmp_path, 4)
    with lock(run):
        folder, step = started(gan, tmp_path)
        assert (folder != run, step) == (True, 0)
        said = dtrain_here("run", gan, "--runs", tmp_path, "--resume", run)
        assert (said.code, said.errors) == (2, f"dtrain: {run} is being worked on by another process\n")
        with pytest.raises(CheckpointError, match="is being worked on by another process"):
            lock(run)
    assert started(gan, tmp_path, resume=run) == (run, 4)


def test_resume_names_a_run_or_a_checkpoint(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    run = cut_off(gan, tmp_path / "first", 4)
    early, best, late = checkpoints_in(run)
    assert started(gan, tmp_path / "runs", resume=late) == (run, 4)
    assert started(gan, tmp_path / "runs", resume=run) == (run, 4)
    branch, step = started(gan, tmp_path / "runs", resume=early)  # what came after it stays as it is
    assert (branch.parent, step) == (tmp_path / "runs" / "tiny-gan", 2)
    assert checkpoints_in(run) == [early, best, late]
    longer, step = started(gan, tmp_path / "longer", "train.steps=12", resume=run)
    assert (longer != run, step) == (True, 4)

    assert dtrain_here("run", gan, "--runs", tmp_path / "alone").code == 0
    assert dtrain_here("run", gan, "--runs", tmp_path / "branch", "--resume", early).code == 0
    ends = [last_tensors(only_run(tmp_path / runs)) for runs in ("alone", "branch")]
    assert ends[0] == ends[1]
    nowhere = dtrain_here("run", gan, "--resume", tmp_path / "nowhere")
    assert nowhere.code == 2
    way = "a checkpoint, a run, or runs/NAME would do"
    assert nowhere.errors == f"dtrain: {tmp_path / 'nowhere'} does not exist; {way}\n"


def test_a_run_that_began_from_another_begins_there_again_if_it_was_cut_off_before_it_saved(
    gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    """And ends with the bits of one that was left alone."""
    first, longer, runs = cut_off(gan, tmp_path / "first", 4), "train.steps=10", tmp_path / "runs"
    branch, _ = started(gan, runs, longer, resume=first)
    assert started(gan, runs, longer) == (branch, 4)
    said = dtrain_here("run", gan, longer, "--runs", runs)
    assert said.code == 0, said.errors
    assert said.out.startswith(f"carrying on from {checkpoints_in(first)[-1]}\n")
    alone = dtrain_here("run", gan, longer, "--runs", tmp_path / "alone", "--resume", first)
    assert alone.code == 0
    assert last_tensors(branch) == last_tensors(only_run(tmp_path / "alone"))
    origins = [open_checkpoint(path).manifest["origin"] for path in checkpoints_in(branch)]
    assert {origin["path"] for origin in origins} == {str(checkpoints_in(first)[-1])}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (shutil.rmtree, "which cannot be begun from again: {} is not a checkpoint: it has no manifest.json"),
        (lambda path: shutil.copytree(path.with_name("step-00000002"), path, dirs_exist_ok=True), "{}"),
    ],
    ids=["gone", "another"],
)
def test_a_run_whose_origin_is_not_there_any_more_says_so(
    gan: Path, tmp_path: Path, dtrain_here: Here, spoil: Callable[[Path], object], words: str
) -> None:
    first, runs = cut_off(gan, tmp_path / "first", 4), tmp_path / "runs"
    branch, _ = started(gan, runs, "train.steps=10", resume=first)
    spoil(origin := checkpoints_in(first)[-1])
    said = dtrain_here("run", gan, "train.steps=10", "--runs", runs)
    assert (said.code, said.errors.count("\n")) == (2, 1)
    assert said.errors.startswith(f"dtrain: {branch} was begun from {origin}, which "), said.errors
    assert words.format(origin) in said.errors
    assert said.errors.endswith("; --fresh begins anew, --resume from another one\n")
    assert [run.name for run in runs.glob("*/*/")] == [branch.name]
    folder, step = started(gan, runs, "train.steps=10", fresh=True)
    assert (folder != branch, step) == (True, 0)


def test_a_run_that_is_refused_leaves_no_folder(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    """Neither here nor where it was to be copied; the run that it was to begin from stays."""
    first, copies = cut_off(gan, tmp_path / "first", 4), tmp_path / "disk"
    wider = gan.read_text().replace("out = 4, kernel = 3", "out = 5, kernel = 3")
    (gan.parent / "wider.toml").write_text(wider)
    other = written(gan.parent / "other", "other.toml", wider.replace("out = 5", "out = 4"))
    pictures = np.load(other.parent / "pictures.npz")
    np.savez(other.parent / "pictures.npz", **{name: 255 - pictures[name] for name in pictures})
    cases = {
        gan.parent / "wider.toml": "discriminator/0.weight",
        other: "was trained on other data",
    }
    for recipe, words in cases.items():
        for own in ((), (f"checkpoint.path={copies}",)):
            command = ["run", recipe, *own, "--runs", tmp_path / "runs", "--resume", first]
            said = dtrain_here(*command)
            assert (said.code, words in said.errors) == (2, True), said.errors
            assert list((tmp_path / "runs" / "tiny-gan").iterdir()) == []
    assert list((copies / "tiny-gan").iterdir()) == []
    assert started(gan, tmp_path / "first") == (first, 4)


def test_nobody_gets_a_run_that_is_removed_as_it_was_refused(tmp_path: Path) -> None:
    """Not even who has opened its lock before, and waits for it."""
    run, is_looking, looks, got = tmp_path / "0", True, 0, 0

    def look() -> None:
        nonlocal looks, got
        while is_looking:
            looks += 1
            if (held := try_lock(run)) is not None:
                got += 1
                held.close()

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(300):
            (hidden := tmp_path / ".hidden").mkdir()
            with lock(hidden):
                run = hidden.rename(tmp_path / str(number))
                remove_unused(run)
    finally:
        is_looking = False
        for thread in threads:
            thread.join()
    assert (looks > 300, got) == (True, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_which_something_is_is_not_removed(tmp_path: Path) -> None:
    with lock(tmp_path):
        (tmp_path / "recipe.toml").touch()
        (tmp_path / "record.jsonl").touch()
        remove_unused(tmp_path, ["recipe.toml"])
    assert (tmp_path / "record.jsonl").exists()


def test_once_begins_no_other_run_where_one_has_finished(
    gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    command = ["run", gan, "train.steps=4", "--once", "--runs", tmp_path / "runs"]
    assert dtrain_here(*command).code == 0
    before = last_tensors(only_run(tmp_path / "runs"))
    again = dtrain_here(*command)
    assert again.code == 0, again.errors
    assert again.out.startswith("carrying on from")
    assert last_tensors(only_run(tmp_path / "runs")) == before
    assert dtrain_here(*command, "--fresh").code == 2


def test_a_finished_run_resumed_by_name_ends_at_once(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    assert dtrain_here("run", gan, "train.steps=4", "--runs", tmp_path).code == 0
    run = only_run(tmp_path)
    before = last_tensors(run), metrics_of(run)
    said = dtrain_here("run", gan, "train.steps=4", "--runs", tmp_path, "--resume", run)
    assert said.code == 0
    assert (last_tensors(only_run(tmp_path)), metrics_of(run)) == before


def test_once_finds_a_run_that_has_finished_in_a_relative_folder(
    gan: Path, tmp_path: Path, dtrain_here: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        said = dtrain_here("run", gan, "--once", "--runs", "runs")
        assert said.code == 0, said.errors
    assert len(list((tmp_path / "runs").glob("*/*"))) == 1


def test_a_damaged_checkpoint_is_said_with_a_way_out(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    """And the way out leads to the same run; where nothing is damaged no such way is shown."""
    run = cut_off(gan, tmp_path / "runs", 6)
    older, newest = checkpoints_in(run)[-2:]
    said = dtrain_here("run", gan, "train.steps=5", "--resume", newest, "--runs", tmp_path / "other")
    assert said.code == 2
    assert said.errors.endswith("it has done 6 steps, and the recipe asks for 5\n"), said.errors
    file = next(newest.glob("models-*"))
    file.write_bytes(file.read_bytes()[:-1])
    said = dtrain_here("run", gan, "--runs", tmp_path / "runs")
    assert (said.code, said.errors.count("\n")) == (2, 1)
    way = f"{older} is whole: once {newest} is deleted the run is carried on from there"
    assert said.errors.endswith(f"; {way}\n"), said.errors
    shutil.rmtree(newest)
    assert dtrain_here("run", gan, "--runs", tmp_path / "runs").code == 0
    assert only_run(tmp_path / "runs") == run
    assert dtrain_here("run", gan, "--runs", tmp_path / "alone").code == 0
    assert last_tensors(run) == last_tensors(only_run(tmp_path / "alone"))
