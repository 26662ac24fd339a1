"""What a sweep left behind in a folder of runs, read without who made it: the table of its trials."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dtrain.errors import DtrainError

SWEEPS = "sweeps"  # the folder of all, in the folder of runs
TRIALS = "trials.json"


def read_sweep(runs: Path, name: str) -> dict[str, Any]:
    """The table of a sweep in a folder of runs. Raises DtrainError if there is none."""
    path = runs / SWEEPS / name / TRIALS
    try:
        table = json.loads(path.read_text())
        if not isinstance(table, Mapping) or not isinstance(table.get("trials"), list):
            raise ValueError("it is no table of trials")
    except FileNotFoundError:
        there = sorted(file.parent.name for file in (runs / SWEEPS).glob(f"*/{TRIALS}"))
        known = f"there {'is' if len(there) == 1 else 'are'} {', '.join(there)}" if there else "there is none"
        raise DtrainError(f"{runs} has no sweep {name!r}; {known}") from None
    except (OSError, ValueError) as error:
        raise DtrainError(f"{path} cannot be read: {error}") from None
    return dict(table)


def short(keys: Sequence[str]) -> dict[str, str]:
    """Dotted keys by their last parts, as many as tell them apart."""
    found: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        for length in range(1, len(parts) + 1):
            end = ".".join(parts[-length:])
            if sum(other in (key, end) or other.endswith(f".{end}") for other in keys) == 1:
                break
        found[key] = end
    return found
