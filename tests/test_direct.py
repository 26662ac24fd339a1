"""A file that is written past the cache holds what was given, of any size, and tells what went wrong."""

import errno
import os
import random
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dtrain.checkpoint.direct import BLOCK, UNIT, DirectFile, Disk

SIZES = [0, 1, UNIT - 1, UNIT, UNIT + 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 17]


@pytest.fixture
def disk() -> Iterator[Disk]:
    with Disk() as found:
        yield found


@pytest.fixture
def only_cached(tmp_path: Path) -> Iterator[Path]:
    """A folder of a file system that refuses to go past the cache."""
    command = ["mount", "-t", "ramfs", "ramfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def write(path: Path, data: bytes, disk: Disk) -> None:
    """In pieces of many sizes."""
    chance = random.Random(len(data))
    file = DirectFile(path, disk)
    rest = memoryview(data)
    while rest:
        count = chance.choice([1, 7, UNIT, 100_000, BLOCK, 2 * BLOCK + 1])
        file.write(rest[:count])
        rest = rest[count:]
    file.write(b"")
    assert file.size == len(data)
    file.end().result()


@pytest.mark.parametrize("size", SIZES)
def test_any_size_is_written_as_it_was_given(size: int, tmp_path: Path, disk: Disk) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(b"what was there before" * 1000)
    write(tmp_path / "file", data, disk)
    assert (tmp_path / "file").read_bytes() == data


def test_a_file_system_without_it_is_written_through_the_cache(only_cached: Path, disk: Disk) -> None:
    data = random.Random(0).randbytes(2 * BLOCK + 17)
    with pytest.raises(OSError, match="Invalid argument"):
        os.open(only_cached / "refused", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    write(only_cached / "file", data, disk)
    assert (only_cached / "file").read_bytes() == data


def test_a_block_that_is_refused_goes_through_the_cache(tmp_path: Path, disk: Disk) -> None:
    data = random.Random(0).randbytes(UNIT + 5)
    file = DirectFile(tmp_path / "file", disk)
    file._block = file._block[1:]  # where no disk takes it from
    if not file._is_direct:
        pytest.skip("this file system goes through the cache anyway")
    file.write(data)
    file.end().result()
    assert not file._is_direct
    assert (tmp_path / "file").read_bytes() == data


@pytest.mark.parametrize("size", [UNIT, 5 * BLOCK])
def test_a_disk_that_is_full_is_told(size: int, tmp_path: Path, disk: Disk) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            write(tmp_path / "file", b"x" * size, disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
