"""What came of a sweep, for whoever reads it without Optuna: trials.json, and the best trial's recipe."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from dtrain.errors import DtrainError
from dtrain.format.files import write_synced
from dtrain.format.sweeps import TRIALS
from dtrain.recipe.cells import in_words, thawed
from dtrain.recipe.write import to_toml
from dtrain.spec.words import in_line
from dtrain.sweep.locks import held
from dtrain.sweep.setup import Setup
from dtrain.sweep.study import Record, Study

BEST = "best.toml"


def write_results(setup: Setup, study: Study) -> None:
    """Write both anew. Raises DtrainError if they cannot be written."""
    try:
        with held(setup.folder / ".lock"):  # or what is older could be written over what is newer
            records = study.records()
            table = {
                "sweep": setup.name,
                "identity": setup.identity,
                "recipe": setup.base.name,
                "metric": setup.metric,
                "mode": setup.mode,
                "axes": list(setup.sweep.axes),
                "trials": [as_table(record) for record in records],
            }
            _replace(setup.folder / TRIALS, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
            if (best := best_of(records, setup.mode)) is not None:
                _replace(setup.folder / BEST, _recipe_of(setup, best))
    except OSError as error:
        raise DtrainError(f"{setup.folder} cannot be written: {error}") from None


def set_aside(setup: Setup) -> list[Path]:
    """Give what another sweep of this name has left names of its own; which."""
    try:
        with held(setup.folder / ".lock"):
            found = json.loads((setup.folder / TRIALS).read_text()).get("identity", "before")
            if found == setup.identity:
                return []
            kept = []
            for name in (TRIALS, BEST):
                path = setup.folder / name
                if path.exists():
                    kept.append(path.rename(path.with_stem(f"{path.stem}-{found}")))
            return kept
    except (OSError, ValueError, AttributeError):  # nobody has left any
        return []


def as_table(record: Record) -> dict[str, Any]:
    """All that is known of a trial."""
    return {
        "trial": record.number,
        "state": "cut off" if record.state == "running" else record.state,
        "settings": thawed(record.settings),
        "value": record.value,
        "values": list(record.values),
        "step": max(record.curve, default=None),
        "runs": list(record.runs),
        "cause": record.cause or None,
    }


def best_of(records: Sequence[Record], mode: Literal["max", "min"]) -> Record | None:
    """The trial with the best value, the first of several; None where none has one."""
    found = [record for record in records if record.value is not None]
    sign = 1 if mode == "min" else -1
    return min(found, key=lambda record: (sign * (record.value or 0.0), record.number), default=None)


def ranked(records: Sequence[Record], mode: Literal["max", "min"]) -> list[Record]:
    """Trials, the best first, then those that were ended early by how far they came, then all others."""
    sign = 1 if mode == "min" else -1

    def place(record: Record) -> tuple[int, float, int]:
        if record.value is not None:
            return 0, sign * record.value, record.number
        step = max(record.curve, default=0)
        return (1 if record.state == "pruned" else 2), -step, record.number

    return sorted(records, key=place)


def outcome(record: Record, metric: str) -> str:
    """What came of a trial, in words."""
    step = max(record.curve, default=0)
    match record.state:
        case "finished":
            many = f" (mean of {len(record.values)})" if len(record.values) > 1 else ""
            return f"{metric} {record.value:.6g}{many}"
        case "pruned":
            return f"ended early at step {step}, {metric} {record.curve[step]:.6g}"
        case "failed":
            return f"failed: {in_line(record.cause, 500)}"
    return "saved, to be carried on"


def _recipe_of(setup: Setup, best: Record) -> str:
    head = f"# Trial {best.number} of the sweep {setup.name}: {setup.metric} {best.value:.6g}"
    settings = f"\n#     {in_words(best.settings)}" if best.settings else ""
    return f"{head}{settings}\n{to_toml(setup.recipe(best.settings))}"


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    write_synced(new, text.encode())
    new.replace(path)
