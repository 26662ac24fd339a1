"""dtrain sweep on real processes: killed at any moment, with trials that fail, side by side, alone.

DTRAIN_TEST_LONG=1: twelve trials and five kills, as often as that takes to meet every moment.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import CLASSIFIER, tensors_of, written
from launching import ROOT

from dtrain.checkpoint.read import checkpoints_in, step_of
from dtrain.format.metrics import read_metrics
from dtrain.format.runs import standing
from dtrain.track.transaction_log import read_records

pytestmark = pytest.mark.alone

IS_LONG = "DTRAIN_TEST_LONG" in os.environ
TRIALS, KILLS, ROUNDS = (12, 5, 4) if IS_LONG else (6, 4, 1)
EVERY = 20  # steps between two checkpoints
STEPS = 240
RECIPE = (
    CLASSIFIER.replace("epochs = 2", f"steps = {STEPS}")
    .replace("save = 2", f"save = {EVERY}")
    .replace("evaluate = 2", f"evaluate = {EVERY}")
    .replace('kinds = ["jsonl"]', 'kinds = ["console", "jsonl"]')
)
GRID = '\n[sweep]\nsampler = "grid"\nmetric = "evaluate/loss"\n[sweep.axes]\n'


def swept(folder: Path, sweep: str, recipe: str = RECIPE) -> Path:
    return written(folder, "swept.toml", recipe + sweep)


def start(*arguments: str | Path, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """A command of dtrain in a process of its own."""
    own = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "dtrain", *map(str, arguments)],
            env=own | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def sweep(recipe: Path, runs: Path, *more: str | Path, code: int = 0, **environment: str) -> str:
    """Carry out a sweep; what it said."""
    log = runs.with_suffix(".log")
    log.unlink(missing_ok=True)
    process = start("sweep", recipe, "--runs", runs, *more, log=log, **environment)
    assert process.wait(300) == code, log.read_text()
    return log.read_text()


def table(runs: Path, name: str = "tiny-classifier") -> list[dict[str, Any]]:
    """The trials as they are told of; of their runs, whose names are times, how many they are."""
    trials = json.loads((runs / "sweeps" / name / "trials.json").read_text())["trials"]
    return [{**each, "runs": len(each["runs"])} for each in trials]


def runs_in(runs: Path, name: str = "tiny-classifier") -> list[Path]:
    return sorted(path for path in (runs / name).iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_sweep_killed_at_random_trains_each_trial_once(tmp_path: Path, number: int) -> None:
    chance = random.Random(number)
    rates = ", ".join(f"{10 ** (-3.5 + 2 * n / TRIALS):.3g}" for n in range(TRIALS))
    recipe = swept(tmp_path, f'{GRID}"optimizers.*.lr" = [{rates}]')
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    sweep(recipe, alone, "--parallel", "2")
    for _ in range(KILLS):
        process = start("sweep", recipe, "--runs", killed, "--parallel", "2", log=tmp_path / "killed.log")
        time.sleep(chance.uniform(2, 9))
        process.kill()
        process.wait()
    said = sweep(recipe, killed, "--parallel", "2")
    assert table(killed) == table(alone), said
    assert len(runs_in(killed)) == TRIALS
    logs = sorted((killed / "sweeps/tiny-classifier/trials").glob("*.log"))
    assert len(logs) == TRIALS
    for log in logs:
        assert_each_step_once(log.read_text())
    for one, other in zip(by_recipe(killed), by_recipe(alone), strict=True):
        assert list(read_metrics(one / "metrics.jsonl"))[-1][1].keys() == {
            "evaluate/accuracy",
            "evaluate/loss",
        }
        assert tensors_of(checkpoints_in(one)[-1]) == tensors_of(checkpoints_in(other)[-1])


def by_recipe(runs: Path) -> list[Path]:
    return sorted(runs_in(runs), key=lambda run: (run / "recipe.toml").read_text())


def assert_each_step_once(log: str) -> None:
    """No life goes back behind the last checkpoint that was whole, and none begins from the start again."""
    saved = done = 0
    for line in log.splitlines():
        if found := re.search(r"carrying on from .*step-(\d+)", line):
            assert int(found[1]) >= saved, log
            assert done - int(found[1]) <= 2 * EVERY, log
        elif found := re.search(r"step +0/\d+ .* to go", line):
            assert not saved, log
        elif found := re.search(r"saved checkpoints/step-(\d+)", line):
            saved = int(found[1])
        elif found := re.match(r"step +(\d+)/", line):
            done = max(done, int(found[1]))
    assert done == STEPS


def test_a_trial_that_fails_is_told_with_its_cause_and_the_others_go_on(tmp_path: Path) -> None:
    recipe = swept(tmp_path, f'{GRID}"optimizers.*.lr" = [1e-3, 1e38, 1e-2]')
    said = sweep(recipe, tmp_path / "runs")
    good, bad, other = table(tmp_path / "runs")
    assert [each["state"] for each in (good, bad, other)] == ["finished", "failed", "finished"]
    assert re.search(r"step \d+, phase classifier: .* is (nan|inf)", bad["cause"]), said
    assert f"trial 1: failed: {bad['cause']}" in said
    again = sweep(recipe, tmp_path / "runs")
    assert "trial 1" not in again.split("trial  ")[0]
    assert "trial 1: failed" in sweep(recipe, tmp_path / "runs", "--retry")
    assert len(table(tmp_path / "runs")) == 3
    best = tmp_path / "runs/sweeps/tiny-classifier/best.toml"
    assert best.read_text().startswith(f"# Trial {0 if good['value'] < other['value'] else 2} of the sweep ")
    process = start("run", best, "--runs", tmp_path / "best", log=tmp_path / "best.log")
    assert process.wait(120) == 0, (tmp_path / "best.log").read_text()
    (run,) = runs_in(tmp_path / "best")
    value = dict(read_metrics(run / "metrics.jsonl"))[STEPS]["evaluate/loss"]
    assert value == min(good["value"], other["value"])


def test_sweeps_of_one_folder_train_no_recipe_twice(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    named = GRID.replace("[sweep]", '[sweep]\nname = "NAME"')
    recipe = swept(tmp_path / "one", named.replace("NAME", "one") + '"optimizers.*.lr" = [1e-3, 1e-2]')
    text = recipe.read_text().replace('name = "one"', 'name = "two"').replace("[1e-3, 1e-2]", "[1e-2, 1e-1]")
    other = tmp_path / "one" / "other.toml"
    other.write_text(text)
    both = [
        start("sweep", path, "--runs", runs, log=tmp_path / f"{path.stem}.log") for path in (recipe, other)
    ]
    assert [process.wait(200) for process in both] == [0, 0]
    assert len(runs_in(runs)) == 3
    shared = [table(runs, "one")[1], table(runs, "two")[0]]
    assert shared[0]["value"] == shared[1]["value"]
    assert shared[0]["settings"] == shared[1]["settings"]
    assert "3 s" not in sweep(recipe, runs)
    assert len(runs_in(runs)) == 3


def test_a_sweep_that_is_asked_to_stop_saves_its_trials(tmp_path: Path) -> None:
    recipe = swept(tmp_path, f'{GRID}"optimizers.*.lr" = [1e-3, 1e-2]', RECIPE.replace("240", "100000"))
    log = tmp_path / "log"
    process = start("sweep", recipe, "--runs", tmp_path / "runs", log=log)
    metrics = wait_for(tmp_path / "runs/tiny-classifier", "*/metrics.jsonl")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143, log.read_text()
    assert "the same command carries on" in log.read_text()
    found = standing(metrics.parent)
    assert (found.state, found.step > 0) == ("cut off", True)
    assert [each["state"] for each in table(tmp_path / "runs")] == ["cut off"]


def wait_for(folder: Path, pattern: str) -> Path:
    end = time.monotonic() + 60
    while not (found := [path for path in folder.glob(pattern) if path.stat().st_size]):
        assert time.monotonic() < end, f"{folder} has no {pattern}"
        time.sleep(0.05)
    return found[0]


def test_time_that_is_up_ends_a_sweep_and_more_of_it_carries_on(tmp_path: Path) -> None:
    recipe = swept(
        tmp_path,
        GRID.replace("[sweep]", "[sweep]\nminutes = 0.05") + '"optimizers.*.lr" = [1e-3, 1e-2]',
        RECIPE.replace("240", "2000"),
    )
    said = sweep(recipe, tmp_path / "runs", code=143)
    assert "its time is up; with more sweep.minutes the same command carries on" in said
    assert "trial 0: saved, to be carried on" in said
    sweep(recipe, tmp_path / "runs", "sweep.minutes=10", "--parallel", "2")
    assert [each["state"] for each in table(tmp_path / "runs")] == ["finished"] * 2
    assert len(runs_in(tmp_path / "runs")) == 2


def test_trials_are_ended_early_seeds_are_averaged_and_all_is_compared(tmp_path: Path) -> None:
    options = 'trials = 7\nseeds = 2\nmetric = "evaluate/loss"\n'
    options += f'prune = {{ kind = "median", startup = 2, warmup = {EVERY} }}\n'
    axes = '"optimizers.*.lr" = { log_uniform = [1e-6, 10] }\n'
    recipe = swept(tmp_path, f"\n[sweep]\n{options}[sweep.axes]\n{axes}")
    runs = tmp_path / "runs"
    sweep(recipe, runs, "--parallel", "2")
    trials = table(runs)
    states = [each["state"] for each in trials]
    assert states.count("finished") >= 2
    assert "pruned" in states, states
    for each in trials:
        if each["state"] == "finished":
            assert each["runs"] == len(each["values"]) == 2
            assert each["value"] == pytest.approx(sum(each["values"]) / 2, abs=1e-12)
            assert each["values"][0] != each["values"][1]
        elif each["state"] == "pruned":
            assert each["runs"] == 1
            assert each["step"] >= EVERY
    said = subprocess.run(
        [
            sys.executable,
            "-m",
            "dtrain",
            "runs",
            runs,
            "--sweep",
            "tiny-classifier",
            "--sort",
            "evaluate/loss",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert said[0].split()[:6] == ["name", "id", "trial", "lr", "state", "step"]
    assert len(said) == 1 + sum(each["runs"] for each in trials)
    losses = [float(line.split()[6]) for line in said[1:]]
    assert losses == sorted(losses)
    sweep(recipe, runs, "--report")
    assert_report(runs / "sweeps/tiny-classifier/report.html", trials, tmp_path)


def assert_report(page: Path, trials: list[dict[str, Any]], folder: Path) -> None:
    """A page that fetches nothing; where there is a browser, what it shows."""
    text = page.read_text()
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", text)
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        return
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'browser'}")
    quiet = (
        "--proxy-server=127.0.0.1:9",
        "--virtual-time-budget=20000",
        "--dump-dom",
    )  # a network that is none
    found = subprocess.run(
        [browser, *options, *quiet, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    drawn = found.stdout
    body = drawn[drawn.index("<body") :]
    assert len(re.findall(r'<tr class="(?:finished|pruned)">', body)) == len(trials)
    assert body.count('class="main-svg"') >= 3 * 2, found.stderr  # each picture is some
    for title in (
        "Parallel coordinates",
        "Curves of the first seed",
        "Importance of each axis, by 4 finished trials",
    ):
        assert f"<h2>{title}</h2>" in body


def test_trials_run_on_several_processes_by_the_same_files_and_are_grouped_in_wandb(tmp_path: Path) -> None:
    text = RECIPE.replace("240", "12").replace('"console", ', '"wandb", ')
    recipe = swept(tmp_path, f'{GRID}"optimizers.*.lr" = [1e-3]', text)
    sweep(recipe, tmp_path / "runs", "--config", ROOT / "launch/cpu-2.yaml", WANDB_MODE="offline")
    (run,) = runs_in(tmp_path / "runs")
    assert step_of(checkpoints_in(run)[-1]) == 12
    manifest = json.loads((checkpoints_in(run)[-1] / "manifest.json").read_text())
    assert manifest["environment"]["world"] == 2
    (kept,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert group_of(kept) == "tiny-classifier"


def test_a_trial_of_which_a_rank_is_killed_is_carried_on(tmp_path: Path) -> None:
    recipe = swept(tmp_path, f'{GRID}"optimizers.*.lr" = [1e-3]')
    config = ["--config", ROOT / "launch/cpu-2.yaml"]
    process = start("sweep", recipe, "--runs", tmp_path / "runs", *config, log=tmp_path / "log")
    wait_for(tmp_path / "runs", "tiny-classifier/*/checkpoints/step-*")
    (launcher,) = psutil.Process(process.pid).children()
    launcher.children()[-1].kill()
    assert process.wait(120) == 0, (tmp_path / "log").read_text()
    (trial,) = table(tmp_path / "runs")
    assert (trial["state"], trial["runs"]) == ("finished", 1)
    (said,) = (tmp_path / "runs/sweeps/tiny-classifier/trials").glob("*.log")
    assert_each_step_once(said.read_text())
    assert "SIGKILL" in said.read_text()


def group_of(log: Path) -> str:
    """The group of an offline run, as W&B's own records have it."""
    from wandb.proto import wandb_internal_pb2

    records = (wandb_internal_pb2.Record.FromString(data) for data, _ in read_records(log))
    return next(record.run.run_group for record in records if record.WhichOneof("record_type") == "run")
