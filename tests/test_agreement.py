"""One, two and four processes and a loop written out by hand give the same numbers, from first to last."""

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from agreement import methods, references
from agreement.cases import CASES as GENERAL
from agreement.cases import FROZEN, HALVES, write_examples

from dtrain.spec.optimizers import Optimizer
from dtrain.spec.table import KINDS
from dtrain.systems.gan import GAN

pytestmark = pytest.mark.worlds

TESTS = Path(__file__).parent
SIZES = (1, 2, 4)  # processes
ON_GPUS = int(os.environ.get("DTRAIN_TEST_GPUS", "0"))  # how many there are; ci/gpu.sh says so
CASES = {**GENERAL, **methods.CASES}
ALL = {**CASES, **HALVES}
RUNS = [(name, size) for name, case in ALL.items() for size in case.processes]
REFERENCES: Mapping[str, Callable[..., references.Numbers]] = {
    "gan": references.train_gan,
    "classifier": references.train_classifier,
    "classifier, imported spectral norm": references.train_whole_batches,
    "tokens": references.train_speaker,
    "two models at once": references.train_autoencoder,
    **methods.LOOPS,
}
FLOOR = 1e-9  # what is smaller than this at its largest is compared with this


@dataclass(frozen=True)
class Found:
    """What a run left: tensors before (`first:`) and after (`last:`), a number a step (`curve:`), scalars."""

    numbers: references.Numbers
    scalars: Mapping[str, Any]

    @property
    def first(self) -> references.Numbers:
        return {key.removeprefix("first:"): v for key, v in self.numbers.items() if key.startswith("first:")}

    @property
    def results(self) -> references.Numbers:
        return {key: value for key, value in self.numbers.items() if not key.startswith("first:")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Where the cases of the selected tests were run, on every number of processes; one start serves all."""
    folder = tmp_path_factory.mktemp("agreement")
    write_examples(folder / "examples.npz")
    wanted = needed(request.session.items)
    processes = [process for size in SIZES for process in start(folder, size, wanted)]
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(errors)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def needed(tests: list[pytest.Item]) -> list[str]:
    """The cases that these tests are about: of a test of "gan" those that begin so, too."""
    names = {
        test.callspec.params.get("name")
        for test in tests
        if isinstance(test, pytest.Function) and hasattr(test, "callspec")
    }
    return [case for case in {**ALL, **FROZEN} if case in names or case.partition(",")[0] in names]


def start(folder: Path, size: int, wanted: list[str]) -> list[subprocess.Popen[str]]:
    """Start the wanted cases of `size` processes."""
    names = [name for name, of_size in RUNS if of_size == size and name in wanted]
    watched = [f"watched {name}" for name in FROZEN if name in wanted]
    return start_ranks(size, "agreement.ranks", str(folder), str(size), "-", *names, *watched)


def start_ranks(size: int, module: str, *arguments: str) -> list[subprocess.Popen[str]]:
    """Start a module of the tests, each process with the variables that torchrun would set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ours = {
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "OMP_NUM_THREADS": "1",
        **({} if ON_GPUS else {"CUDA_VISIBLE_DEVICES": ""}),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **ours, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def found(folder: Path, name: str, label: int | str) -> Found:
    with np.load(folder / f"{label} {name}.npz") as numbers:
        return Found(dict(numbers), json.loads((folder / f"{label} {name}.json").read_text()))


def deviations(ours: references.Numbers, theirs: references.Numbers) -> dict[str, float]:
    """The largest difference in each tensor and curve, as a share of the largest magnitude in it.

    A curve that is far from 0 somewhere may not hide a difference elsewhere: it counts step by step,
    against at least a hundredth of its largest magnitude.
    """
    assert ours.keys() == theirs.keys()
    return {key: deviation(ours[key], theirs[key], is_curve=key.startswith("curve:")) for key in ours}


def deviation(ours: np.ndarray, theirs: np.ndarray, *, is_curve: bool) -> float:
    assert ours.shape == theirs.shape
    ours, size = ours.astype(np.float64), np.abs(theirs.astype(np.float64))
    largest = max(size.max(), FLOOR)
    scale = np.maximum(size, largest / 100) if is_curve else largest
    difference = float((np.abs(ours - theirs) / scale).max())
    return math.inf if math.isnan(difference) else difference


def worst(deviations: Mapping[str, float]) -> tuple[str, float]:
    return max(deviations.items(), key=lambda item: item[1])


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_processes_agrees_with_a_plain_loop(folder: Path, name: str) -> None:
    case = CASES[name]
    runs = {size: found(folder, name, size) for size in case.processes}
    data = dict(np.load(folder / "examples.npz"))
    train = REFERENCES.get(name) or REFERENCES[name.partition(",")[0]]
    wanted = train(case.recipe, data, runs[1].first)
    for size, run in runs.items():
        key, value = worst(deviations(run.results, wanted))
        print(f"{name}, {size} processes: {value:.1e} ({key})")
        assert value < case.tolerance, (size, key)
        key, value = worst(deviations(run.results, runs[1].results))
        assert value < case.tolerance, (size, key)


@pytest.mark.parametrize("name", CASES)
def test_first_weights_do_not_depend_on_the_number_of_processes(folder: Path, name: str) -> None:
    one, *others = (found(folder, name, size).first for size in CASES[name].processes)
    for other in others:
        assert one.keys() == other.keys()
        assert all(one[key].tobytes() == other[key].tobytes() for key in one)


@pytest.mark.parametrize(("name", "size"), RUNS)
def test_every_rank_ends_with_the_same_bits(folder: Path, name: str, size: int) -> None:
    digests = found(folder, name, size).scalars["digests"]
    assert len(digests) == size
    assert len(set(digests)) == 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FROZEN)
def test_an_update_moves_the_models_that_it_trains_and_no_others(folder: Path, name: str, size: int) -> None:
    updates = json.loads((folder / f"{size} watched {name}.json").read_text())
    assert len({tuple(update["trains"]) for update in updates}) == 2  # phases
    for update in updates:
        assert update["moved"] == sorted(update["trains"])


@pytest.mark.parametrize("name", ["gan", "classifier"])
def test_bf16_agrees_between_one_process_and_two(folder: Path, name: str) -> None:
    one, two, full = (
        found(folder, f"{name}, bf16", 1),
        found(folder, f"{name}, bf16", 2),
        found(folder, f"{name}, fp32", 1),
    )
    print(
        f"{name}, bf16: {off_course(two, one):.1e} between processes, {off_course(one, full):.1e} from fp32"
    )
    assert off_course(two, one) < 2**-8  # the spacing of bf16
    assert 1e-5 < off_course(one, full) < 2**-5  # not fp32 by another name


@pytest.mark.parametrize("name", ["gan", "classifier"])
def test_fp16_moves_the_weights_like_fp32(folder: Path, name: str) -> None:
    half, full = found(folder, f"{name}, fp16", 1), found(folder, f"{name}, fp32", 1)
    print(f"{name}, fp16: {off_course(half, full):.1e} from fp32, {half.scalars['loss_scales']}")
    assert 1e-6 < off_course(half, full) < 2**-4  # the GAN's first update overflows and is left out
    assert all(state["scale"] > 1 for state in half.scalars["loss_scales"].values())


@pytest.mark.parametrize("name", ["classifier, fp16", "overflow"])
def test_fp16_agrees_between_one_process_and_two(folder: Path, name: str) -> None:
    one, two = found(folder, name, 1), found(folder, name, 2)
    assert one.scalars["loss_scales"] == two.scalars["loss_scales"]
    assert off_course(two, one) < 2**-11  # the spacing of fp16


@pytest.mark.parametrize(("name", "size"), [("overflow", 1), ("overflow", 2)])
def test_updates_that_overflow_are_left_out_and_lower_the_loss_scale(
    folder: Path, name: str, size: int
) -> None:
    run = found(folder, name, size)
    overflows = int((~np.isfinite(run.numbers["curve:classifier/grad_norm"])).sum())
    assert overflows > 0
    assert run.scalars["loss_scales"]["classifier"]["scale"] == 2.0 ** (16 - overflows)
    steps = {float(value) for key, value in run.numbers.items() if key.endswith("/step")}
    assert steps == {len(run.numbers["curve:classifier/grad_norm"]) - overflows}
    assert all(np.isfinite(value).all() for key, value in run.numbers.items() if key.startswith("last:"))


def off_course(ours: Found, theirs: Found) -> float:
    """How far apart two runs ended, as a share of the way that the weights of the second have gone."""
    keys = [key for key in theirs.numbers if key.startswith("last:models/") and "num_batches" not in key]
    apart = sum(float(((ours.numbers[key] - theirs.numbers[key]) ** 2).sum()) for key in keys)
    first = {key: theirs.numbers[key.replace("last:", "first:")] for key in keys}
    gone = sum(float(((theirs.numbers[key] - first[key]) ** 2).sum()) for key in keys)
    return math.sqrt(apart / gone)


def test_every_gan_loss_and_every_optimizer_has_a_case() -> None:
    recipes = [case.recipe for case in CASES.values()]
    losses = {recipe["system"].get("loss") for recipe in recipes}
    assert losses >= set(get_args(GAN.__annotations__["loss"]))
    optimizers = {optimizer["kind"] for recipe in recipes for optimizer in recipe["optimizers"].values()}
    assert optimizers >= KINDS[Optimizer].keys()
