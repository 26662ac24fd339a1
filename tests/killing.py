"""A run that is started again and again, each life ended at a moment drawn by chance: for test_kills.py."""

import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from conftest import GAN, Life, metrics_of, start_world, tensors_of, written
from launching import ACCELERATE, ROOT, TORCHRUN, survivors

from dtrain.checkpoint.read import checkpoints_in, open_checkpoint, step_of

SOON = 60  # seconds, after which a process hangs that was to come or to go; a busy machine is slow
LOGGED, EVALUATED, SAMPLED, SAVED = 1, 4, 6, 3  # every so many steps
EVERY = [f"every.evaluate={EVALUATED}", f"every.sample={SAMPLED}", f"every.save={SAVED}"]
UPDATES, EPOCH = 2, 3  # updates of a step, and of an epoch: most steps begin in the middle of one


@dataclass(frozen=True)
class Way:
    """On how many processes a run trains, under which engine, and which launcher may start it."""

    size: int
    scale: str  # "" where nothing is said of it
    launcher: Sequence[str]


WAYS = {
    "one process": Way(1, "", [*TORCHRUN, "--standalone", "--nproc_per_node", "1", "-m"]),
    "DDP": Way(2, "", [*ACCELERATE, "--config_file", "launch/cpu-2.yaml", "-m"]),
    "ZeRO-2": Way(
        2,
        '[engine]\nkind = "zero"\nstage = 2\n',
        [*TORCHRUN, "--standalone", "--nproc_per_node", "2", "-m"],
    ),
}


@dataclass(frozen=True)
class Moment:
    """When a life ends: some steps after the last that any life logged, at the next sight of `where`."""

    where: str  # "starting", where it is only the seconds that count; "training", "evaluating", "saving"
    steps: int
    seconds: float  # later

    @staticmethod
    def draw(chance: random.Random, *, starting: bool) -> "Moment":
        where = chance.choice(["training", "evaluating", "saving"] + ["starting"] * starting)
        return Moment(
            where,
            chance.randint(1, 4),
            chance.uniform(0, 3 if where == "starting" else 0.06 if where == "training" else 0.004),
        )


class Forked:
    """The ranks of one world, each a process that pytest has started."""

    def __init__(self, command: Sequence[str | Path], way: Way, log: Path):
        self.lives: list[Life] = start_world(way.size, *command, log=log)

    def victims(self, whom: str, chance: random.Random) -> list[int]:
        lives = [chance.choice(self.lives)] if whom == "one rank" else self.lives
        return [pid for life in lives if (pid := life.process.pid)]  # never 0, which is our own group

    def is_running(self) -> bool:
        return all(life.process.is_alive() for life in self.lives)

    def codes(self) -> list[int | None]:
        """Of each rank, when all have ended; None of one that hangs."""
        return [life.end(SOON) for life in self.lives]

    def said(self) -> str:
        return "\n".join(life.said for life in self.lives)


class Launched:
    """The ranks of one world below a launcher."""

    def __init__(self, command: Sequence[str | Path], way: Way, log: Path):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": "/nonexistent"}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
        self.log = log.with_suffix(".launched")
        words = [*way.launcher, "dtrain", *map(str, command)]
        with self.log.open("ab") as said:
            self.launcher = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=said, stderr=said)
        self.below: list[int] = []

    def victims(self, whom: str, chance: random.Random) -> list[int]:
        own = psutil.Process(self.launcher.pid)
        ranks = [process.pid for process in own.children()]
        self.below = [process.pid for process in own.children(recursive=True)]
        if whom == "one rank":
            return [chance.choice(ranks)]
        return [own.pid] if whom == "launcher" else [own.pid, *ranks]

    def is_running(self) -> bool:
        return self.launcher.poll() is None

    def codes(self) -> list[int | None]:
        """Of the launcher, and None for each process below it that hangs."""
        code = self.launcher.wait(SOON)
        return [code, *(None for _ in survivors(self.below, SOON))]

    def said(self) -> str:
        return self.log.read_text()


