"""Real offline W&B runs of real processes, read back with W&B's own reader."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from wandb.util import get_core_path
from wandb_server import wandb_server

from dtrain.format.wandb_folder import how_to_look, url_of, was_offline
from dtrain.pictures import save_grid
from dtrain.track.transaction_log import find_logs, read_records, read_standing

pytestmark = pytest.mark.alone

LIFE = """
import sys, time
from pathlib import Path
from dtrain.events import *
from dtrain.track import open_trackers
from dtrain.track.base import RunInfo

connections = []
def note(name, arguments):
    if name == "socket.getaddrinfo" or (name == "socket.connect" and not isinstance(arguments[1], str)):
        connections.append((name, arguments))
sys.addaudithook(note)
folder, step, total = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
kinds, pause = sys.argv[4], float(sys.argv[5])
run = RunInfo(folder, "run1", "gan", "dtrain", {"seed": 0, "optimizers": {"generator": {"lr": 1e-4}}}, "here")
with open_trackers(kinds.split(","), run, step) as observe:
    observe(Started(step, total, 64))
    for done in range(step + 1, total + 1):
        observe(Stepped(done, {"generator/loss": 1 / done, "generator/lr": 1e-4} if done % 2 == 0 else {}))
        if done % 20 == 0:
            observe(Evaluated(done, {"evaluate/accuracy": done / 1000}))
            if done == 20:
                observe(Sampled(done, {"samples/generator": folder / "20.png"}))
            observe(Saved(done, folder))
            print(done, flush=True)
        exec(sys.argv[6])
        time.sleep(pause)
    observe(Finished(total))
