"""`dtrain runs`: how each run stands, found without being in its way."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Said, cut_off, only_run, start

import dtrain
from dtrain.checkpoint.read import checkpoints_in
from dtrain.errors import CheckpointError
from dtrain.format.files import STATE
from dtrain.format.locks import is_held, lock, try_lock
from dtrain.format.metrics import METRICS, latest_in, read_metrics
from dtrain.format.runs import runs_in, standing
from dtrain.format.wandb_folder import note_url

pytestmark = pytest.mark.alone

Here = Callable[..., Said]


def states(dtrain_here: Here, runs: Path) -> dict[str, str]:
    """The state of each run by its name."""
    said = dtrain_here("runs", runs, "--json")
    assert (said.code, said.errors) == (0, "")
    return {run["name"]: run["state"] for run in json.loads(said.out)}


def test_each_state_is_said(gan: Path, classifier: Path, tmp_path: Path, dtrain_here: Here) -> None:
    runs = tmp_path / "runs"
    assert dtrain_here("run", gan, "--runs", runs, "name=finished").code == 0
    patient = [
        'checkpoint.best="evaluate/loss"',
        'checkpoint.mode="max"',
        "train.patience=1",
        "every.evaluate=1",
    ]
    assert dtrain_here("run", classifier, "--runs", runs, "name=early", "train.epochs=90", *patient).code == 0
    cut_off(gan, runs, 4, "name=cut")
    shutil.rmtree(cut_off(gan, runs, 4, "name=none") / "checkpoints")
    short = checkpoints_in(cut_off(gan, runs, 4, "name=short"))[-1] / "models-00001-of-00001.safetensors"
    short.write_bytes(short.read_bytes()[:-1])
    torn = cut_off(gan, runs, 4, "name=torn")
    (checkpoints_in(torn)[-1] / STATE).write_text("[" * 5000)
    held = cut_off(gan, runs, 4, "name=running")
    with lock(held):
        assert states(dtrain_here, runs) == {
            "finished": "finished",
            "early": "stopped early",
            "cut": "cut off",
            "none": "no checkpoint yet",
            "short": "damaged",
            "torn": "damaged",
            "running": "running",
        }
        said = dtrain_here("runs", runs)
    assert f"{short} was cut short or altered" in said.out
    assert states(dtrain_here, runs)["running"] == "cut off"


def test_of_a_damaged_run_it_is_said_how_far_it_had_come(
    gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    """By the name of its newest checkpoint; of how many steps, by an older one or the recipe."""
    run = cut_off(gan, tmp_path / "runs", 4)
    for path in reversed(checkpoints_in(run)):
        (path / STATE).unlink()
        known = standing(run)
        assert (known.state, known.step, known.total) == ("damaged", 4, 8)
    assert re.search(r" damaged +4/8 ", dtrain_here("runs", tmp_path / "runs").out)
    (run / "recipe.toml").unlink()
    assert (standing(run).step, standing(run).total) == (4, None)


def test_a_name_means_its_newest_run_that_has_a_checkpoint(
    gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    """To whatever reads a run or a checkpoint; and what leads nowhere is said by all in the same words."""
    older, newer, empty = (cut_off(gan, tmp_path / "runs", 4, f"seed={seed}") for seed in (1, 2, 3))
    shutil.rmtree(empty / "checkpoints")
    name, out = older.parent, tmp_path / "out.safetensors"
    commands = {
        "inspect": (),
        "evaluate": (),
        "reproduce": (),
        "convert": (out, "--model", "generator", "--force"),
    }
    for command, more in commands.items():
        (meant, said) = (dtrain_here(command, path, *more) for path in (newer, name))
        assert (meant.code, said) == (0, meant), command
        said = dtrain_here(command, tmp_path / "nowhere", *more)
        way = "a checkpoint, a run, or runs/NAME would do"
        assert said.errors == f"dtrain: {tmp_path / 'nowhere'} does not exist; {way}\n", command
    said = dtrain_here("run", gan, "train.steps=9", "--runs", tmp_path / "on", "--resume", name)
    assert said.out.startswith(f"carrying on from {checkpoints_in(newer)[-1]}\n")
    models = (dtrain.load_models(path)["generator"].state_dict() for path in (newer, name))
    assert all(map(torch.equal, *(each.values() for each in models)))
    for path in (tmp_path / "nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(CheckpointError, match="nowhere does not exist; a checkpoint, a run, or"):
            dtrain.load_models(path)


def test_a_run_is_running_from_its_first_moment_until_it_is_killed(
    gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    runs = tmp_path / "runs"
    overrides = ("train.steps=1000000", "every.save=0", "every.evaluate=0", "checkpoint={}")
    life = start("run", gan, "--runs", runs, *overrides, log=tmp_path / "log")
    end = time.monotonic() + 60
    while not (found := runs_in(runs)) or latest_in(found[0] / METRICS).step < 3:
        assert time.monotonic() < end, life.said
        time.sleep(0.05)
    known = standing(found[0])
    assert (known.state, known.total) == ("running", 1_000_000)
    assert known.step >= 3
    life.kill()
    assert standing(found[0]).state == "no checkpoint yet"


def test_looking_is_never_in_the_way_of_a_start(tmp_path: Path) -> None:
    looking, looks = True, 0

    def look() -> None:
        nonlocal looks
        while looking:
            is_held(tmp_path)
            looks += 1

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            with lock(tmp_path):
                assert is_held(tmp_path)
                assert try_lock(tmp_path) is None
    finally:
        looking = False
        for thread in threads:
            thread.join()
    assert looks > 300
    assert not is_held(tmp_path)


def test_who_looks_and_is_stopped_meanwhile_stops_no_start(tmp_path: Path) -> None:
    code = f"""
