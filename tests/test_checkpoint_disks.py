"""What becomes of a run where its disk is full, read-only, or gone."""

import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Said, checkpoints_in, cut_off, last_tensors, only_run, start, start_two

from dtrain.checkpoint.read import open_checkpoint
from dtrain.checkpoint.verify import verify
from dtrain.cli.app import main

pytestmark = pytest.mark.alone

Here = Callable[..., Said]


@contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    """A disk of a size, which may be taken away."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    if not is_mounted:
        pytest.skip("mounting a disk is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "1m") as place:
        yield place


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "1g") as place:
        yield place


def widen(recipe: Path, width: int) -> None:
    """Let its checkpoints be larger than what else it writes."""
    layer = '{ kind = "linear", out = 32 }'
    text = recipe.read_text().replace(layer, f'{{ kind = "linear", out = {width} }}, {layer}')
    recipe.write_text(text.replace('kinds = ["jsonl"]', "kinds = []"))


def fill(disk: Path, spare: int) -> Path:
    """Take all of a disk but `spare` bytes."""
    filling = disk / "filling"
    filling.write_bytes(bytes(shutil.disk_usage(disk).free - spare))
    return filling


@pytest.mark.parametrize("spare", [0, 24 << 10, 60 << 10], ids=lambda spare: f"{spare} bytes left")
def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(
    gan: Path, small_disk: Path, tmp_path: Path, dtrain_here: Here, spare: int
) -> None:
    run = cut_off(gan, small_disk, 2)
    filling = fill(small_disk, spare)
    said = dtrain_here("run", gan, "checkpoint.keep=3", "--runs", small_disk)
    assert said.code == 2, said.errors
    assert said.errors.count("\n") == 1
    assert "No space left on device" in said.errors
    assert str(run) in said.errors
    whole = [open_checkpoint(path) for path in run.glob("checkpoints/*")]
    assert whole
    assert not any(run.glob(".partial/*"))
    filling.unlink()
    assert dtrain_here("run", gan, "checkpoint.keep=3", "--runs", small_disk).code == 0
    assert dtrain_here("run", gan, "--runs", tmp_path / "alone").code == 0
    assert last_tensors(only_run(small_disk)) == last_tensors(only_run(tmp_path / "alone"))


def with_small_files(arguments: list[str]) -> int:
    """Carry out a command where no file may grow beyond 6 kB: a full disk as every system has it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 10, 6 << 10))
    return main(arguments)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_save_that_fails_leaves_the_earlier_ones(gan: Path, tmp_path: Path, processes: int) -> None:
    widen(gan, 400)
    run = cut_off(gan, tmp_path / "runs", 2)
    before = last_tensors(run)
    begin = start if processes == 1 else start_two
    lives = begin("run", gan, "--runs", tmp_path / "runs", log=tmp_path / "log", action=with_small_files)
    lives = (lives,) if processes == 1 else lives
    assert [life.end() for life in lives] == [2] * processes, [life.said for life in lives]
    said = lives[0].said.splitlines()
    assert said[0].startswith("carrying on from")
    assert len(said) == 2
    assert f"{run}/checkpoints/step-00000003 cannot be written" in said[1]
    assert "File too large" in said[1]
    assert "earlier checkpoints are untouched" in said[1]
    assert [path.name for path in checkpoints_in(run)] == ["step-00000002"]
    assert last_tensors(run) == before
    assert not any(run.glob(".partial/*"))


def test_a_disk_that_becomes_read_only_is_said_and_the_run_goes_on_afterwards(
    gan: Path, disk: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    run = cut_off(gan, disk, 2)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    said = dtrain_here("run", gan, "--runs", disk)
    assert (said.code, said.errors.count("\n")) == (2, 1), said
    assert "Read-only file system" in said.errors
    assert verify(checkpoints_in(run)[-1]).is_whole
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert dtrain_here("run", gan, "--runs", disk).code == 0
    assert dtrain_here("run", gan, "--runs", tmp_path / "alone").code == 0
    assert last_tensors(only_run(disk)) == last_tensors(only_run(tmp_path / "alone"))


def test_a_disk_that_is_gone_in_the_middle_of_a_save_is_said(gan: Path, disk: Path, tmp_path: Path) -> None:
    """It is taken away while the first checkpoint is written, and nothing is written in its place."""
    widen(gan, 1_000_000)
    life = start("run", gan, "--runs", disk, log=tmp_path / "log")
    end = time.monotonic() + 120
    while not any(disk.glob("*/*/.partial/*/*")):
        assert time.monotonic() < end, life.said
    subprocess.run(["umount", "-l", str(disk)], check=True)
    assert life.end() == 2, life.said
    said = life.said.splitlines()
    assert len(said) == 1, said
    assert "step-00000002 cannot be written" in said[0]
    assert list(disk.iterdir()) == []