@dataclass
class Campaign:
    """The lives of one run, and what they were doing when they ended."""

    way: Way
    folder: Path
    steps: int  # of the whole run
    chance: random.Random
    ended: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.recipe = written(self.folder, "gan.toml", GAN)
        arrays = dict(np.load(self.folder / "pictures.npz"))
        arrays["test_image"] = np.tile(arrays["test_image"], (16, 1, 1))  # evaluating takes its time
        arrays["test_label"] = np.tile(arrays["test_label"], 16)
        np.savez(self.folder / "pictures.npz", **arrays)
        self.runs = self.folder / "runs"

    def command(self, *settings: str, runs: Path | None = None) -> list[str | Path]:
        own = ["run", self.recipe, f"train.steps={self.steps}", "system.critic_steps=1", *EVERY, *settings]
        if self.way.scale:
            scale = self.folder / "scale.toml"
            scale.write_text(self.way.scale)
            own += ["--scale", scale]
        return [*own, "--runs", runs or self.runs]

    def live(self, *settings: str, launched: bool = False) -> "Forked | Launched":
        """Start the command: the same one each time."""
        kind = Launched if launched else Forked
        return kind(self.command(*settings), self.way, self.folder / "said")

    def leave_alone(self, *settings: str) -> Path:
        """Train from the first step to the last; the folder of this run."""
        runs = self.folder / "alone"
        lives = Forked(self.command(*settings, runs=runs), self.way, self.folder / "alone-said")
        codes = [life.end(1200) for life in lives.lives]
        assert codes == [0] * self.way.size, lives.said()
        return self.only(runs)

    def only(self, runs: Path) -> Path:
        (run,) = runs.glob("*/*/")
        return run

    def lines(self) -> list[int]:
        """The step of each line that was logged as a whole."""
        files = list(self.runs.glob("*/*/metrics.jsonl"))
        raw = files[0].read_bytes().splitlines(keepends=True)[-200:] if files else []
        return [json.loads(line)["step"] for line in raw if line.endswith(b"\n")]

    def last(self) -> int:
        return next(reversed(self.lines()), 0)

    def is_saving(self) -> bool:
        return any(self.runs.glob("*/*/.partial/step-*/*"))

    def is_evaluating(self) -> bool:
        """Whether the last step is one after which there is more to log than there is."""
        lines = self.lines()
        if not lines:
            return False
        step = lines[-1]
        wanted = sum(step % period == 0 for period in (LOGGED, EVALUATED, SAMPLED))
        return lines.count(step) < wanted

    def wait_for(self, moment: Moment, lives: "Forked | Launched", before: int) -> None:
        """Wait for the moment of a life that came after step `before`; it must not end sooner."""
        conditions: dict[str, Callable[[], bool]] = {
            "evaluating": self.is_evaluating,
            "saving": self.is_saving,
        }
        until = time.monotonic() + 2 * SOON
        if moment.where != "starting":
            for happened in (lambda: self.last() >= before + moment.steps, conditions.get(moment.where)):
                while happened is not None and not happened():
                    assert time.monotonic() < until, f"{moment} after {before}: {lives.said()}"
                    assert lives.is_running(), f"{moment} after {before}: {lives.said()}"
                    time.sleep(0.001)
        time.sleep(moment.seconds)

    def note(self, before: int) -> None:
        """Count a life by what it was doing when it was killed, as it left the folder, not as was meant."""
        last = self.last()
        if self.is_saving():
            self.ended["saving"] += 1
        if last <= before:
            self.ended["starting"] += 1
        elif self.is_evaluating():
            self.ended["evaluating or sampling"] += 1
        elif UPDATES * last % EPOCH:
            self.ended["training, in the middle of an epoch"] += 1
        else:
            self.ended["training, between two epochs"] += 1

    def assert_whole(self) -> None:
        """Every checkpoint that has its name opens, with all its hashes."""
        for checkpoint in self.runs.glob("*/*/checkpoints/*"):
            open_checkpoint(checkpoint, hashes=True)


def steps_logged(runs: Path) -> int:
    return max((file.read_bytes().count(b"\n") for file in runs.glob("*/*/metrics.jsonl")), default=0)


def assert_same_run(run: Path, alone: Path) -> None:
    """The same checkpoints with the same bits, and the same metrics, each step once."""
    names, expected = ([path.name for path in checkpoints_in(each)] for each in (run, alone))
    assert names == expected
    assert_same_course(run, alone)


def assert_same_course(run: Path, alone: Path) -> None:
    """As `assert_same_run`, but the run may have more checkpoints than the one left alone."""
    for path in checkpoints_in(alone):
        assert tensors_of(run / "checkpoints" / path.name) == tensors_of(path), path.name
    metrics = metrics_of(run)
    assert metrics == metrics_of(alone)
    trained = [step for step, values in metrics if "generator/loss" in values]
    assert trained == list(range(1, trained[-1] + 1))
    first, second = (open_checkpoint(checkpoints_in(each)[-1]).state for each in (run, alone))
    assert {**first, "run": ""} == {**second, "run": ""}


def newest_step(run: Path) -> int:
    return step_of(checkpoints_in(run)[-1])
