"""`dtrain.load_run`: what a run left behind, without torch."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from conftest import Said, cut_off, metrics_of, only_run

import dtrain
from dtrain.checkpoint.read import checkpoints_in, step_of

Here = Callable[..., Said]


@pytest.fixture
def run(gan: Path, tmp_path: Path, dtrain_here: Here) -> Path:
    """A finished run that was logged and drawn from."""
    assert dtrain_here("run", gan, "--runs", tmp_path / "runs", "every.sample=4").code == 0
    return only_run(tmp_path / "runs")


def test_a_run_is_read_whole(gan: Path, run: Path) -> None:
    found = dtrain.load_run(run)
    assert (found.path, found.name, found.id) == (run, "tiny-gan", run.name)
    assert (found.state, found.step, found.total) == ("finished", 8, 8)
    assert found.recipe == dtrain.load(gan, ["every.sample=4"])
    told = [(step, values) for step, values in metrics_of(run) if "generator" not in values]
    assert [(step, {**values, "examples_per_second": 0}) for step, values in found.metrics] == [
        (step, {**values, "examples_per_second": 0}) for step, values in told
    ]
    assert {step: set(files) for step, files in found.samples.items()} == {4: {"generator"}, 8: {"generator"}}
    assert all(path.is_file() for files in found.samples.values() for path in files.values())
    assert found.checkpoints == {step_of(path): path for path in checkpoints_in(run)}


def test_a_metric_is_its_steps_and_its_values(run: Path) -> None:
    steps, values = dtrain.load_run(run).metric("generator/loss")
    assert steps == tuple(range(1, 9))
    assert values == tuple(each["generator/loss"] for _, each in metrics_of(run) if "generator/loss" in each)
    steps, values = dtrain.load_run(run).metric("evaluate/loss")
    assert steps == (3, 6, 8)
    with pytest.raises(
        dtrain.CheckpointError, match='has no metric "evaluate/los"; did you mean "evaluate/loss"'
    ):
        dtrain.load_run(run).metric("evaluate/los")


def test_a_name_means_its_newest_run(gan: Path, tmp_path: Path) -> None:
    first, second = (cut_off(gan, tmp_path / "runs", step, f"seed={step}") for step in (2, 4))
    found = dtrain.load_run(tmp_path / "runs" / "tiny-gan")
    assert (found.path, found.state, found.step) == (second, "cut off", 4)
    assert dtrain.load_run(first).step == 2
    assert found.metrics == ()  # nobody watched


@pytest.mark.parametrize(
    ("place", "message"),
    [("nowhere", "does not exist; runs/NAME would do"), ("", "is no run; runs/NAME would do")],
)
def test_what_is_no_run_is_said(tmp_path: Path, place: str, message: str) -> None:
    with pytest.raises(dtrain.CheckpointError, match=message):
        dtrain.load_run(tmp_path / place)


def test_a_checkpoint_names_its_run(run: Path) -> None:
    with pytest.raises(dtrain.CheckpointError, match=f"is a checkpoint; its run would do: {run}$"):
        dtrain.load_run(checkpoints_in(run)[-1])


def test_a_sample_outside_of_the_run_is_none_of_its_own(run: Path, tmp_path: Path) -> None:
    (tmp_path / "other.png").touch()
    with (run / "metrics.jsonl").open("a") as file:
        for path in ("../../../other.png", str(tmp_path / "other.png"), "samples/gone.png"):
            file.write(json.dumps({"step": 9, "generator": path}) + "\n")
    assert dtrain.load_run(run).samples.keys() == {4, 8}


def test_numbers_that_are_not_finite_are_numbers(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 1, "x/loss": "NaN"}\n{"step": 2, "x/loss": "-Infinity"}\n')
    steps, values = dtrain.load_run(run).metric("x/loss")
    assert (steps, repr(values)) == ((1, 2), "(nan, -inf)")


def test_a_record_cannot_be_changed(run: Path) -> None:
    found = dtrain.load_run(run)
    with pytest.raises(FrozenInstanceError):
        found.step = 9  # type: ignore[misc]
    with pytest.raises(TypeError):
        found.checkpoints[9] = run  # type: ignore[index]


def test_the_documentation_has_every_field() -> None:
    text = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text()
    rows = text.partition("## dtrain.load_run")[2].partition("\n## ")[0]
    said = re.findall(r"`(\w+)", "".join(re.findall(r"^\|(.*?)\|", rows, re.MULTILINE)))
    assert set(said) == {*(field.name for field in fields(dtrain.RunRecord)), "metric"}


def test_it_needs_neither_torch_nor_numpy(run: Path) -> None:
    code = (
        f"import dtrain, sys; dtrain.load_run({str(run)!r}); print({{'torch', 'numpy'}} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"
