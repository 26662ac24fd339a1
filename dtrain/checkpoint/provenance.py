"""Where a checkpoint was made: what its numbers depend on besides the recipe and the data."""

import platform
import subprocess
from importlib.metadata import version
from typing import Any

from dtrain.engines.base import Engine
from dtrain.recipe.write import encode
from dtrain.scale.tables import Scale


def provenance(engine: Engine, scale: Scale) -> dict[str, Any]:
    """Versions, device, world and commit."""
    import torch

    packages = ("dtrain", "torch", "numpy", "accelerate", "safetensors")
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "cpu",
        "engine": encode(scale.engine),
        "world": engine.world,
        "threads": torch.get_num_threads(),
        "git": _git_commit(),
    }


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
