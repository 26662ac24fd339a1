"""A run that a signal asks to end saves its step, the same on all ranks, and is carried on from there."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from conftest import Life, only_run, start, start_two
from killing import assert_same_run, steps_logged
from launching import ACCELERATE, ROOT, TORCHRUN

from dtrain.checkpoint.read import checkpoints_in, step_of
from dtrain.cli.app import main
from dtrain.cli.ending import STOPPED

pytestmark = pytest.mark.alone

MANY = ["train.steps=200", "every.save=0", "every.evaluate=0", "every.sample=0", "checkpoint.keep=9"]
SOON = 60  # seconds, after which a test gives up


def wait_for(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.002)


def stop(lives: Sequence[Life], runs: Path, ask: Callable[[], None]) -> int:
    """Ask for the end after a few steps; the step that is saved, which all ranks name with one voice."""
    wait_for(lambda: steps_logged(runs) > 5)
    ask()
    assert [life.end() for life in lives] == [STOPPED] * len(lives), [life.said for life in lives]
    (checkpoint,) = checkpoints_in(only_run(runs))
    said = re.search(
        r"stopped by (?:SIG\w+|--max-minutes) at step (\d+); saved (\S+); the same command carries on",
        lives[0].said,
    )
    assert said is not None, lives[0].said
    assert int(said[1]) == step_of(checkpoint)
    assert Path(said[2]).samefile(checkpoint)
    return step_of(checkpoint)


def send(life: Life, number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(life.process.pid or 0, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP], ids=lambda n: n.name)
def test_a_run_that_was_asked_to_stop_ends_with_the_bits_of_one_left_alone(
    gan: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = ["run", gan, *MANY, "train.steps=60"]
    alone = start(*command, "--runs", tmp_path / "alone", log=tmp_path / "alone.log")
    runs = tmp_path / "runs"
    life = start(*command, "--runs", runs, log=tmp_path / "log")
    step = stop([life], runs, send(life, number))
    assert step < 60
    again = start(*command, "--runs", runs, log=tmp_path / "again.log")
    assert again.end() == 0, again.said
    assert again.said.startswith("carrying on from")
    assert alone.end() == 0, alone.said
    checkpoints_in(only_run(runs))[0].rename(tmp_path / "of the stop")  # one more than the run left alone has
    assert_same_run(only_run(runs), only_run(tmp_path / "alone"))


def test_ranks_agree_on_the_step_when_one_of_them_was_asked(gan: Path, tmp_path: Path) -> None:
    command = ["run", gan, *MANY]
    alone = start_two(*command, "--runs", tmp_path / "alone", log=tmp_path / "alone.log")
    assert [life.end() for life in alone] == [0, 0], [life.said for life in alone]
    runs = tmp_path / "runs"
    lives = start_two(*command, "--runs", runs, log=tmp_path / "log")
    assert stop(lives, runs, send(lives[1], signal.SIGTERM)) < 200
    again = start_two(*command, "--runs", runs, log=tmp_path / "again.log")
    assert [life.end() for life in again] == [0, 0], [life.said for life in again]
    checkpoints_in(only_run(runs))[0].rename(tmp_path / "of the stop")
    assert_same_run(only_run(runs), only_run(tmp_path / "alone"))


@pytest.mark.parametrize(
    ("launcher", "number", "handed_on"),
    [
        ([*ACCELERATE, "--config_file", "launch/cpu-2.yaml", "-m"], signal.SIGUSR1, "SIGUSR1"),
        ([*TORCHRUN, "--standalone", "--nproc_per_node", "2", "-m"], signal.SIGKILL, "SIGTERM"),
    ],
    ids=["accelerate is asked", "torchrun is killed"],
)
def test_a_run_whose_launcher_is_told_to_stop_is_saved(
    gan: Path, tmp_path: Path, launcher: list[str], number: signal.Signals, handed_on: str
) -> None:
    command = [*launcher, "dtrain", "run", str(gan), "train.steps=100000", *MANY[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": "/nonexistent"}
    environment["PET_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # as launch/slurm.sbatch
    running = subprocess.Popen(
        [*command, "--runs", str(tmp_path / "runs")],
        env=environment,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: steps_logged(tmp_path / "runs") > 5)
    running.send_signal(number)
    _, errors = running.communicate(timeout=SOON)
    (checkpoint,) = checkpoints_in(only_run(tmp_path / "runs"))
    assert f"dtrain: stopped by {handed_on} at step {step_of(checkpoint)}; saved " in errors


def test_a_run_whose_minutes_are_over_is_saved_and_goes_on_when_started_again(
    gan: Path, tmp_path: Path
) -> None:
    command = ["run", gan, *MANY, "train.steps=100000", "--max-minutes", "0.1"]
    runs = tmp_path / "runs"
    began = time.monotonic()
    step = stop([start(*command, "--runs", runs, log=tmp_path / "log")], runs, lambda: None)
    assert 6 <= time.monotonic() - began < 20  # seconds
    again = start(*command[:-1], "0.0001", "--runs", runs, log=tmp_path / "again.log")
    assert again.end() == STOPPED, again.said
    assert (
        f"stopped by --max-minutes at step {step + 1}; saved" in again.said
    )  # each start makes one, at least


def test_the_clock_of_rank_0_ends_all_ranks_after_the_same_step(gan: Path, tmp_path: Path) -> None:
    """The other rank has all the time there is, and hears of it with the signals."""
    command = ["run", gan, *MANY, "train.steps=100000", "--runs", tmp_path / "runs"]
    lives = start_two(*command, log=tmp_path / "log", action=with_minutes_for_rank_0)
    stop(lives, tmp_path / "runs", lambda: None)


def with_minutes_for_rank_0(arguments: list[str]) -> int:
    return main([*arguments, "--max-minutes", "0.1" if os.environ["RANK"] == "0" else "1000"])


HANGS = """
import ctypes, signal
from dtrain.stopping import Signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
with Signals(lambda said: print(said, flush=True)):
    print("ready", flush=True)
    mutex = ctypes.create_string_buffer(64)  # all zero: a mutex that nobody holds
    for _ in range(2):  # in C, as a collective waits: no handler of Python's is called meanwhile
        ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def test_a_second_ctrl_c_ends_at_once_even_where_a_collective_never_returns() -> None:
    with subprocess.Popen([sys.executable, "-c", HANGS], stdout=subprocess.PIPE, text=True) as hanging:
        assert hanging.stdout is not None
        assert hanging.stdout.readline() == "ready\n"
        hanging.send_signal(signal.SIGTERM)
        assert hanging.stdout.readline() == "SIGTERM: stops after this step and saves\n"
        hanging.send_signal(signal.SIGINT)  # it may be the same wish over another way
        time.sleep(1.1)
        hanging.send_signal(signal.SIGTERM)  # a scheduler has SIGKILL, if it does not want to wait
        time.sleep(0.2)
        assert hanging.poll() is None
        hanging.send_signal(signal.SIGINT)
        assert hanging.stdout.readline() == "SIGINT: ended at once, without saving\n"
        assert hanging.wait(10) == 128 + signal.SIGINT
