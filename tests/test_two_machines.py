"""A GAN over a cable between two machines: it is pulled, both say so, and the same command carries on."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from conftest import only_run, start_two
from killing import assert_same_run, steps_logged
from launching import ACCELERATE, ROOT
from slurm_cluster import wait_for
from two_machines import Machines, forbidden, machines

pytestmark = [pytest.mark.alone, pytest.mark.skipif(forbidden() != "", reason=forbidden())]

SOON = 120  # seconds, after which a test gives up
LONG = ["train.steps=200", "every.save=10", "every.evaluate=0", "every.sample=0"]


@contextmanager
def launched(pair: Machines, command: list[str], log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """One launcher on each machine, as somebody would start them there."""
    with ExitStack() as stack:
        processes = []
        for number in (0, 1):
            options = ["--config_file", "launch/multi-node.yaml", "--num_processes", "2"]
            options += ["--machine_rank", str(number), "--main_process_ip", pair.address(0), "-m", "dtrain"]
            paths = f"{ROOT}:{ROOT / 'tests'}"
            environment = {**os.environ, "PYTHONPATH": paths, "HF_HOME": "/nonexistent"}
            environment["GLOO_SOCKET_IFNAME"] = pair.interface(number)
            said = stack.enter_context(log.with_suffix(f".{number}").open("wb"))
            words = pair.on(number, [*ACCELERATE, *options, *command])
            processes.append(
                subprocess.Popen(words, env=environment, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
            )
        yield processes


def cut(pair: Machines, processes: list[subprocess.Popen[bytes]], log: Path) -> list[str]:
    """Cut the cable: both sides end soon, each naming the other; what they said."""
    pair.cut()
    since = time.monotonic()
    codes = [process.wait(SOON) for process in processes]
    seconds = time.monotonic() - since
    said = [log.with_suffix(f".{number}").read_text() for number in (0, 1)]
    assert 0 not in codes, said
    assert seconds < 60, said
    for number, other in ((0, 1), (1, 0)):
        assert re.search(rf"dtrain: .*rank {other}.*{re.escape(pair.address(other))}", said[number]), said
    return said


def test_a_cut_cable_is_told_on_both_sides_and_the_same_command_carries_on(gan: Path, tmp_path: Path) -> None:
    alone = start_two("run", gan, *LONG, "--runs", tmp_path / "alone", log=tmp_path / "alone.log")
    runs = tmp_path / "runs"
    command = ["run", str(gan), *LONG, "--runs", str(runs)]
    with machines() as pair:
        with launched(pair, command, tmp_path / "cut") as processes:
            wait_for(lambda: steps_logged(runs) > 12, seconds=SOON, what="both train")
            said = cut(pair, processes, tmp_path / "cut")
        assert 12 < steps_logged(runs) < 200, said
        pair.mend()
        with launched(pair, command, tmp_path / "again") as processes:
            ended = [process.wait(SOON) for process in processes]
    said = [(tmp_path / f"again.{number}").read_text() for number in (0, 1)]
    assert ended == [0, 0], said
    assert "carrying on from" in said[0]
    assert [life.end() for life in alone] == [0, 0], [life.said for life in alone]
    assert_same_run(only_run(runs), only_run(tmp_path / "alone"))


def test_a_cable_that_is_cut_while_both_are_busy_for_long_is_told_as_soon(
    classifier: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    slow = 'evaluate.metrics.slow={ kind = "faulty_metric:Sleeping", rank = 0 }'
    command = ["run", str(classifier), slow, "every.evaluate=2", "--runs", str(runs)]
    with machines() as pair, launched(pair, command, tmp_path / "cut") as processes:
        wait_for(lambda: any(runs.glob("*/*/record.jsonl")), seconds=SOON, what="both train")
        time.sleep(8)  # now they measure, and have said that nothing need be heard of them
        said = cut(pair, processes, tmp_path / "cut")
    assert all("its machine or the network to it went down" in each for each in said), said
