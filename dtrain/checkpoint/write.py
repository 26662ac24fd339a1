"""Writes a checkpoint whole or not at all: beside its place, synced, then renamed into it."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dtrain.checkpoint.read import checkpoints_in
from dtrain.engines.base import Engine
from dtrain.errors import CheckpointError
from dtrain.format.files import (
    FORMAT,
    MANIFEST,
    PARTS,
    RECIPE,
    STATE,
    canonical,
    folder_name,
    hash_of,
    hash_of_file,
    sealed,
    shard_name,
    sync,
    write_synced,
)

PARTIAL = ".partial"  # beside checkpoints/: what is being written or removed


def write(
    run: Path,
    *,
    step: int,
    engine: Engine,
    recipe: str,
    state: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Path:
    """Write `run/checkpoints/step-...`, each rank its share of the tensors, and return its path.

    Raises CheckpointError on every rank if any of them cannot write; nothing saved before is touched.
    """
    place = run / "checkpoints" / folder_name(step)
    partial = run / PARTIAL / folder_name(step)

    def prepare() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        place.parent.mkdir(exist_ok=True)

    def finish() -> None:
        files = {name: entry for share in shares for name, entry in share["files"].items()}
        tensors = {name: digest for share in shares for name, digest in share["tensors"].items()}
        for name, data in ((RECIPE, recipe.encode()), (STATE, canonical(state))):
            write_synced(partial / name, data)
            files[name] = {"size": len(data), "hash": hash_of(data)}
        manifest = {
            "format": FORMAT,
            "step": step,
            "files": files,
            "tensors": tensors,
            "environment": environment,
        }
        write_synced(partial / MANIFEST, sealed(manifest))
        sync(partial)
        partial.rename(place)
        sync(place.parent)

    together(engine, prepare if engine.rank == 0 else _nothing, place)
    shares = together(engine, lambda: _write_share(partial, engine), place)
    together(engine, finish if engine.rank == 0 else _nothing, place)
    return place


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


def together(engine: Engine, action: Callable[[], Any], place: Path) -> list[Any]:
    """Do something on every rank; if it fails on any, raise the same CheckpointError on all."""
    try:
        result, problem = action(), ""
    except Exception as error:  # whatever it is, the other ranks are waiting to hear of it
        result, problem = None, f"{type(error).__name__}: {error}"
    results = engine.gather((result, problem))
    problems = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(results) if text]
    if problems:
        shutil.rmtree(place.parent.parent / PARTIAL / place.name, ignore_errors=True)
        raise CheckpointError(
            f"{place} cannot be written ({'; '.join(problems)}); earlier checkpoints are untouched"
        )
    return [result for result, _ in results]


def _write_share(partial: Path, engine: Engine) -> dict[str, Any]:
    """This rank's files: of each part, the tensors that keep the ranks' shares even."""
    sizes: dict[str, dict[str, int]] = {part: {} for part in PARTS}
    for part, name, size in engine.sizes():
        sizes[part][name] = size
    owners = {part: assign(named, engine.world) for part, named in sizes.items()}
    own: dict[str, dict[str, torch.Tensor]] = {part: {} for part in PARTS}
    for part, name, tensor in engine.tensors():  # whole for a moment on every rank, where models are split
        if owners[part][name] == engine.rank:
            own[part][name] = tensor.cpu().contiguous()
    files: dict[str, Any] = {}
    digests: dict[str, str] = {}
    for part, named in own.items():
        if named:
            path = partial / shard_name(part, engine.rank + 1, len(set(owners[part].values())))
            save_file(named, path)
            sync(path)
            files[path.name] = {"size": path.stat().st_size, "hash": hash_of_file(path)}
        for name, tensor in named.items():
            digests[f"{part}/{name}"] = hash_of(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return {"files": files, "tensors": digests}


def assign(sizes: Mapping[str, int], world: int) -> dict[str, int]:
    """The rank that writes each tensor: the largest first, each to the rank with the least so far."""
    loads = [0] * world
    owners = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owners[name] = rank = loads.index(min(loads))
        loads[rank] += max(sizes[name], 1)
    return owners


def _nothing() -> None:
    """What the ranks do that have nothing to do but must hear whether it went well."""


def keep(run: Path, *, newest: int, best: Sequence[int]) -> None:
    """Delete all checkpoints of a run but the newest ones and those of the steps in `best`."""
    found = checkpoints_in(run)
    kept = {folder_name(step) for step in best} | {path.name for path in found[-newest:]}
    for path in found:
        if path.name not in kept:
            remove(path)
