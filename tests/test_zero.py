"""ZeRO gives the numbers of one process, offloaded or not, also where an update is left out.

test_engines.py has it among the other engines. DTRAIN_TEST_LONG=1 runs all recipes of tests/agreement against
their loops written out by hand, on two processes and four.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_agreement as agreement
import zero_ranks
from agreement.cases import write_examples
from zero_ranks import HALVED, IS_LONG, SKIPPED, STAGES, cases

pytestmark = pytest.mark.worlds

TESTS = Path(__file__).parent
WORLDS = (1, 2, 4) if IS_LONG else (1, 2)
TOLERANCE = 1e-4  # of the largest value of each tensor and curve, in fp32
# The bias of an attention's keys changes nothing: its slopes are noise, which Adam makes as large as any.
NOISE = {"language_model, attention": "in_proj_bias"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process and several have run everything; one start serves all tests."""
    folder = tmp_path_factory.mktemp("zero")
    write_examples(folder / "examples.npz")
    processes = [process for size in WORLDS for process in start(folder, size)]
    try:
        said = [process.communicate(timeout=3000 if IS_LONG else 300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(said)
    (folder / "said.txt").write_text("".join(said))
    return folder


def start(folder: Path, size: int) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ours = {
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", "zero_ranks", str(folder)],
            env={**os.environ, **ours, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def found(folder: Path, world: int, engine: str, name: str) -> agreement.Found:
    with np.load(folder / f"{world} {engine} {name}.npz") as numbers:
        ends = json.loads((folder / f"{world} {engine} {name}.json").read_text())
        return agreement.Found(dict(numbers), ends)


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


RUNS = [
    (world, engine, name)
    for world in WORLDS[1:]
    for name, (_, engines) in cases().items()
    for engine in engines
    if "16" not in name
]


@pytest.mark.parametrize(("world", "engine", "name"), RUNS)
def test_zero_agrees_with_one_process(folder: Path, world: int, engine: str, name: str) -> None:
    ours, alone = found(folder, world, engine, name), found(folder, 1, "alone", name)
    finite = {key: np.nan_to_num(value) for key, value in alone.results.items()}  # what is skipped is nan
    apart = agreement.deviations({key: np.nan_to_num(value) for key, value in ours.results.items()}, finite)
    key, value = agreement.worst({k: v for k, v in apart.items() if NOISE.get(name, "-") not in k})
    print(f"{name}, {engine} x{world}: {value:.1e} ({key})")
    assert value < TOLERANCE, key


@pytest.mark.parametrize(("world", "engine", "name"), RUNS)
def test_ranks_and_first_weights_are_the_same_to_the_bit(
    folder: Path, world: int, engine: str, name: str
) -> None:
    ours, alone = found(folder, world, engine, name), found(folder, 1, "alone", name)
    assert len(set(ours.scalars["digests"])) == 1
    assert len(ours.scalars["digests"]) == world
    assert all(ours.first[key].tobytes() == value.tobytes() for key, value in alone.first.items())


@pytest.mark.parametrize("engine", SKIPPED)
def test_an_update_that_is_skipped_leaves_nothing_behind(folder: Path, engine: str) -> None:
    ours, alone = found(folder, 2, engine, "skipping"), found(folder, 1, "alone", "skipping")
    assert ours.scalars["skipped"] == alone.scalars["skipped"] > 0
    assert all(np.isfinite(value).all() for key, value in ours.numbers.items() if key.startswith("last:"))


@pytest.mark.parametrize("engine", HALVED)
def test_bf16_is_within_its_own_spacing(folder: Path, engine: str) -> None:
    ours, alone = (found(folder, *which, "classifier, bf16") for which in ((2, engine), (1, "alone")))
    apart = agreement.off_course(ours, alone)
    print(f"classifier, bf16, {engine}: {apart:.1e}")
    assert apart < 2**-5  # weights are rounded, too, to what bf16 has


def test_fp16_is_scaled_as_on_one_process(folder: Path) -> None:
    ours, alone = (found(folder, *which, "classifier, fp16") for which in ((2, "zero3"), (1, "alone")))
    assert ours.scalars["loss_scales"] == alone.scalars["loss_scales"]
    assert agreement.off_course(ours, alone) < 2**-8


@pytest.mark.parametrize("engine", ["zero2, offloaded", "zero3, offloaded"])
def test_what_one_stage_leaves_another_takes_up_to_the_bit(folder: Path, engine: str) -> None:
    assert read(folder, f"2 {engine} handed") == [True, True]


def test_what_zero_would_do_otherwise_is_refused_with_the_reason(folder: Path) -> None:
    said = read(folder, "2 refused")
    assert "fp64 is more than DeepSpeed keeps of weights" in said["fp64"]
    assert "fp32 is not what engine.half_parameters of the launch is for" in said["half"]
    assert "muon may go by the shapes of weights, and zero cuts them" in said["muon"]
    assert "its optimizer, Adafactor, may go by the shapes of weights" in said["adafactor"]
    assert "DeepSpeed drops the groups of Adagrad" in said["adagrad"]
    assert "2 of 4 parameters of classifier took no part in the loss" in said["unused"]


def test_deepspeed_says_nothing(folder: Path) -> None:
    assert (folder / "said.txt").read_text() == ""


@pytest.mark.skipif(not IS_LONG, reason="DTRAIN_TEST_LONG=1 runs it")
@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("engine", STAGES)
@pytest.mark.parametrize("name", [name for name, (_, on) in cases().items() if on == STAGES])
def test_zero_agrees_with_a_plain_loop(folder: Path, name: str, engine: str, world: int) -> None:
    loop = agreement.REFERENCES.get(name) or agreement.REFERENCES[name.partition(",")[0]]
    ours = found(folder, world, engine, name)
    recipe = zero_ranks.in_fp32(cases()[name][0])
    wanted = loop(recipe, dict(np.load(folder / "examples.npz")), ours.first)
    apart = agreement.deviations(ours.results, wanted)
    key, value = agreement.worst({k: v for k, v in apart.items() if NOISE.get(name, "-") not in k})
    print(f"{name}, {engine} x{world}: {value:.1e} ({key})")
    assert value < TOLERANCE, key
