"""Where a checkpoint was made: what its numbers depend on besides the recipe and the data."""

import platform
import subprocess
from pathlib import Path
from typing import Any

from dtrain.engines.base import Engine
from dtrain.recipe.write import encode
from dtrain.scale.tables import Scale
from dtrain.world.agreement import versions


def provenance(engine: Engine, scale: Scale) -> dict[str, Any]:
    """Versions, device, world and commit."""
    import torch

    kernels = torch.backends.cpu.get_cpu_capability()  # which of torch's sums are done in which order
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "processor": f"{_processor()} ({kernels})",
        "device": torch.cuda.get_device_name() if engine.device_type == "cuda" else engine.device_type,
        "engine": encode(scale.engine),
        "world": engine.world,
        "threads": torch.get_num_threads(),
        "git": _git_commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, UnicodeDecodeError, StopIteration):
        return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the working folder, and whether it was changed since; None outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
