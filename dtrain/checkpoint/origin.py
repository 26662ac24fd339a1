"""The checkpoint of another run that one began from: noted in its folder, and found again by its checksum."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtrain.errors import CheckpointError
from dtrain.format.checkpoints import Checkpoint, glance_at
from dtrain.format.files import ORIGIN, canonical, parse, read_small


def origin_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint that another run begins from."""
    return {"path": str(checkpoint.path), "step": checkpoint.step, "checksum": checkpoint.checksum}


def note_of(checkpoint: Path) -> bytes:
    """The same as a file says it. Raises CheckpointError if the checkpoint cannot be read."""
    return canonical(origin_of(glance_at(checkpoint)))


def noted(run: Path) -> Path | None:
    """The checkpoint that a run began from, as its folder says; None of one that began by itself.

    Raises CheckpointError if it is not there any more.
    """
    file = run / ORIGIN
    if not file.exists():
        return None
    match parse(read_small(file), file):
        case {"path": str(), "checksum": str()} as origin:
            return found_again(origin, f"{run} was begun", "--fresh begins anew, --resume from another one")
    raise CheckpointError(f"{file} is not one of dtrain's: it says no path and checksum")


def found_again(origin: Mapping[str, Any], who: str, ways: str = "") -> Path:
    """Where an origin lies. Raises CheckpointError, of `who` began from it, if it is gone or another now."""
    path = Path(origin["path"])
    way = f"; {ways}" if ways else ""
    try:
        found = glance_at(path).checksum
    except CheckpointError as error:
        raise CheckpointError(f"{who} from {path}, which cannot be begun from again: {error}{way}") from None
    if found != origin["checksum"]:
        raise CheckpointError(f"{who} from {path}, which is another checkpoint now{way}")
    return path
