"""Whatever is done to a checkpoint, it is whole or refused: never a crash, a hang, or a wrong value."""

import os
import random
import resource
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLASSIFIER, Said, checkpoints_in, cut_off, written
from damaging import copied, damage, in_place_of, whole
from readers import read_in_all_ways, tried, within

from dtrain.checkpoint.verify import verify
from dtrain.errors import CheckpointError
from dtrain.format.checkpoints import open_checkpoint
from dtrain.format.files import FORMATS, MANIFEST, RECIPE, STATE

Here = Callable[..., Said]
IS_LONG = bool(os.environ.get("DTRAIN_TEST_LONG"))
CASES = 5_000 if IS_LONG else 300  # of each format
RESUMES = 400 if IS_LONG else 40


@pytest.fixture
def tiny(tmp_path: Path, on_cpu: None) -> Path:
    """A checkpoint of two tensors, of some 5,000 bytes in all."""
    before, _, after = CLASSIFIER.partition("input = [1, 8, 8]")
    model = 'input = [2]\nlayers = [{ kind = "linear", out = 3 }]\n'
    text = before + model + after[after.index("\n[optimizers") :]
    text = text.replace("pictures.npz", "features.npz").replace('"adamw"\nlr = 1e-2', '"sgd"\nlr = 0.1')
    recipe = written(tmp_path, "tiny.toml", text)
    np.savez(tmp_path / "features.npz", image=np.zeros((20, 2), np.float32), label=np.arange(20) % 3)
    checkpoint = checkpoints_in(cut_off(recipe, tmp_path / "runs", 2))[-1]
    assert open_checkpoint(checkpoint).size < 4096
    return checkpoint


def test_each_byte_that_is_flipped_is_found(tiny: Path) -> None:
    """Three bits of it; all eight in the long form."""
    cases = 0
    for file in sorted(tiny.iterdir()):
        data = file.read_bytes()
        for place in range(len(data)):
            for bit in range(8) if IS_LONG else (place % 8, (place + 3) % 8, 7):
                file.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
                assert isinstance(tried(lambda: open_checkpoint(tiny), tiny), CheckpointError), (file, place)
                cases += 1
            if place % 40 == 0:
                assert not verify(tiny).is_whole
        file.write_bytes(data)
    print(f"\n{cases} bits flipped")
    assert verify(tiny).is_whole


def test_a_file_cut_to_any_length_is_found(tiny: Path, kept: Path) -> None:
    cases = 0
    draw = random.Random(0)
    for checkpoint in (tiny, kept):
        for file in sorted(checkpoint.iterdir()):
            data = file.read_bytes()
            every = range(min(len(data), 4097))
            some = sorted(draw.sample(range(len(data)), min(len(data), 40)))
            for length in every if checkpoint == tiny or IS_LONG else some:
                file.write_bytes(data[:length])
                found = tried(lambda at=checkpoint: open_checkpoint(at, hashes=False), checkpoint)
                assert isinstance(found, CheckpointError), (file, length)
                cases += 1
                if length % 40 == 0:
                    assert not verify(checkpoint).is_whole
            file.write_bytes(data)
    print(f"\n{cases} files cut")


@pytest.mark.parametrize("form", FORMATS)
def test_whatever_is_done_to_it_it_is_whole_or_refused(form: int, tmp_path: Path) -> None:
    """By accident, or by somebody who writes a manifest that fits; see `damaging.damage`."""
    ends: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(CASES):
        draw = random.Random(f"{form} {seed}")
        checkpoint = copied(whole(form), tmp_path / "run")
        done = damage(draw, checkpoint)
        try:
            ends[read_in_all_ways(checkpoint)] += 1
        except BaseException as error:
            error.add_note(f"case {seed}: {done}")
            raise
        shutil.rmtree(tmp_path / "run")
    print(f"\n{CASES} cases: {dict(ends)}")
    assert ends["refused"] > CASES // 2
    assert ends["whole"]
    assert ends["a recipe that cannot be built"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # kB


def test_a_run_never_carries_on_from_what_is_damaged(
    gan: Path, tmp_path: Path, dtrain_here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with 2 and one message, or trains on from what the manifest lists."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    codes: Counter[int] = Counter()
    for seed in range(RESUMES):
        checkpoint = copied(whole(FORMATS[seed % 2]), tmp_path / "run")
        done = damage(random.Random(f"resume {seed}"), checkpoint)
        report = verify(checkpoint)
        with within(60):
            said = dtrain_here("run", gan, "--resume", checkpoint, "--verify", "--runs", tmp_path / "runs")
        shutil.rmtree(tmp_path / "run")
        codes[said.code] += 1
        if said.code == 0:  # what indexes say is for others
            assert all(each.file.endswith(".index.json") for each in report.problems), (seed, done, report)
        else:
            assert said.code == 2, (seed, done, said)
            assert said.errors.startswith("dtrain: ") or RECIPE in said.errors, (seed, done, said)
            assert "Traceback" not in said.errors
    print(f"\n{dict(codes)}")
    assert codes.keys() == {0, 2}


def test_what_takes_a_files_place_is_refused(
    kept: Path, gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    """Links, pipes and folders; a run without --resume, which looks at its newest checkpoint, too."""

    class Each(random.Random):
        def randrange(self, *_: Any) -> int:
            return way

    for name in sorted(path.name for path in kept.iterdir()):
        for way in range(6):
            copy = tmp_path / "other"
            shutil.copytree(kept.parent.parent, copy)
            checkpoint = copy / "checkpoints" / kept.name
            in_place_of(Each(), checkpoint / name)
            assert read_in_all_ways(checkpoint) == "refused", (name, way)
            shutil.rmtree(copy)
    run = cut_off(gan, tmp_path / "runs", 2)
    (newest,) = checkpoints_in(run)
    for name in (MANIFEST, STATE, RECIPE):
        (newest / name).unlink()
        os.mkfifo(newest / name)
        with within(30):
            said = dtrain_here("run", gan, "--runs", tmp_path / "runs")
        assert (said.code, said.errors.count("\n")) == (2, 1), said
