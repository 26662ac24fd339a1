"""`dtrain verify`: each file, tensor and index that is not what its manifest and recipe say, by name."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Said, cut_off, only_run
from damaging import copied, reseal, whole

import dtrain
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.checkpoint.verify import verify
from dtrain.format.files import FORMATS, MANIFEST, RECIPE, STATE, index_name
from dtrain.format.hashes import holds_tensors
from dtrain.format.safetensors_header import read_header

Here = Callable[..., Said]


def found_in(dtrain_here: Here, path: Path) -> list[dict[str, Any]]:
    """What is said of each checkpoint, where something is wrong with one."""
    said = dtrain_here("verify", path, "--json")
    assert (said.code, said.errors) == (2, "")
    reports: list[dict[str, Any]] = json.loads(said.out)
    return reports


def flip(file: Path, place: int) -> None:
    """Another bit in one byte."""
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("form", FORMATS)
def test_a_whole_one_is_said_to_be_whole(form: int, dtrain_here: Here) -> None:
    said = dtrain_here("verify", whole(form))
    assert (said.code, said.errors, said.out.count("\n")) == (0, "", 1)
    files = len(list(whole(form).iterdir()))
    assert said.out.startswith(f"{whole(form)}  whole: {files} files, 41 tensors, "), said.out


def test_every_tensor_that_is_altered_is_named_with_its_file(
    gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    """Each tensor of a checkpoint of many files in its turn, and two at once."""
    run = cut_off(gan, tmp_path / "runs", 4, "checkpoint.shard_bytes=400")
    older, newest = checkpoints_in(run)[-2:]
    homes = [
        (file, each)
        for file in sorted(newest.iterdir())
        if holds_tensors(file.name)
        for each in read_header(file).values()
    ]
    assert len(homes) == 41
    for file, each in homes:
        for place in (each.start, each.start + each.size - 1):
            flip(file, place)
            (problem,) = verify(newest).problems
            assert (problem.file, problem.tensor) == (file.name, each.name)
            flip(file, place)
    for file, each in (homes[3], homes[30]):
        flip(file, each.start)
    reports = found_in(dtrain_here, run)
    by_path = {report["checkpoint"]: report for report in reports}
    assert by_path[str(older)]["whole"]
    named = {(problem["file"], problem["tensor"]) for problem in by_path[str(newest)]["problems"]}
    assert named == {(file.name, each.name) for file, each in (homes[3], homes[30])}
    said = dtrain_here("verify", run)
    assert f"{newest}  damaged (2 problems)" in said.out
    assert said.out.splitlines()[-1] == f"{len(reports) - 1} of {len(reports)} checkpoints are whole"


def test_all_that_is_wrong_is_said_at_once(kept: Path, dtrain_here: Here) -> None:
    models, optimizers = sorted(kept.glob("[mo]*-*.safetensors"))
    state = (kept / STATE).read_text()
    (kept / STATE).write_text(state.replace("4", "5", 1))
    with models.open("ab") as file:
        file.write(b"\0")
    flip(optimizers, 20)
    (kept / index_name("averages")).unlink()
    (kept / "notes.txt").write_text("mine")
    (report,) = found_in(dtrain_here, kept)
    assert {problem["file"] for problem in report["problems"]} == {
        *(STATE, models.name, optimizers.name, index_name("averages"))
    }
    assert report["remarks"] == [f"{kept / 'notes.txt'} is in no manifest"]


def test_a_recipe_that_is_not_this_checkpoints_is_found(kept: Path, dtrain_here: Here) -> None:
    """Its hash differs; with a manifest that fits it, the tensors it has otherwise are named."""
    recipe = kept / RECIPE
    text = recipe.read_text()
    shorter = text.replace("kernel = 4\nstride = 2\npadding = 1", "kernel = 2\nstride = 2\npadding = 0")
    recipe.write_text(shorter)
    (report,) = found_in(dtrain_here, kept)
    assert [problem["file"] for problem in report["problems"]][:1] == [RECIPE]
    reseal(kept)
    (report,) = found_in(dtrain_here, kept)
    parts = ("models", "averages", "optimizers", "optimizers")
    assert [problem["file"].partition("-")[0] for problem in report["problems"]] == [*parts]
    first = report["problems"][0]["message"]
    assert (
        "models do not fit the recipe: generator/4.weight is (2, 1, 4, 4), and the recipe's is (2, 1, 2, 2)"
        in first
    )
    recipe.write_text(text.replace('kind = "linear"', 'kind = "liner"', 1))
    reseal(kept)
    (report,) = found_in(dtrain_here, kept)
    (problem,) = report["problems"]
    assert problem["file"] == RECIPE
    assert "liner" in problem["message"]


def test_an_altered_byte_is_said_in_the_same_words_by_all(kept: Path, dtrain_here: Here) -> None:
    """Of a tensor, and of a file that is no tensor's."""
    (models,) = kept.glob("models-*.safetensors")
    for file, what in ((models, "generator/0.weight"), (kept / RECIPE, "it")):
        place = read_header(models)[what].start if file == models else 0
        words = f"{file} was altered: {what} differs from its hash in {MANIFEST}"
        flip(file, place)
        for use in (open_checkpoint, dtrain.load_models):
            with pytest.raises(dtrain.CheckpointError) as caught:
                use(kept)
            assert str(caught.value).startswith(words)
        assert [problem["message"] for problem in found_in(dtrain_here, kept)[0]["problems"]][:1] == [words]
        out = kept.parent / "out.safetensors"
        said = dtrain_here("convert", kept, out, "--model", "generator", "--no-averages")
        assert said.errors == f"dtrain: {words}\n"
        flip(file, place)