import fcntl, signal
file = open({str(tmp_path / ".running")!r}, "ab")
fcntl.flock(file, fcntl.LOCK_SH)
print("looking", flush=True)
signal.pause()
"""
    looker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert looker.stdout is not None
    try:
        assert looker.stdout.readline() == "looking\n"
        with lock(tmp_path), pytest.raises(CheckpointError, match="is being worked on by another process"):
            lock(tmp_path)
    finally:
        looker.kill()
        looker.communicate()


def test_looking_changes_nothing(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    run = cut_off(gan, tmp_path / "runs", 4)
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    assert dtrain_here("runs", tmp_path / "runs").code == 0
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))} == before
    lock(run).close()


def test_a_pipe_gets_columns_and_the_newest_run_stands_first(
    gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    first = cut_off(gan, tmp_path / "runs", 2)
    second = cut_off(gan, tmp_path / "runs", 4, "seed=1")
    lines = dtrain_here("runs", tmp_path / "runs").out.splitlines()
    assert lines[0].split() == ["name", "id", "state", "step", "best", "size", "moved", "W&B"]
    cells = [re.split(r"  +", line) for line in lines[1:]]
    assert [row[:4] for row in cells] == [
        ["tiny-gan", second.name, "cut off", "4/8"],
        ["tiny-gan", first.name, "cut off", "2/8"],
    ]
    assert re.fullmatch(r"evaluate/loss \d\.\d+ at 3", cells[0][4])
    assert [row[4] for row in cells[1:]] == ["-"]
    assert [row[-1] for row in cells] == ["-", "-"]


def test_runs_of_one_name_and_one_run_are_listed_too(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    run = cut_off(gan, tmp_path / "runs", 2)
    cut_off(gan, tmp_path / "runs", 2, "name=other")
    for arguments in ([run.parent], [run], [tmp_path / "runs", "--name", "tiny-gan"]):
        (line,) = dtrain_here("runs", *arguments).out.splitlines()[1:]
        assert line.startswith(f"tiny-gan  {run.name}  cut off")


def test_a_metric_sorts_from_its_best_and_is_shown(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    for name, loss in (("b", 0.5), ("c", float("nan")), ("a", 0.25), ("d", None)):
        run = cut_off(gan, tmp_path / "runs", 4, f"name={name}")
        told = {"step": 4, "evaluate/loss": "NaN" if loss != loss else loss, "evaluate/score": loss}
        if loss is not None:
            (run / METRICS).write_text(
                json.dumps(told) + "\n" + json.dumps({"step": 5, "x/loss": 1.0}) + "\n"
            )

    def names(key: str) -> list[str]:
        return [
            line.split()[0] for line in dtrain_here("runs", tmp_path / "runs", "--sort", key).out.splitlines()
        ]

    assert names("evaluate/loss") == ["name", "a", "b", "c", "d"]  # the recipe says that less is better
    assert names("evaluate/score")[:3] == ["name", "b", "a"]
    assert names("name") == ["name", "a", "b", "c", "d"]
    lines = dtrain_here("runs", tmp_path / "runs", "--sort", "evaluate/loss").out.splitlines()
    assert [re.split("  +", line)[4] for line in lines] == ["evaluate/loss", "0.25", "0.5", "nan", "-"]
    said = dtrain_here("runs", tmp_path / "runs", "--sort", "evaluate/los")
    assert (said.code, said.out) == (2, "")
    assert 'no run has told of it; did you mean "evaluate/loss"?' in said.errors


def test_json_has_all_that_is_known(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    assert dtrain_here("run", gan, "--runs", tmp_path / "runs", "every.sample=4").code == 0
    run = only_run(tmp_path / "runs")
    with (run / METRICS).open("a") as file:
        file.write('{"step": 8, "generator/loss": "Infinity"}\n{"step": 9, "torn')
    (known,) = json.loads(dtrain_here("runs", tmp_path / "runs", "--json").out)
    assert (known["id"], known["path"], known["step"], known["total"]) == (run.name, str(run), 8, 8)
    assert known["best"]["metric"] == "evaluate/loss"
    assert known["logged"] == {"step": 8, "metrics": {"generator/loss": "Infinity"}}
    assert known["evaluated"]["step"] == 8
    assert known["evaluated"]["metrics"].keys() == {"evaluate/loss", "evaluate/real", "evaluate/fake"}
    files = [path for path in run.rglob("*") if path.is_file() and path.name not in (".lock", ".running")]
    assert known["bytes"] == sum(path.stat().st_size for path in files)
    assert known["wandb"] == {"url": None, "offline": False, "commands": []}


def test_wandb_is_linked_to_or_the_command_is_said(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    online, offline = cut_off(gan, tmp_path / "runs", 2), cut_off(gan, tmp_path / "runs", 2, "name=offline")
    note_url(online, "https://wandb.ai/someone/dtrain/runs/x\x1b[31m")
    log = offline / "wandb" / "offline-run-1-x" / "run-x.wandb"
    log.parent.mkdir(parents=True)
    log.touch()
    said = dtrain_here("runs", tmp_path / "runs")
    rows = [re.split("  +", line)[-1] for line in said.out.splitlines()]
    assert rows == ["W&B", "offline", r"https://wandb.ai/someone/dtrain/runs/x\u001b[31m", rows[3]]
    assert said.out.splitlines()[3] == f"offline  wandb sync {offline / 'wandb'}"


def test_a_folder_without_runs_says_so(tmp_path: Path, dtrain_here: Here) -> None:
    said = dtrain_here("runs", tmp_path)
    assert (said.code, said.out) == (0, f"{tmp_path} has no runs; `dtrain run RECIPE` makes one\n")
    said = dtrain_here("runs", tmp_path / "nowhere")
    assert (said.code, said.out) == (2, "")
    assert said.errors == f"dtrain: {tmp_path / 'nowhere'} does not exist; a folder of runs would do\n"
    assert json.loads(dtrain_here("runs", tmp_path, "--json").out) == []


def test_a_terminal_gets_a_table_that_no_name_can_write_into(gan: Path, tmp_path: Path) -> None:
    run = cut_off(gan, tmp_path / "runs", 2)
    run.parent.rename(run.parent.with_name("a[red]b\x1b]0;title\x07"))
    said = on_a_terminal("runs", str(tmp_path / "runs"))
    assert r"a[red]b\u001b]0;title\u0007" in said
    assert "cut off" in said
    assert re.search(r"\d+ (s|min) ago", said)
    assert "\x1b]" not in said


def on_a_terminal(*arguments: str) -> str:
    """What a command prints on a terminal."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm"}
    command = [sys.executable, "-m", "dtrain", *arguments]
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        said = b""
        while True:
            try:
                piece = os.read(leader, 1 << 16)
            except OSError:  # its end, on Linux
                break
            if not piece:
                break
            said += piece
    os.close(leader)
    assert process.returncode == 0, said
    return said.decode()


def test_what_was_told_last_is_found_from_the_end_of_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    with path.open("w") as file:
        file.write('{"step": 1, "evaluate/loss": 0.5}\n')
        for step in range(2, 20_001):
            file.write(json.dumps({"step": step, "generator/loss": 1 / step}) + "\n")
        file.write('{"step": 20001, "generator/lo')
    found = latest_in(path)
    assert (found.step, found.metrics) == (20_000, {"generator/loss": 1 / 20_000, "evaluate/loss": 0.5})


def test_a_file_of_metrics_is_read_the_same_from_both_ends(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    for text in ("", '{"step": 3', '{"step": 3, "x": 1}\n', '{"step": 3, "x": 1}\n{"step": 4, "x": 2}'):
        path.write_text(text)
        assert latest_in(path).step == max((step for step, _ in read_metrics(path)), default=0), text
