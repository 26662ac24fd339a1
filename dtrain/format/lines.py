"""Files of a run that grow by a line a step: one JSON object with a step each; a torn last line is none."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dtrain.errors import DtrainError


def whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Every line as it stands, and its object. A last line without its end was torn by a crash: left out.

    Raises DtrainError for any other line that is not an object with a step.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                return
            try:
                values = json.loads(raw)
                if type(values["step"]) is not int or values["step"] < 0:
                    raise ValueError("no step")
            except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
                message = f"{path}:{number}: not a JSON object with a step; mend or delete the line"
                raise DtrainError(message) from error
            yield raw, values


def drop_later(path: Path, step: int) -> None:
    """Keep the whole lines up to `step`: the run will write the later ones again, in the same words."""
    if not path.exists():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.writelines(raw for raw, values in whole_lines(path) if values["step"] <= step)
            file.flush()
            os.fsync(file.fileno())
        if temporary.stat().st_size != path.stat().st_size:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
