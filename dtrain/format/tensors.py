"""The tensors of a checkpoint, found by the headers of its files, and read one at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dtrain.errors import CheckpointError
from dtrain.format.checkpoints import Checkpoint, check_file
from dtrain.format.files import MANIFEST, hash_of
from dtrain.format.hashes import holds_tensors, other_than_hashed, part_of
from dtrain.format.safetensors_header import Stored, read_header


class Located(NamedTuple):
    """A tensor of a checkpoint, the file that it lies in, and the hash that its values should have."""

    file: Path
    stored: Stored
    hash: str
    form: int  # of the checkpoint, which says what a hash is

    def read(self) -> bytearray:
        """Its values. Raises CheckpointError if they cannot be read, or are not those that were saved."""
        values = bytearray(self.stored.size)  # once, where `read` would join what it had buffered
        try:
            with self.file.open("rb") as file:
                file.seek(self.stored.start)
                file.readinto(values)
        except OSError as error:
            raise CheckpointError(f"{self.file} cannot be read: {error}") from None
        if hash_of(memoryview(values), self.form) != self.hash:
            raise CheckpointError(other_than_hashed(self.file, self.stored.name))
        return values


def locate(checkpoint: Checkpoint, part: str) -> dict[str, Located]:
    """The tensors of one part ("models", "optimizers", "averages"), in however many files, by canonical name.

    Files and headers are checked here, values when they are read. Raises CheckpointError if a file is
    missing, is not as it was, or has tensors that are not listed.
    """
    listed = {
        key.partition("/")[2]: str(digest)
        for key, digest in checkpoint.manifest["tensors"].items()
        if key.startswith(f"{part}/")
    }
    found: dict[str, Located] = {}
    for name in sorted(checkpoint.manifest["files"]):
        if not (holds_tensors(name) and part_of(name) == part):
            continue
        check_file(checkpoint.path, name, checkpoint.manifest)
        file = checkpoint.path / name
        for stored in read_header(file).values():
            if stored.name in found or stored.name not in listed:
                raise CheckpointError(
                    f"{file} has a tensor that {MANIFEST} does not list there: {stored.name}"
                )
            found[stored.name] = Located(file, stored, listed[stored.name], checkpoint.format)
    if missing := sorted(listed.keys() - found.keys()):
        raise CheckpointError(
            f"{checkpoint.path}: no file has {missing[0]} of {part}, which {MANIFEST} lists"
        )
    return found


def model_names(tensors: Mapping[str, Located]) -> list[str]:
    """The models that canonical names belong to: generator of `generator/3.weight`."""
    return list(dict.fromkeys(sorted(name.partition("/")[0] for name in tensors)))


def of_model(tensors: Mapping[str, Located], model: str) -> dict[str, Located]:
    """The tensors of one model, by their names in it."""
    return {name.partition("/")[2]: each for name, each in tensors.items() if name.partition("/")[0] == model}
