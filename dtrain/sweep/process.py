"""A run of a trial: a process of its own, started as a user would start it, and what it has told so far."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtrain.checkpoint.folders import recipe_of
from dtrain.errors import DtrainError
from dtrain.format.metrics import EVALUATED, METRICS, line_of
from dtrain.spec.words import either, nearest, show, visible

LONGEST = 500  # characters of a cause
PYTHON = (sys.executable, "-m")
# Statuses of a run that somebody ended who did not mean the trial: asked to stop, or killed for its memory.
STOPPED = (130, 143, -signal.SIGKILL, -signal.SIGTERM)


@dataclass(frozen=True)
class Launch:
    """How runs are started: by a file of `accelerate config`, or as one process where there is none."""

    runs: Path
    config: Path | None = None
    scale: Path | None = None
    modules: Path | None = None  # a folder in which a recipe's own modules lie

    @property
    def processes(self) -> int:
        """How many there are of each run. Raises DtrainError if the file that says so cannot be read."""
        if self.config is None:
            return 1
        import yaml  # type: ignore[import-untyped]  # Accelerate brings it, without types

        try:
            found = yaml.safe_load(self.config.read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DtrainError(f"--config {self.config} cannot be read: {error}") from None
        try:
            return int(found.get("num_processes") or 1)
        except (ValueError, AttributeError, TypeError):
            said = "is no file of `accelerate config`; launch/cpu-2.yaml is one"
            raise DtrainError(f"--config {self.config} {said}") from None

    def command(self, recipe: Path) -> list[str]:
        """What is executed for a recipe's file."""
        own = ["run", str(recipe), "--once", "--runs", str(self.runs)]
        own += [] if self.scale is None else ["--scale", str(self.scale)]
        if self.config is None:
            return [*PYTHON, "dtrain", *own]
        launch = ["accelerate.commands.launch", "--config_file", str(self.config)]
        return [*PYTHON, *launch, "--main_process_port", str(_free_port()), "-m", "dtrain", *own]

    def environment(self, devices: Sequence[str], more: Mapping[str, str]) -> dict[str, str]:
        """What the processes see: some of the devices, and where modules are found."""
        found = {**os.environ, **more}
        if self.modules is not None:
            found["PYTHONPATH"] = os.pathsep.join(
                [*filter(None, [found.get("PYTHONPATH")]), str(self.modules.absolute())]
            )
        if devices:
            found["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        return found


class Process:
    """A run's process, or the launcher of its processes: a group of its own, which dies with this one."""

    def __init__(
        self, launch: Launch, recipe: Path, log: Path, environment: Mapping[str, str], holds: Sequence[int]
    ):
        """`holds` are locks, which it keeps although this process should die. It writes into `log`."""
        command = [*PYTHON, "dtrain.sweep.tied", str(os.getpid()), *launch.command(recipe)]
        self.log = log
        with log.open("ab") as output:
            self._start = output.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=holds,
            )

    def status(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to save and to end."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def cause(self) -> str:
        """Why it failed, in its own words where it has any."""
        status = self._process.returncode
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        with self.log.open("rb") as file:
            file.seek(self._start)
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        said = [line for line in lines if line.startswith("dtrain: ")][:1] or [
            line for line in lines if line
        ][-1:]
        own = said[0].removeprefix("dtrain: ") if said else f"ended with {status}, and said nothing"
        return visible(own[:LONGEST])


@dataclass
class Told:
    """What a run has told of a metric, read as it grows; each step once, though a resume writes it again."""

    run: Path
    metric: str
    values: dict[int, float] = field(default_factory=dict)
    _evaluated: dict[str, None] = field(default_factory=dict)  # the names of what evaluations told
    _evaluations: int = 0
    _read: int = 0  # bytes of whole lines

    def news(self) -> Iterator[tuple[int, float]]:
        """Steps that were not known, and what was measured there."""
        try:
            with (self.run / METRICS).open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read:  # a resume has cut it
                    self._read = 0
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")[0]
            lines = [line_of(raw) for raw in whole.splitlines()]
        except (OSError, DtrainError):  # it is not there yet, or was written anew meanwhile
            self._read = 0
            return
        self._read += len(whole) + bool(whole)
        for line in lines:
            told = [name for name in line.numbers if name.startswith(EVALUATED)]
            if len(told) == len(line.numbers):  # of an evaluation alone; a model may be called so
                self._evaluated |= dict.fromkeys(told)
                self._evaluations += bool(told)
            if self.metric in line.numbers and line.step not in self.values:
                self.values[line.step] = line.numbers[self.metric]
                yield line.step, line.numbers[self.metric]

    def lacks(self) -> str | None:
        """What is wrong if two evaluations told of much, but not of the metric; None where nothing is."""
        if self.values or self._evaluations < 2 or not self.metric.startswith(EVALUATED):
            return None
        near = nearest(self.metric, self._evaluated)
        hint = "" if near is None else f"; did you mean {show(near)}?"
        return f"its evaluations tell {either(self._evaluated)}, not {self.metric}{hint}"


@dataclass
class Finder:
    """Looks for the newest run of a resolved recipe; at each folder once, as a run stays what it is."""

    home: Path  # the folder of the runs of its name
    recipe: str
    _others: set[str] = field(default_factory=set)

    def run(self) -> Path | None:
        """The run, where there is one."""
        for run in sorted(self.home.glob("[!.]*"), reverse=True):
            if run.name not in self._others:
                if recipe_of(run) == self.recipe:
                    return run
                self._others.add(run.name)
        return None


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
