"""One model's weights out of a checkpoint, as files that others open: merged, split, in another precision.

Tensors are read, checked and written one at a time, so no more than one is in memory.
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dtrain.errors import CheckpointError
from dtrain.format.checkpoints import NAME, Checkpoint, read_manifest
from dtrain.format.files import MANIFEST, canonical, in_groups, shard_name, sync
from dtrain.format.runs import whole_number
from dtrain.format.safetensors_header import BYTES, Stored, header_bytes, read_header
from dtrain.format.tensors import Located, locate, model_names, of_model
from dtrain.spec.words import nearest

Precision = Literal["fp64", "fp32", "bf16", "fp16"]
NAMES: dict[Precision, str] = {"fp64": "F64", "fp32": "F32", "bf16": "BF16", "fp16": "F16"}  # in safetensors
INDEX = "model.safetensors.index.json"
CONFIGS = (INDEX, "config.json")  # one of which is in every folder that is written here
WRITTEN = (".safetensors", ".json")  # all that is in it
PIECE = 1 << 20  # bytes copied at once


@dataclass(frozen=True)
class Weights:
    """What is written of one model, and where it came from."""

    model: str
    tensors: Mapping[str, Located]  # by their names in the model: 3.weight
    dtype: Precision | None  # of every float; None as they are
    source: Mapping[str, str]  # told in the metadata of every file

    def planned(self) -> list[Stored]:
        """Each tensor as it will be, but for its place."""
        return [self._planned(name, located.stored) for name, located in sorted(self.tensors.items())]

    def _planned(self, name: str, stored: Stored) -> Stored:
        is_float = self.dtype is not None and stored.dtype in NAMES.values()
        dtype = NAMES[self.dtype] if self.dtype is not None and is_float else stored.dtype
        size = stored.size // BYTES[stored.dtype] * BYTES[dtype]
        return stored._replace(name=name, dtype=dtype, size=size)

    def values(self, planned: Stored) -> bytes | bytearray:
        """The values of a tensor as they will be. Raises CheckpointError if they are not what was saved."""
        located = self.tensors[planned.name]
        values, given = located.read(), located.stored.dtype
        if given == planned.dtype:
            return values
        from dtrain.backends.torch_cast import cast

        return cast(planned.name, values, given, planned.dtype)


def weights_of(
    checkpoint: Checkpoint, model: str | None, *, averages: bool, dtype: Precision | None
) -> Weights:
    """The weights of a model of a checkpoint: of its average, if it has one and `averages` are asked for.

    `model` may be left out where there is one. Raises CheckpointError if there is no such model, or its files
    are not those that were saved.
    """
    saved = locate(checkpoint, "models")
    names = model_names(saved)
    if model is None and len(names) != 1:
        found = f"has {', '.join(names)}; say which: --model {names[0]}" if names else "has no models"
        raise CheckpointError(f"{checkpoint.path} {found}")
    chosen = names[0] if model is None else model
    if chosen not in names:
        near = nearest(chosen, names)
        hint = "" if near is None else f'; did you mean "{near}"?'
        raise CheckpointError(f'{checkpoint.path} has no model "{chosen}"; it has {", ".join(names)}{hint}')
    averaged = of_model(locate(checkpoint, "averages"), chosen) if averages else {}
    place = checkpoint.path.absolute()
    source = {
        "source": "/".join(place.parts[-4:]),  # NAME/ID/checkpoints/step-00000008
        "checksum": checkpoint.checksum,
        "step": str(whole_number(checkpoint.state, "step")),
        "model": chosen,
        "weights": "average" if averaged else "model",
    }
    return Weights(chosen, {**of_model(saved, chosen), **averaged}, dtype, source)


def write_file(weights: Weights, path: Path, planned: Sequence[Stored]) -> None:
    """Write a safetensors file of some of the weights. Raises CheckpointError if they cannot be one."""
    try:
        header, ordered = header_bytes(planned, weights.source)
    except ValueError as error:
        raise CheckpointError(f"{error}; a folder with a smaller --shard-bytes would do") from None
    with path.open("xb") as file:
        file.write(header)
        for each in ordered:
            file.write(weights.values(each))


def write_shards(weights: Weights, folder: Path, shard_bytes: int) -> None:
    """Write files of at most so many bytes of weights, or of one tensor that has more, and their index."""
    shards = in_groups(weights.planned(), lambda each: each.size, shard_bytes)
    files = {shard_name("model", number, len(shards)): shard for number, shard in enumerate(shards, 1)}
    for name, shard in files.items():
        write_file(weights, folder / name, shard)
    total = sum(each.size for shard in shards for each in shard)
    homes = {each.name: name for name, shard in files.items() for each in shard}
    index = {"metadata": {"total_size": total, **weights.source}, "weight_map": homes}
    (folder / INDEX).write_bytes(canonical(index))


def tell_source(path: Path, source: Mapping[str, str]) -> None:
    """Write into the metadata of a file that is there where its weights came from."""
    places = read_header(path)
    header, ordered = header_bytes(places.values(), source)
    with path.open("rb") as old, path.with_suffix(".told").open("xb") as new:
        new.write(header)
        for each in ordered:
            old.seek(places[each.name].start)
            left = each.size
            while left:
                piece = old.read(min(left, PIECE))
                new.write(piece)
                left -= len(piece)
    path.with_suffix(".told").replace(path)


@contextmanager
def appearing(out: Path, *, force: bool) -> Iterator[Path]:
    """A path beside `out` to write to, which takes its name when all is written; nothing stays of a failure.

    Raises CheckpointError if `out` is there, but for what is of its sort where `force` says so, or if it
    cannot be written.
    """
    _check_free(out, force)
    hidden = out.parent / f".{out.name}.{secrets.token_hex(4)}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield hidden
        if hidden.is_dir():
            for path in hidden.iterdir():
                sync(path)
        sync(hidden)
        _take_name(hidden, out)
        sync(out.parent)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error}") from None
    finally:
        if hidden.is_dir():
            shutil.rmtree(hidden, ignore_errors=True)
        hidden.unlink(missing_ok=True)


def _check_free(out: Path, force: bool) -> None:
    """Raise CheckpointError if something is there that is not to be replaced."""
    if whole := next(filter(_is_ours, (out.parent / "x").resolve().parents), None):
        raise CheckpointError(f"{out} would be a part of the checkpoint {whole}; another name would do")
    if not os.path.lexists(out):
        if out.absolute().parent.name == "checkpoints" and NAME.fullmatch(out.name):
            raise CheckpointError(f"{out} would be taken for a checkpoint of its run; another name would do")
        return
    if not force:
        raise CheckpointError(f"{out} is there already; --force replaces it, or another name would do")
    if is_file(out):
        if not out.is_file():
            raise CheckpointError(f"{out} is not a file, and is not replaced by one; another name would do")
        return
    inside = list(out.iterdir()) if out.is_dir() and not out.is_symlink() else [out]
    names = [path.name for path in inside]
    are_ours = all(path.is_file() and path.suffix in WRITTEN for path in inside) and MANIFEST not in names
    if inside and not (are_ours and any(name in CONFIGS for name in names)):
        raise CheckpointError(f"{out} holds more than weights, and is not replaced; another name would do")


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a checkpoint, by its name or a manifest that can be read."""
    try:
        return bool(NAME.fullmatch(folder.name)) or bool(read_manifest(folder))
    except CheckpointError:
        return False


def is_file(out: Path) -> bool:
    """Whether what is to be written is one file, by its name; else it is a folder."""
    return out.suffix == ".safetensors"


def _take_name(hidden: Path, out: Path) -> None:
    """Rename what is whole; a folder that is there steps aside first, and comes back if that fails."""
    if not out.is_dir():
        os.replace(hidden, out)
        return
    aside = out.parent / f".{out.name}.{secrets.token_hex(4)}.old"
    out.rename(aside)
    try:
        hidden.rename(out)
    except OSError:
        aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
