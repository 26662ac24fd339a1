"""Runs as they lie on disk: where they are, and how each of them stands. Looking at one changes nothing."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli

from dtrain.errors import CheckpointError, DtrainError
from dtrain.format.addresses import address
from dtrain.format.checkpoints import checkpoints_in, glance_at, is_checkpoint, step_of
from dtrain.format.files import MANIFEST, RECIPE, STATE, folder_name, parse, read_small
from dtrain.format.locks import LOCK, RUNNING, is_held
from dtrain.format.metrics import BROKEN, METRICS, Latest, latest_in

State = Literal["running", "finished", "stopped early", "cut off", "no checkpoint yet", "damaged"]
LARGEST = 1 << 20  # bytes of a recipe


@dataclass(frozen=True)
class Best:
    """The best evaluation of a run by the metric that its recipe names."""

    metric: str
    mode: str  # "min" or "max"
    step: int
    value: float


@dataclass(frozen=True)
class Standing:
    """How a run stands.

    `step` is that of its newest checkpoint; while it runs, the last that it told of. `problem` says what is
    damaged.
    """

    state: State
    step: int
    total: int | None  # None where no checkpoint says it yet
    best: Best | None
    latest: Latest
    problem: str = ""


def standing(run: Path) -> Standing:
    """How a run stands, by its lock, its newest checkpoint, and the end of its metrics.

    Of hashes none is checked, so that hundreds of runs take no time; `dtrain inspect` and `evaluate` do that.
    """
    is_running = is_held(run)  # before its checkpoints are looked at, as it may end meanwhile
    checkpoints = checkpoints_in(run)
    newest = next(reversed(checkpoints), None)
    try:
        latest = latest_in(run / METRICS)
        saved: Mapping[str, Any] = {} if newest is None else _state_in(newest)
        done, total = (whole_number(saved, key) for key in ("step", "total")) if saved else (0, None)
    except DtrainError as error:
        done = 0 if newest is None else step_of(newest)
        total = _total_said(run, checkpoints)
        return Standing("running" if is_running else "damaged", done, total, None, Latest(), str(error))
    if total is None and is_running:
        total = _steps_asked_for(run)
    state: State = "running" if is_running else "no checkpoint yet" if newest is None else ended(saved)
    step = max(done or 0, latest.step) if is_running else done or 0
    return Standing(state, step, total, best_of(saved), latest)


def ended(saved: Mapping[str, Any]) -> Literal["finished", "stopped early", "cut off"]:
    """How a run that nobody works on ended, by the state in its newest checkpoint."""
    if whole_number(saved, "step") >= whole_number(saved, "total"):
        return "finished"
    return "stopped early" if _is_stale(saved) else "cut off"


def outcome(checkpoint: Path, saved: Mapping[str, Any]) -> str:
    """How a run ended with a checkpoint, by its state, or went on from it; "" of one that is in no run."""
    if (how := ended(saved)) != "cut off":
        return how
    folder = checkpoint.absolute().parent
    inside = checkpoints_in(folder.parent) if folder.name == "checkpoints" else []
    if checkpoint.absolute() not in inside:
        return ""
    if inside[-1] != checkpoint.absolute():
        return f"the run went on to step {step_of(inside[-1]):,}"
    return "running" if is_held(folder.parent) else how


def ended_early(checkpoint: Path) -> bool:
    """Whether a run ended with this checkpoint because it no longer became better."""
    try:
        return _is_stale(parse(read_small(checkpoint / STATE), checkpoint / STATE))
    except CheckpointError:
        return False


def best_of(saved: Mapping[str, Any]) -> Best | None:
    """The best evaluation up to a checkpoint, by the state in it; None where there is none."""
    match saved.get("best"):
        case {"metric": str(metric), "mode": str(mode), "at": [int(step), int() | float() as value]}:
            return Best(metric, mode, step, float(value))
    return None


def whole_number(saved: Mapping[str, Any], key: str) -> int:
    """A number of the state in a checkpoint. Raises CheckpointError if it has none there."""
    value = saved.get(key)
    if type(value) is not int:
        raise CheckpointError(f"{STATE} does not say {key}, a whole number")
    return value


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return not (path / MANIFEST).exists() and ((path / RECIPE).is_file() or (path / "checkpoints").is_dir())


def runs_in(folder: Path) -> list[Path]:
    """The runs of a folder of runs, of runs/NAME, or the one that it is itself; newest first."""
    if is_run(folder):
        return [folder]
    inside = list(_folders(folder))
    own = [path for path in inside if is_run(path)]
    below = [run for path in inside if path not in own for run in _folders(path) if is_run(run)]
    return sorted((*own, *below), key=lambda run: run.name, reverse=True)


def run_name(run: Path) -> str:
    """The name of the recipe that a run is of, after which the folder above it is called."""
    return run.absolute().parent.name


def run_before(run: Path) -> Path | None:
    """The newest run of the same name that is older; None where there is none."""
    return next((other for other in _newest_first(run.parent) if other.name < run.name), None)


def run_at(path: Path) -> Path:
    """The run that a path means: itself, or the newest of runs/NAME. Raises CheckpointError if it is none."""
    if is_run(path):
        return path
    if inside := _newest_first(path):
        return inside[0]
    if (path / MANIFEST).is_file():
        raise CheckpointError(f"{path} is a checkpoint; its run would do: {path.parent.parent}")
    raise CheckpointError(f"{path} {'is no run' if path.exists() else 'does not exist'}; runs/NAME would do")


def checkpoint_at(path: Path | str, *, best: bool = False) -> Path:
    """The checkpoint that a path names: itself, the newest of a run, or its best; one at a URL is fetched.

    Of runs/NAME the newest run that has one is meant. Raises CheckpointError if there is none.
    """
    path = local(path, best=best)
    if is_checkpoint(path):
        if best:
            raise CheckpointError(f"{path} is a checkpoint; --best is for a run")
        return path
    inside = checkpoints_in(path)
    if not inside:
        run = next((run for run in _newest_first(path) if checkpoints_in(run)), None)
        if run is None:
            raise none_at(path)
        return checkpoint_at(run, best=best)
    if not best:
        return inside[-1]
    known = best_of(glance_at(inside[-1]).state)
    found = None if known is None else inside[-1].with_name(folder_name(known.step))
    if found not in inside:
        said = "has no best checkpoint; its recipe would say by which metric: checkpoint.best"
        raise CheckpointError(f"{path} {said}")
    return found


def none_at(path: Path) -> CheckpointError:
    """The mistake of a path that names no checkpoint."""
    if not os.path.exists(path):
        return CheckpointError(f"{path} does not exist; a checkpoint, a run, or runs/NAME would do")
    newest = next((run for run in runs_in(path) if checkpoints_in(run)), None)
    hint = "" if newest is None else f"; the newest run in it that has one is {newest}"
    return CheckpointError(f"{path} is neither a checkpoint nor a run that has one{hint}")


def local(given: str | Path, *, best: bool) -> Path:
    """The path of a run or a checkpoint; of one at a URL, that of a copy: see `dtrain.format.remote`."""
    where = address(given)
    if isinstance(where, Path):
        return where
    from dtrain.format.remote import fetched  # which takes its time to import

    return fetched(where, best=best)


def size_and_time(run: Path) -> tuple[int, float]:
    """Bytes of all files of a run, and when the last of them was written."""
    size, moved, folders = 0, 0.0, [str(run)]
    while folders:
        for entry in _entries(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.name not in (LOCK, RUNNING):
                found = _stat(entry)
                size, moved = size + found[0], max(moved, found[1])
    return size, moved


def _state_in(checkpoint: Path) -> dict[str, Any]:
    """The state in a checkpoint. Raises CheckpointError if a file is missing, cut short, or not JSON."""
    file = checkpoint / MANIFEST
    try:
        for name, entry in parse(read_small(file), file)["files"].items():
            file = checkpoint / name
            if (found := file.stat().st_size) != entry["size"]:
                raise CheckpointError(f"{file} was cut short or altered: {found} bytes, not {entry['size']}")
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except (OSError, *BROKEN) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    return parse(read_small(checkpoint / STATE), checkpoint / STATE)


def _is_stale(saved: Any) -> bool:
    match saved:
        case {"best": {"stale": bool(stale)}}:
            return stale
    return False


def _total_said(run: Path, checkpoints: Sequence[Path]) -> int | None:
    """The steps of the whole run, by its newest checkpoint that can be read, or else by its recipe."""
    for checkpoint in reversed(checkpoints):
        with suppress(CheckpointError):
            return whole_number(_state_in(checkpoint), "total")
    return _steps_asked_for(run)


def _steps_asked_for(run: Path) -> int | None:
    """The steps of a run, where its recipe counts them."""
    try:
        with (run / RECIPE).open("rb") as file:
            steps = tomli.loads(file.read(LARGEST).decode())["train"]["steps"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return steps if type(steps) is int else None


def _newest_first(folder: Path) -> list[Path]:
    """The runs of a folder, as runs/NAME is one; IDs begin with the time."""
    return sorted(filter(is_run, _folders(folder)), key=lambda run: run.name, reverse=True)


def _folders(folder: Path) -> Iterator[Path]:
    """The folders in one, but for hidden ones: runs that are being made."""
    for entry in _entries(folder):
        if not entry.name.startswith(".") and entry.is_dir():
            yield Path(entry.path)


def _stat(entry: os.DirEntry[str]) -> tuple[int, float]:
    """Bytes of a file, and when it was written; nothing of one that was there a moment ago."""
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:
        return 0, 0.0
    return found.st_size, found.st_mtime


def _entries(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:  # it is gone, or not for us to read
        return
