"""All that is wrong with the files of a checkpoint, where `open_checkpoint` stops at the first problem."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from dtrain.errors import CheckpointError
from dtrain.format.checkpoints import check_file, read_manifest, read_recipe, read_state
from dtrain.format.files import MANIFEST, PARTS, RECIPE, STATE, index_name, parse, read_small
from dtrain.format.hashes import Headers, Problem, Tell, altered, by_part, holds_tensors, misplaced, part_of
from dtrain.format.safetensors_header import Stored, read_header

MOST = 10_000  # problems that are kept


@dataclass
class Looked:
    """What was found in a checkpoint's folder, as far as it could be read."""

    path: Path
    problems: list[Problem] = field(default_factory=list)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    headers: dict[str, dict[str, Stored]] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
    recipe: str | None = None

    def add(self, problems: Iterable[Problem]) -> None:
        """Take up further problems, as long as there are not too many."""
        self.problems += islice(problems, max(MOST - len(self.problems), 0))

    @property
    def size(self) -> int:
        """Bytes of all files, as the manifest lists them."""
        return sum(entry["size"] for entry in self.manifest.get("files", {}).values())

    @property
    def parts(self) -> dict[str, dict[str, Stored]]:
        """The tensors of each part by name, where every file of it could be read."""
        lost = {part_of(each) for each in self.lost}
        return {part: tensors for part, tensors in by_part(self.headers).items() if part not in lost}

    @property
    def lost(self) -> list[str]:
        """The files of tensors whose headers could not be read."""
        return [each for each in self.manifest["files"] if holds_tensors(each) and each not in self.headers]


def look(path: Path, tell: Tell) -> Looked:
    """Compare every byte of a checkpoint with its manifest; `tell` hears of each so many that were read."""
    found = Looked(path)
    try:
        found.manifest = read_manifest(path)
    except CheckpointError as error:
        found.problems.append(Problem(MANIFEST, "", str(error)))
        return found
    for name in sorted(found.manifest["files"]):
        _read(found, name)
    lost = {part_of(name) for name in found.lost}
    elsewhere = misplaced(path, found.manifest, found.headers)
    found.add(
        each for each in elsewhere if each.file != MANIFEST or each.tensor.partition("/")[0] not in lost
    )
    found.add(altered(path, found.manifest, found.headers, tell=tell))
    for part in PARTS:
        if index_name(part) in found.manifest["files"] and part not in lost:
            found.add(_unlike_index(path, part, found.headers))
    return found


def leftovers(path: Path, manifest: Mapping[str, Any]) -> list[str]:
    """What lies in a checkpoint's folder, and no manifest lists."""
    known = {*manifest.get("files", {}), MANIFEST}
    return sorted(name for name in os.listdir(path) if name not in known) if path.is_dir() else []


def _read(found: Looked, name: str) -> None:
    """Check a file, and read what it says, as far as it can be read even so."""
    problems = []
    try:
        check_file(found.path, name, found.manifest)
    except CheckpointError as error:
        problems.append(str(error))
    try:
        if holds_tensors(name):
            found.headers[name] = read_header(found.path / name)
        elif name == STATE:
            found.state = read_state(found.path, found.manifest)
        elif name == RECIPE:
            found.recipe = read_recipe(found.path)
    except CheckpointError as error:
        problems.append(str(error))
    found.add(Problem(name, "", said) for said in problems[:1])  # the second follows from the first


def _unlike_index(path: Path, part: str, headers: Headers) -> Iterator[Problem]:
    """Where an index of Hugging Face's form says of tensors what the files do not."""
    name = index_name(part)
    own = {file: tensors for file, tensors in headers.items() if part_of(file) == part}
    homes = {tensor: file for file, tensors in own.items() for tensor in tensors}
    try:
        index = parse(read_small(path / name), path / name)
    except CheckpointError:
        return  # it was said
    match index:
        case {"weight_map": dict(listed), "metadata": {"total_size": int(size)}}:
            pass
        case _:
            yield Problem(name, "", f"{path / name} has no weight_map, or no total_size")
            return
    for tensor in sorted(listed.keys() | homes.keys()):
        if listed.get(tensor) != homes.get(tensor):
            places = f"in {listed.get(tensor, 'no file')}, and it is in {homes.get(tensor, 'none')}"
            yield Problem(name, tensor, f"{path / name} says that {tensor[:200]!r} is {places}")
    held = sum(each.size for tensors in own.values() for each in tensors.values())
    if size != held:
        yield Problem(name, "", f"{path / name} says that the tensors have {size} bytes; they have {held}")