@pytest.mark.parametrize(
    ("old", "new", "misfits"),
    [
        ('"generator/0.bias"', '"generator/0.bi_s"', {"generator/0.bias", "generator/0.bi_s"}),
        ('"F32"', '"I32"', {"generator/0.bias"}),
        ('"shape":[32,4]', '"shape":[4,32]', {"generator/0.weight"}),
    ],
)
def test_tensors_that_others_sealed_must_be_the_recipes(
    kept: Path, dtrain_here: Here, old: str, new: str, misfits: set[str]
) -> None:
    """Of another name, type or shape: the manifest fits each, and the recipe none."""
    (file,) = kept.glob("averages-*")
    data = file.read_bytes()
    assert old.encode() in data
    file.write_bytes(data.replace(old.encode(), new.encode(), 1))
    reseal(kept)
    (report,) = found_in(dtrain_here, kept)
    said = [each for each in report["problems"] if "averages do not fit the recipe" in each["message"]]
    assert {each["tensor"] for each in said} == misfits


def test_it_imports_neither_torch_nor_what_the_recipe_names(kept: Path) -> None:
    code = (
        "import sys; from dtrain.cli.app import main; code = main(['verify', sys.argv[1]])\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, str(kept)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_path_that_is_no_checkpoint_is_said(tmp_path: Path, dtrain_here: Here) -> None:
    for path, words in ((tmp_path, "is neither a checkpoint nor a run"), (tmp_path / "x", "does not exist")):
        said = dtrain_here("verify", path)
        assert (said.code, said.errors.count("\n")) == (2, 1)
        assert f"{path} {words}" in said.errors


def test_of_a_folder_of_runs_each_is_verified(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    several = (("first", 1), ("first", 2), ("other", 1))
    runs = [cut_off(gan, tmp_path / "runs", 2, f"name={name}", f"seed={seed}") for name, seed in several]
    every = [str(path) for run in runs for path in checkpoints_in(run)]
    said = dtrain_here("verify", tmp_path / "runs")
    assert (said.code, [line.split()[0] for line in said.out.splitlines()[:-1]]) == (0, every)
    assert said.out.endswith(f"{len(every)} of {len(every)} checkpoints are whole\n")
    flip(next(checkpoints_in(runs[1])[0].glob("models-*")), -1)
    reports = found_in(dtrain_here, tmp_path / "runs" / "first")
    assert [report["whole"] for report in reports] == [True, False]


def test_a_checkpoint_without_a_manifest_is_not_whole(kept: Path, dtrain_here: Here) -> None:
    (kept / MANIFEST).unlink()
    (report,) = found_in(dtrain_here, kept)
    assert [problem["file"] for problem in report["problems"]] == [MANIFEST]


def test_run_and_load_models_check_every_hash_when_asked(
    gan: Path, tmp_path: Path, dtrain_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of what is too large to be checked each time."""
    monkeypatch.setattr("dtrain.format.checkpoints.QUICK", 0)
    checkpoint = copied(whole(FORMATS[-1]), tmp_path / "run")
    (file,) = checkpoint.glob("averages-*")
    flip(file, next(iter(read_header(file).values())).start)
    start = ("run", gan, "--resume", checkpoint, "--runs", tmp_path / "runs")
    assert dtrain_here(*start).code == 0  # not asked
    shutil.rmtree(tmp_path / "runs")
    said = dtrain_here(*start, "--verify")
    assert (said.code, said.errors.count("\n")) == (2, 1)
    assert f"{file} was altered: " in said.errors
    said = dtrain_here(*start, "checkpoint.verify=true")
    assert said.code == 2
    assert "was altered" in said.errors


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (
            ["optimizers.classifier.kind=sgd", "optimizers.classifier.momentum=0.9"],
            ["optimizers.classifier.momentum=0.0"],
        ),
        (
            ["optimizers.classifier.kind=rmsprop", "optimizers.classifier.centered=true"],
            ["optimizers.classifier.centered=false"],
        ),
    ],
)
def test_what_an_optimizer_kept_before_a_setting_was_changed_is_its_own(
    classifier: Path, tmp_path: Path, dtrain_here: Here, first: list[str], then: list[str]
) -> None:
    assert dtrain_here("run", classifier, *first, "--runs", tmp_path / "first").code == 0
    start = checkpoints_in(only_run(tmp_path / "first"))[0]
    said = dtrain_here("run", classifier, *first, *then, "--resume", start, "--runs", tmp_path / "then")
    assert said.code == 0, said.errors
    assert dtrain_here("verify", only_run(tmp_path / "then")).code == 0


def test_a_schedule_may_bring_momentum(classifier: Path, tmp_path: Path, dtrain_here: Here) -> None:
    schedule = '{kind="torch.optim.lr_scheduler:OneCycleLR", max_lr=0.1, total_steps=100}'
    own = ["optimizers.classifier.kind=sgd", f"optimizers.classifier.schedule={schedule}"]
    assert dtrain_here("run", classifier, *own, "--runs", tmp_path).code == 0
    run = only_run(tmp_path)
    assert dtrain_here("verify", run).code == 0
    assert dtrain.load_models(run).keys() == {"classifier"}


def test_more_problems_than_are_kept_are_said_to_be_more(kept: Path, dtrain_here: Here) -> None:
    listed = {f"missing-{number}": {"size": 1, "hash": ""} for number in range(10_500)}
    reseal(kept, lambda manifest: manifest["files"].update(listed))
    (report,) = found_in(dtrain_here, kept)
    assert len(report["problems"]) == 10_000
    assert "there may be more than these 10,000 problems" in report["remarks"]
