"""Places for copies of runs, files under names such as `RUN/checkpoints/step-00000100/state.json`.

A checkpoint is there when its manifest is. That is written last and deleted first, so nobody ever sees half
of one, whatever the place can do and whenever whoever writes ends.
"""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dtrain.errors import CheckpointError
from dtrain.format.checkpoints import read_manifest
from dtrain.format.files import LARGEST, MANIFEST, PARTIAL, sync

T = TypeVar("T")


class Store(ABC):
    """A place for copies. Every method raises CheckpointError, naming the place, where it cannot."""

    def __init__(self, where: Path | str):
        self.where = where

    def at(self, name: str) -> str:
        """The address of a file or folder in it, as a user would write it."""
        return f"{self.where}/{name}" if name else str(self.where)

    @abstractmethod
    def entries(self, folder: str) -> dict[str, int]:
        """What lies in a folder, by name with its size in bytes; nothing where there is no folder."""

    @abstractmethod
    def read(self, file: str) -> bytes | None:
        """A small file, or None where there is none."""

    @abstractmethod
    def fetch(self, file: str, to: Path) -> None:
        """Copy a file from there."""

    @abstractmethod
    def send(self, file: Path, to: str) -> None:
        """Copy a file there, durably; it takes the place of another."""

    @abstractmethod
    def send_checkpoint(self, checkpoint: Path, to: str) -> None:
        """Copy a checkpoint there, durably and the manifest last; it takes the place of another."""

    @abstractmethod
    def remove(self, folder: str) -> None:
        """Delete a checkpoint, its manifest first, or what is left of one."""


class Folder(Store):
    """One on another disk: a checkpoint is copied beside its place and renamed into it, like our own."""

    def __init__(self, where: Path):
        super().__init__(where)
        self._root = where

    def entries(self, folder: str) -> dict[str, int]:
        def look() -> dict[str, int]:
            with os.scandir(self._root / folder) as found:
                return {entry.name: entry.stat().st_size for entry in found if not entry.name.startswith(".")}

        try:
            return self._told("looked at", folder, look)
        except MissingError:
            return {}

    def read(self, file: str) -> bytes | None:
        def read() -> bytes:
            with (self._root / file).open("rb") as opened:
                return opened.read(LARGEST + 1)

        try:
            return self._told("read", file, read)
        except MissingError:
            return None

    def fetch(self, file: str, to: Path) -> None:
        self._told("read", file, lambda: shutil.copyfile(self._root / file, to))

    def send(self, file: Path, to: str) -> None:
        place = self._root / to

        def copy() -> None:
            place.parent.mkdir(exist_ok=True)
            temporary = place.with_name(f".{place.name}")
            shutil.copyfile(file, temporary)
            sync(temporary)
            temporary.replace(place)
            sync(place.parent)

        self._told("written", to, copy)

    def send_checkpoint(self, checkpoint: Path, to: str) -> None:
        place = self._root / to
        partial = place.parent.parent / PARTIAL / place.name

        def copy() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.parent.mkdir(exist_ok=True)  # not what is above: a disk that is gone is not made anew
            partial.mkdir()
            for name in in_order(checkpoint):
                shutil.copyfile(checkpoint / name, partial / name)
                sync(partial / name)
            sync(partial)
            place.parent.mkdir(exist_ok=True)
            self.remove(to)
            partial.rename(place)
            sync(place.parent)

        try:
            self._told("written", to, copy)
        except CheckpointError:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def remove(self, folder: str) -> None:
        place = self._root / folder
        hidden = place.parent.parent / PARTIAL / f"removed-{place.name}"

        def delete() -> None:
            shutil.rmtree(hidden, ignore_errors=True)
            hidden.parent.mkdir(exist_ok=True)
            place.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)

        if place.exists():
            self._told("removed", folder, delete)

    def _told(self, done: str, name: str, action: Callable[[], T]) -> T:
        try:
            return action()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingError(f"{self.at(name)} cannot be {done}: {error}") from None
        except OSError as error:
            raise CheckpointError(f"{self.at(name)} cannot be {done}: {error}") from None


class MissingError(CheckpointError):
    """There is no such file or folder."""


def in_order(checkpoint: Path) -> list[str]:
    """The names of a checkpoint's own files, in the order in which they are copied."""
    return [*sorted(read_manifest(checkpoint)["files"]), MANIFEST]
