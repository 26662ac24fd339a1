"""A small program that trains in the world it is started in, and the means to start it: for test_launch.py.

As a program, `launching.py read|train|twice|fail|stay`: each process says in a line of JSON what it saw.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from dtrain.errors import LaunchError, RankError
from dtrain.world.world import World, read_world, tie_to_launcher

PROGRAM = Path(__file__).resolve()
ROOT = PROGRAM.parent.parent
ACCELERATE = [str(Path(sys.executable).with_name("accelerate")), "launch"]
TORCHRUN = [str(Path(sys.executable).with_name("torchrun"))]
TIMEOUT = timedelta(seconds=60)


@dataclass(frozen=True)
class Ended:
    """What is left of a launch: its exit code, what each process saw (by rank), and what it complained of."""

    code: int
    seen: list[dict[str, Any]]
    errors: str


def start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a command as from a fresh shell: no launcher's variables, no cached file, no GPU."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    ours = {"PYTHONPATH": str(ROOT), "HF_HOME": "/nonexistent", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command,
        env={**kept, **ours, **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(launcher: Sequence[str], mode: str, **environment: str) -> subprocess.Popen[str]:
    """Start the program under a launcher."""
    return start([*launcher, str(PROGRAM), mode], environment)


def launch_ranks(environments: Sequence[Mapping[str, str]], mode: str) -> list[subprocess.Popen[str]]:
    """Start the program once for each environment, with no launcher but these variables."""
    return [start([sys.executable, str(PROGRAM), mode], each) for each in environments]


def wait(processes: Sequence[subprocess.Popen[str]]) -> Ended:
    """Wait for all; the code is 0 or the first that is not."""
    ended = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    lines = [line for output, _, _ in ended for line in output.splitlines() if line.startswith("{")]
    return Ended(
        code=next((code for _, _, code in ended if code), 0),
        seen=sorted((json.loads(line) for line in lines), key=lambda line: line["rank"]),
        errors="".join(errors for _, errors, _ in ended),
    )


def read_pids(launcher: subprocess.Popen[str], size: int) -> list[int]:
    """Wait until every process of the world has joined and said its process id."""
    assert launcher.stdout is not None
    lines = (line for line in launcher.stdout if line.startswith("{"))
    return [json.loads(next(lines))["pid"] for _ in range(size)]


def survivors(pids: Sequence[int], seconds: float) -> list[int]:
    """Return which of the processes still run after so many seconds, and end them."""
    until = time.monotonic() + seconds
    while (running := [pid for pid in pids if _runs(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in running:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    return running


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _main(mode: str) -> int:
    world = read_world(os.environ)
    tie_to_launcher(world)
    for _ in range(2 if mode == "twice" else 1):
        seen = asdict(world) if mode == "read" else _join(world, mode)
        # One write a line: the lines of two processes on one pipe stay whole.
        os.write(1, (json.dumps(seen) + "\n").encode())
    return 0


def _join(world: World, mode: str) -> dict[str, Any]:
    """Take one optimizer step on an input that differs by rank; return the world and the mean gradient."""
    import torch

    from dtrain.world.lookout import Lookout
    from dtrain.world.position import Position
    from dtrain.world.processes import join

    with join(world, TIMEOUT, Lookout(Position(), patience=30)) as accelerator:
        model = accelerator.prepare(torch.nn.Linear(1, 1, bias=False))
        optimizer = torch.optim.SGD(model.parameters())
        step = 0
        while step == 0 or mode in ("stay", "fail"):
            if mode == "fail" and step == 3 and world.rank == 1:
                raise ArithmeticError("rank 1 gives up")
            optimizer.zero_grad()
            model(torch.full((1, 1), world.rank + 1.0)).sum().backward()
            optimizer.step()
            if mode == "stay" and step == 1:
                os.write(1, (json.dumps({"rank": world.rank, "pid": os.getpid()}) + "\n").encode())
            step += 1
        (weight,) = model.parameters()
        return {
            **asdict(world),
            "accelerate": [accelerator.num_processes, accelerator.process_index],
            "wrapper": type(model).__name__,
            "mixed_precision": accelerator.mixed_precision,
            "torch_threads": torch.get_num_threads(),
            "gradient": weight.grad.item(),
        }


if __name__ == "__main__":
    try:
        code = _main(sys.argv[1])
    except LaunchError as error:
        sys.exit(f"LaunchError: {error}")
    except RankError as error:
        code = error.status
    if "torch" in sys.modules:
        from dtrain.world.processes import leave

        leave(code)
