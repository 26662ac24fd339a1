"""Writes a checkpoint whole or not at all: beside its place, synced, then renamed into it."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtrain.checkpoint.read import checkpoints_in, step_of
from dtrain.checkpoint.snapshot import Shard, Snapshot
from dtrain.checkpoint.tensor_files import Written, write_files
from dtrain.errors import CheckpointError
from dtrain.format.files import (
    FORMAT,
    MANIFEST,
    PARTIAL,
    PARTS,
    RECIPE,
    STATE,
    canonical,
    check_amount,
    folder_name,
    hash_of,
    index_name,
    sealed,
    sync,
    write_synced,
)


@dataclass(frozen=True)
class Ranks:
    """Which of the processes that write together this one is, and how they tell each other of it."""

    rank: int
    gather: Callable[[Any], list[Any]]  # every rank's value, by rank; of what JSON holds


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds besides tensors."""

    step: int
    recipe: str  # resolved
    state: bytes  # JSON, of the moment at which the tensors are copied
    environment: Mapping[str, Any]
    origin: Mapping[str, Any] | None  # the checkpoint of another run that this one began from


def write(run: Path, content: Content, shards: Sequence[Shard], snapshot: Snapshot, ranks: Ranks) -> Path:
    """Write `run/checkpoints/step-...`, each rank its files, and return its path.

    Raises CheckpointError on every rank if any of them cannot write; nothing saved before is touched.
    """
    place = run / "checkpoints" / folder_name(content.step)
    partial = run / PARTIAL / folder_name(content.step)

    def prepare() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(exist_ok=True)  # not the run's folder: what is gone is not to come back empty
        partial.mkdir()
        place.parent.mkdir(exist_ok=True)

    def write_share() -> dict[str, Any]:
        snapshot.wait()
        own = [shard for shard in shards if shard.rank == ranks.rank]
        written = write_files(
            {partial / each.file: {name: snapshot[each.part, name] for name in each.names} for each in own}
        )
        return {path.name: list(entry) for path, entry in written.items()}  # as JSON takes it

    def finish() -> None:
        written = {name: Written(*entry) for share in shares for name, entry in share.items()}
        _seal(partial, content, shards, written)
        partial.rename(place)
        sync(place.parent)

    _together(ranks, prepare if ranks.rank == 0 else _nothing, place)
    shares = _together(ranks, write_share, place)
    _together(ranks, finish if ranks.rank == 0 else _nothing, place)
    return place


def _seal(partial: Path, content: Content, shards: Sequence[Shard], written: Mapping[str, Written]) -> None:
    """Write all that is no tensor, the manifest last, and see that the folder is on the disk."""
    tensors = {
        f"{shard.part}/{name}": digest
        for shard in shards
        for name, digest in written[shard.file].tensors.items()
    }
    small = {RECIPE: content.recipe.encode(), STATE: content.state}
    for part in PARTS:
        if own := [shard for shard in shards if shard.part == part]:
            small[index_name(part)] = _index(own, written)
    files = {name: {"size": each.size, "hash": each.header} for name, each in written.items()}
    for name, data in small.items():
        check_amount(data, partial / name)
        write_synced(partial / name, data)
        files[name] = {"size": len(data), "hash": hash_of(data)}
    manifest = {
        "format": FORMAT,
        "step": content.step,
        "files": files,
        "tensors": tensors,
        "environment": content.environment,
        "origin": content.origin,
    }
    data = sealed(manifest)
    check_amount(data, partial / MANIFEST)
    write_synced(partial / MANIFEST, data)
    sync(partial)


def _index(shards: Sequence[Shard], written: Mapping[str, Written]) -> bytes:
    """Which file has each tensor, as Hugging Face's tools look it up."""
    total = sum(written[shard.file].values for shard in shards)
    return canonical(
        {
            "metadata": {"total_size": total},
            "weight_map": {name: shard.file for shard in shards for name in shard.names},
        }
    )


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint: out of sight first, so that it is never seen in part."""
    hidden = checkpoint.parent.parent / PARTIAL / f"removed-{checkpoint.name}"
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        hidden.parent.mkdir(exist_ok=True)
        checkpoint.rename(hidden)
    except OSError as error:
        raise CheckpointError(f"{checkpoint} cannot be removed: {error}") from None
    shutil.rmtree(hidden, ignore_errors=True)


def _together(ranks: Ranks, action: Callable[[], Any], place: Path) -> list[Any]:
    """Do something on every rank; if it fails on any, raise the same CheckpointError on all."""
    try:
        result, problem = action(), ""
    except Exception as error:  # whatever it is, the other ranks are waiting to hear of it
        result, problem = None, f"{type(error).__name__}: {error}"
    results = ranks.gather((result, problem))
    problems = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(results) if text]
    if problems:
        shutil.rmtree(place.parent.parent / PARTIAL / place.name, ignore_errors=True)
        raise CheckpointError(
            f"{place} cannot be written ({'; '.join(problems)}); earlier checkpoints are untouched"
        )
    return [result for result, _ in results]


def _nothing() -> None:
    """What the ranks do that have nothing to do but must hear whether it went well."""


def keep(run: Path, kept: Callable[[Sequence[int]], set[int]]) -> None:
    """Delete the checkpoints of a run but those that `kept` names of their steps, which are in order."""
    found = checkpoints_in(run)
    stay = kept([step_of(path) for path in found])
    for path in found:
        if step_of(path) not in stay:
            remove(path)
