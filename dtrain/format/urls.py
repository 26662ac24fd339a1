"""A store at a URL, by fsspec, which takes its time to import and is imported only where there is one."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from dtrain.errors import CheckpointError
from dtrain.format.files import LARGEST, MANIFEST
from dtrain.format.stores import Folder, MissingError, Store, in_order

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before each other try; libraries have tried, too
AT_FIRST = 2  # of them for a place that has never answered: its name is wrong, more likely than not
# For which the same is tried once only; libraries tell most others by exceptions of their own.
FOR_GOOD = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # by scheme: what to install of dtrain's
T = TypeVar("T")


def open_store(where: Path | str) -> Store:
    """The store in a folder or at a URL. Raises CheckpointError if the library for the URL is missing."""
    return Folder(where) if isinstance(where, Path) else Remote(where)


class Remote(Store):
    """What fsspec reaches: files are put one by one, each whole or not at all on stores of objects."""

    def __init__(self, url: str):
        super().__init__(url)
        self._files, self._root = _connect(url)
        self.answers = False  # it did the last time; or it was not asked yet

    def entries(self, folder: str) -> dict[str, int]:
        def look() -> list[dict[str, Any]]:
            self._files.invalidate_cache()
            return list(self._files.ls(self._path(folder), detail=True))

        try:
            found = self._told("looked at", folder, look)
        except MissingError:
            return {}
        own = self._path(folder).strip("/")
        sizes = {entry["name"].strip("/"): entry.get("size") or 0 for entry in found}
        return {name.rpartition("/")[2]: size for name, size in sizes.items() if name != own}

    def read(self, file: str) -> bytes | None:
        def read() -> bytes:
            size = self._files.info(self._path(file))["size"]
            if size > LARGEST:
                raise CheckpointError(f"{self.at(file)} has {size} bytes; at most {LARGEST:,} would do")
            return bytes(self._files.cat_file(self._path(file)))

        try:
            return self._told("read", file, read)
        except MissingError:
            return None

    def fetch(self, file: str, to: Path) -> None:
        self._told("read", file, lambda: self._files.get_file(self._path(file), str(to)))

    def send(self, file: Path, to: str) -> None:
        self._told("written", to, lambda: self._files.put_file(str(file), self._path(to)))

    def write(self, data: bytes, to: str) -> None:
        """The same of bytes."""
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:  # not every file system makes the folders above bytes
            file = Path(folder) / "bytes"
            file.write_bytes(data)
            self.send(file, to)

    def send_checkpoint(self, checkpoint: Path, to: str) -> None:
        self.remove(to)
        for name in in_order(checkpoint):
            if name == MANIFEST:
                self._compare(checkpoint, to)
            self.send(checkpoint / name, f"{to}/{name}")

    def remove(self, folder: str) -> None:
        names = self.entries(folder)
        for name in sorted(names, key=lambda name: name != MANIFEST):
            self.delete(f"{folder}/{name}")
        with suppress(Exception):  # of stores that have folders; on the others there is none any more
            if self._files.isdir(self._path(folder)):
                self._files.rmdir(self._path(folder))

    def delete(self, file: str) -> None:
        """Delete a file, if it is there."""
        try:
            self._told("removed", file, lambda: self._files.rm_file(self._path(file)))
        except MissingError:
            return

    def _compare(self, checkpoint: Path, to: str) -> None:
        """Before the manifest says that all is there."""
        sizes = self.entries(to)
        for name in in_order(checkpoint)[:-1]:
            if sizes.get(name) != (size := (checkpoint / name).stat().st_size):
                said = f"{sizes[name]} bytes" if name in sizes else "nothing"
                raise CheckpointError(f"{self.at(to)}/{name}: {said} arrived there, of {size} bytes")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _told(self, done: str, name: str, action: Callable[[], T]) -> T:
        """Try it some times. Raises CheckpointError of whatever is raised: each library has its own."""
        pauses = PAUSES if self.answers else PAUSES[:AT_FIRST]
        for pause in (*pauses, None):
            try:
                result = action()
                self.answers = True
                return result
            except CheckpointError:
                raise
            except Exception as error:
                if isinstance(error, FOR_GOOD) or pause is None:
                    self.answers = isinstance(error, FOR_GOOD)
                    kind = MissingError if isinstance(error, FileNotFoundError) else CheckpointError
                    said = f"{type(error).__name__}: {error}"
                    raise kind(f"{self.at(name)} cannot be {done} ({said})") from None
            time.sleep(pause)
        raise AssertionError


def _connect(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    from fsspec.core import url_to_fs

    scheme = url.partition(":")[0]
    try:
        files, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        hint = f"pip install 'dtrain[{extra}]' brings it" if extra else str(error)
        raise CheckpointError(f"{url}: a library for {scheme}:// is missing; {hint}") from None
    except Exception as error:  # also a scheme that it does not know
        raise CheckpointError(f"{url} cannot be opened: {error}") from None
    return files, str(path).rstrip("/")
