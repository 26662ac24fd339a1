"""launch/torchrun-elastic.sh: a machine that comes later takes part, one that goes leaves the others."""

import json
import os
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import only_run
from killing import steps_logged
from launching import ROOT
from slurm_cluster import wait_for

from dtrain.checkpoint.read import checkpoints_in
from dtrain.format.files import MANIFEST

pytestmark = pytest.mark.alone

SOON = 180  # seconds, after which a test gives up
LONG = ["train.steps=1000000", "every.save=0", "every.evaluate=0", "every.sample=0"]


class Machines:
    """Machines of a folder, each with an agent of torchrun and one process, which all run the same recipe."""

    def __init__(self, recipe: Path, folder: Path, stack: ExitStack):
        self.recipe, self.folder, self.stack = recipe, folder, stack
        self.runs = folder / "runs"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])

    def add(self) -> subprocess.Popen[bytes]:
        """Start one more; all speak into one file."""
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "NODES": "1:2",
            "DEVICES": "1",
            "PORT": self.port,
        }
        words = ["launch/torchrun-elastic.sh", "localhost", str(self.recipe), *LONG, "--runs", str(self.runs)]
        said = self.stack.enter_context((self.folder / "said").open("ab"))
        agent = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=said, stderr=said)
        self.stack.callback(agent.kill)  # which its process hears, and ends
        return agent

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def wait_for_life(self, number: int) -> None:
        """Wait until the recipe was carried on so often, and trains."""

        def trains() -> bool:
            steps = steps_logged(self.runs)
            return self.said().count("carrying on from") == number and steps > self.stopped_at() + 5

        wait_for(trains, seconds=SOON, what=f"life {number} trains: {self.said()}")

    def stopped_at(self) -> int:
        """The newest step that was saved."""
        saved = [path for run in self.runs.glob("*/*") for path in checkpoints_in(run)]
        return int(saved[-1].name.removeprefix("step-")) if saved else 0


def worlds(runs: Path) -> list[int]:
    """How many processes there were, by checkpoint."""
    manifests = [json.loads((path / MANIFEST).read_text()) for path in checkpoints_in(only_run(runs))]
    return [manifest["environment"]["world"] for manifest in manifests]


@pytest.mark.skipif("DTRAIN_TEST_LONG" not in os.environ, reason="torchrun counts in minutes")
def test_a_machine_that_comes_later_takes_part(gan: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        machines = Machines(gan, tmp_path, stack)
        first = machines.add()
        machines.wait_for_life(0)
        second = machines.add()
        machines.wait_for_life(1)
        for agent in (first, second):
            agent.send_signal(signal.SIGTERM)
        for agent in (first, second):
            agent.wait(SOON)
    assert worlds(machines.runs) == [1, 2], machines.said()


@pytest.mark.skipif("DTRAIN_TEST_LONG" not in os.environ, reason="torchrun misses a machine after a minute")
def test_a_machine_that_goes_leaves_the_other_at_work(gan: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        machines = Machines(gan, tmp_path, stack)
        first = machines.add()
        machines.wait_for_life(0)
        second = machines.add()
        machines.wait_for_life(1)
        second.kill()
        machines.wait_for_life(2)
        first.send_signal(signal.SIGTERM)
        first.wait(SOON)
    assert worlds(machines.runs) == [1, 2, 1], machines.said()