import atexit
atexit.register(lambda: print("connections", connections))
"""


@pytest.fixture
def environment(tmp_path):
    """Without a key and without what an earlier W&B of this process may have set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    root = str(Path(__file__).parents[1])
    return {**kept, "HOME": str(tmp_path / "home"), "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def command(folder, step, total, kinds="jsonl,wandb", pause=0.0, every_step=""):
    folder.mkdir(exist_ok=True, parents=True)
    save_grid(np.zeros((1, 4, 4)), folder / "20.png", low=0, high=1)
    return [
        sys.executable,
        "-W",
        "error",
        "-c",
        LIFE,
        *map(str, (folder, step, total, kinds, pause, every_step)),
    ]


def live(environment, *arguments, **options):
    return subprocess.run(
        command(*arguments, **options),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=50,
    )


def inspect(environment, log: Path) -> list[dict]:
    """Every record, as read by W&B itself, which must find nothing wrong with the file."""
    # What `wandb leet inspect --json` runs, without the second that its Python part takes to start.
    result = subprocess.run(
        [
            get_core_path(),
            "leet",
            "inspect",
            "--no-observability",
            "--json",
            "--run-file",
            log,
            log.parent.parent,
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def rows(environment, folder: Path) -> list[dict]:
    logs = find_logs(folder / "wandb", "run1")
    records = [record for log in logs for record in inspect(environment, log)]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def assert_whole(found: list[dict], total: int) -> None:
    assert Counter(row["step"] for row in found) == dict.fromkeys(range(2, total + 1, 2), 1)
    for row in found:
        assert row["_step"] == row["step"]
        assert row["generator/loss"] == 1 / row["step"]
        assert ("evaluate/accuracy" in row) == (row["step"] % 20 == 0)
        assert ("samples/generator.path" in row) == (row["step"] == 20)


def test_a_run_without_a_key_is_kept_offline_with_its_config_and_without_a_word(tmp_path, environment):
    result = live(environment, tmp_path / "run", 0, 40)
    assert result.stdout == "20\n40\nconnections []\n"
    assert result.stderr == ""
    (log,) = find_logs(tmp_path / "run" / "wandb", "run1")
    assert log.parent.name.startswith("offline-run-")
    records = inspect(environment, log)
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    config = {name: value for name, value in run["config"]["update"].items() if name != "_wandb"}
    assert config == {"seed": 0, "optimizers": {"generator": {"lr": 1e-4}}}
    assert (run["run_id"], run["project"], run["display_name"]) == ("run1", "dtrain", "gan")
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    assert any(metric.get("glob_name") == "*" and metric["step_metric"] == "step" for metric in metrics)

    found = rows(environment, tmp_path / "run")
    assert_whole(found, 40)
    (name,) = [row["samples/generator.path"] for row in found if row["step"] == 20]
    assert (log.parent / "files" / name).read_bytes() == (tmp_path / "run" / "20.png").read_bytes()


def test_texts_stand_in_the_row_of_their_step_as_they_were_written(tmp_path, environment):
    draw = """
if done == 20:
    (folder / "20.txt").write_text("<b> & Ж")
    observe(Sampled(done, {}, {"text": folder / "20.txt"}))
"""
    live(environment, tmp_path / "run", 0, 40, every_step=draw)
    (row,) = (row for row in rows(environment, tmp_path / "run") if "text.path" in row)
    (log,) = find_logs(tmp_path / "run" / "wandb", "run1")
    assert (row["step"], row["text._type"]) == (20, "html-file")
    page = (log.parent / "files" / row["text.path"]).read_text(encoding="utf-8")
    assert page == "<pre>&lt;b&gt; &amp; Ж</pre>"


def test_our_reader_finds_what_wandb_finds(tmp_path, environment):
    live(environment, tmp_path / "run", 0, 600)
    logs = find_logs(tmp_path / "run" / "wandb", "run1")
    found = rows(environment, tmp_path / "run")
    assert logs[0].stat().st_size > 3 * 32768
    assert read_standing(logs) == {row["step"]: {name.split(".")[0] for name in row} for row in found}


def test_a_run_killed_at_random_moments_stands_whole_once(tmp_path, environment):
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # pytest shows it if the test fails
    chance = random.Random(seed)
    folder, step, furthest = tmp_path / "run", 0, 0
    for _ in range(3):
        with subprocess.Popen(
            command(folder, step, 4000, pause=0.002), env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            process.stdout.readline()
            time.sleep(chance.uniform(0, 1.5))
            process.send_signal(signal.SIGKILL)
            saved = [int(line) for line in process.stdout.read().split()]
        furthest = max([furthest, step, *saved])  # an earlier life may have come further than the last
        step = chance.choice([step, *saved])
    total = furthest + 200
    live(environment, folder, step, total)
    assert_whole(rows(environment, folder), total)


def test_what_a_torn_file_lost_is_filled_in_and_the_file_is_mended(tmp_path, environment):
    folder = tmp_path / "run"
    live(environment, folder, 0, 60)
    (log,) = find_logs(folder / "wandb", "run1")
    ends = [end for _, end in read_records(log)]
    os.truncate(log, ends[len(ends) // 3] + 5)
    live(environment, folder, 60, 80)
    assert log.stat().st_size == ends[len(ends) // 3]
    assert_whole(rows(environment, folder), 80)


def test_a_file_that_does_not_name_its_run_is_set_aside(tmp_path, environment):
    folder = tmp_path / "run"
    log = folder / "wandb" / "offline-run-0-run1" / "run-run1.wandb"
    log.parent.mkdir(parents=True)
    log.touch()
    result = live(environment, folder, 0, 40)
    assert result.stderr == ""
    assert not log.exists()
    assert_whole(rows(environment, folder), 40)


def test_a_wandb_that_breaks_is_named_once_and_training_goes_on(tmp_path, environment):
    kill = """
if done == 10:
    import psutil
    for child in psutil.Process().children(): child.kill()
"""
    result = live(environment, tmp_path / "run", 0, 40, every_step=kill)
    assert "40\n" in result.stdout
    assert result.stderr.count("Weights & Biases") == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 20 + 2 + 1


def test_a_run_whose_server_does_not_answer_goes_on_offline(tmp_path, environment):
    # The server is a closed port of this machine.
    environment |= {
        "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_INIT_TIMEOUT": "1",
    }
    result = live(environment, tmp_path / "run", 0, 40)
    assert result.stderr.count("so it is tracked offline") == 1
    assert_whole(rows(environment, tmp_path / "run"), 40)


def test_how_to_look_names_commands_that_find_every_life(tmp_path, environment):
    folder = tmp_path / "a run"
    assert how_to_look(folder) == []
    for number in range(2):
        log = folder / "wandb" / f"offline-run-{number}-run1" / "run-run1.wandb"
        log.parent.mkdir(parents=True)
        log.touch()
    leet, sync = (shlex.split(line) for line in how_to_look(folder))
    assert leet == ["wandb", "leet", str(folder / "wandb")]
    found = subprocess.run(
        [sys.executable, "-m", *sync, "--dry-run"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Would sync 2 run(s)" in found.stderr


def test_a_run_that_is_online_keeps_the_address_at_which_it_is_shown(tmp_path, environment):
    with wandb_server() as server:
        online = environment | {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": server}
        result = live(online, tmp_path / "run", 0, 40)
    assert result.stderr == ""
    assert url_of(tmp_path / "run") == f"{server}/someone/dtrain/runs/run1"
    assert not was_offline(tmp_path / "run")
    live(environment, tmp_path / "offline", 0, 40)
    assert url_of(tmp_path / "offline") is None
    assert was_offline(tmp_path / "offline")
