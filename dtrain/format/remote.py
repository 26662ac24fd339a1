"""Runs and checkpoints that lie elsewhere, brought here: checked by their manifests, then renamed to stay."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

from dtrain.errors import CheckpointError
from dtrain.format.addresses import address
from dtrain.format.checkpoints import NAME, checkpoints_in, glance_at, open_checkpoint, read_manifest
from dtrain.format.files import MANIFEST, ORIGIN, PARTIAL, RECIPE, RECORD, folder_name, sync, write_synced
from dtrain.format.metrics import METRICS
from dtrain.format.runs import best_of
from dtrain.format.stores import Store
from dtrain.format.urls import open_store


def fetched(given: str | Path, *, best: bool = False, cache: Path | None = None) -> Path:
    """The local path of a checkpoint or a run: of one at a URL, a copy in the cache, whole and of now.

    Of a run its newest checkpoint is copied, and with `best` the best, too. A local path is given back as it
    is, whether anything is there or not. Raises CheckpointError if nothing is at the URL, or not what it
    should be.
    """
    where = address(given)
    if isinstance(where, Path):
        return where
    store, home = open_store(where), cache_folder() if cache is None else cache
    inside = store.entries("")
    own = home / blake2b(where.encode(), digest_size=8).hexdigest()
    with _alone(own):
        if MANIFEST in inside:
            name = where.rpartition("/")[2]
            copy = own / "checkpoints" / (name if NAME.fullmatch(name) else "checkpoint")
            bring(store, "", copy)
            return copy
        copy = own.joinpath(*where.partition("://")[2].split("/")[-2:])  # NAME/ID
        steps = whole_steps(store, "")
        if not steps:
            raise CheckpointError(f"{where} is neither a checkpoint nor a run that has one")
        bring_run(store, "", copy, best=best)
        for path in checkpoints_in(copy):  # what is there no more would be the newest here
            if path.name not in map(folder_name, steps):
                shutil.rmtree(path, ignore_errors=True)
        return copy


def each_fetched(url: str) -> Iterator[tuple[str, Path]]:
    """The URL of a checkpoint, or of each of a run, the oldest first, and a copy as it is there now.

    It is fetched when it is asked for, and gone when the next is.
    """
    own = [f"{url}/{place('', step)}" for step in whole_steps(open_store(url), "")]
    for where in own or [url]:
        with TemporaryDirectory(prefix="dtrain-") as folder:
            yield where, fetched(where, cache=Path(folder))


def cache_folder() -> Path:
    """Where copies lie that were fetched to be looked at: $DTRAIN_CACHE, or dtrain/ in the user's cache."""
    if own := os.environ.get("DTRAIN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtrain"


def whole_steps(store: Store, run: str) -> list[int]:
    """The steps of the checkpoints of a run that are whole there: those that have a manifest."""
    return [step for step in steps_in(store, run) if MANIFEST in store.entries(place(run, step))]


def steps_in(store: Store, run: str) -> list[int]:
    """The steps of all of them, in order, whole or not."""
    names = store.entries(_joined(run, "checkpoints"))
    return sorted(int(name.removeprefix("step-")) for name in names if NAME.fullmatch(name))


def place(run: str, step: int) -> str:
    """Where in a store the checkpoint of a step lies."""
    return _joined(run, f"checkpoints/{folder_name(step)}")


def bring_run(store: Store, run: str, to: Path, *, best: bool) -> None:
    """Copy a run here: its newest whole checkpoint, the best ones if asked for, and what lies beside them."""
    if steps := whole_steps(store, run):
        copy = to / "checkpoints" / folder_name(steps[-1])
        bring(store, place(run, steps[-1]), copy)
        for step in _best_steps(copy) if best else ():
            if step in steps:
                bring(store, place(run, step), copy.with_name(folder_name(step)))
    there, partial = store.entries(run), to / PARTIAL
    try:
        partial.mkdir(exist_ok=True)
        for name in (METRICS, RECORD, ORIGIN, RECIPE):
            if name in there:
                temporary = partial / name
                store.fetch(_joined(run, name), temporary)
                sync(temporary)
                temporary.replace(to / name)
        sync(to)
    except OSError as error:
        raise CheckpointError(f"{to} cannot be written: {error}") from None


def bring(store: Store, folder: str, to: Path) -> None:
    """Copy a checkpoint here, unless that is what lies here; it is checked hash by hash.

    Raises CheckpointError if it is not whole there, naming what is missing or altered.
    """
    manifest = store.read(_joined(folder, MANIFEST))
    if manifest is None:
        raise CheckpointError(f"{store.at(folder)} is not a checkpoint: it has no {MANIFEST}")
    if _is_here(to, manifest):
        return
    partial = to.parent.parent / PARTIAL / to.name
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_synced(partial / MANIFEST, manifest)
        _fill(store, folder, partial)
        open_checkpoint(partial, hashes=True)
        sync(partial)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(to, ignore_errors=True)
        partial.rename(to)
        sync(to.parent)
    except OSError as error:
        raise CheckpointError(f"{to} cannot be written: {error}") from None
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(partial), store.at(folder))) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_here(checkpoint: Path, manifest: bytes) -> bool:
    """Whether the checkpoint of a manifest lies here, whole."""
    try:
        if (checkpoint / MANIFEST).read_bytes() != manifest:
            return False
        open_checkpoint(checkpoint)
    except (OSError, CheckpointError):
        return False
    return True


def _fill(store: Store, folder: str, partial: Path) -> None:
    """Fetch all that a manifest lists, after a look whether it is there, and no larger than it should be."""
    there, files = store.entries(folder), read_manifest(partial)["files"]
    for name, entry in files.items():
        if there.get(name) != entry["size"]:
            said = f"of {there[name]} bytes" if name in there else "missing"
            raise CheckpointError(f"{partial / name} is {said}; {MANIFEST} lists {entry['size']} bytes")
    for name in files:
        store.fetch(_joined(folder, name), partial / name)
        sync(partial / name)


def _best_steps(checkpoint: Path) -> list[int]:
    """The steps of the best checkpoints so far, as one says."""
    state = glance_at(checkpoint).state
    match state.get("best"):
        case {"top": [*top]}:
            return [each[0] for each in top if isinstance(each, list) and each and type(each[0]) is int]
    return [] if (known := best_of(state)) is None else [known.step]


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from what lies in a folder of the cache: the ranks of one machine, say."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / ".lock").open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            said = f"cannot be used to keep copies: {error}; $DTRAIN_CACHE may name another folder"
            raise CheckpointError(f"{folder} {said}") from None
        yield
