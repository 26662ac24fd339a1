"""DDP, FSDP2 and ZeRO give the numbers of a loop written out by hand, and carry on what another has saved."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from agreement import references
from agreement.cases import FROZEN, IS_LONG, write_examples
from agreement.ranks import recipe_of
from test_agreement import (
    ON_GPUS,
    REFERENCES,
    deviations,
    found,
    off_course,
    one_thread,
    start_ranks,
    worst,
)

pytestmark = pytest.mark.worlds

__all__ = ["one_thread"]  # a fixture: the loops by hand have one thread, too


@dataclass(frozen=True)
class Way:
    """A way to run a recipe."""

    size: int  # processes
    scale: str = ""  # what its file says; nothing: dtrain alone, or DDP
    has_fp64: bool = True


FSDP = '[engine]\nkind = "fsdp"\n'
ZERO = '[engine]\nkind = "zero"\n'
ALL_WAYS: Mapping[str, Way] = {
    "one process": Way(1),
    "ddp, 2": Way(2),
    "ddp, 4": Way(4),
    "fsdp, 2": Way(2, FSDP),
    "fsdp, whole, 2": Way(2, f'{FSDP}reshard = false\naccumulate = "whole"\n'),
    "fsdp, blocks, 2": Way(2, f'{FSDP}blocks = ["*"]\n'),
    "zero 1, 2": Way(2, f"{ZERO}stage = 1\n", has_fp64=False),
    "zero 2, 2": Way(2, f"{ZERO}stage = 2\n", has_fp64=False),
    "zero 3, 2": Way(2, f"{ZERO}stage = 3\npersistence_threshold = 20\n", has_fp64=False),
}
WAYS = {way: how for way, how in ALL_WAYS.items() if not ON_GPUS or how.size <= ON_GPUS}
SYSTEMS = ("gan, hinge", "gan, wasserstein", "adversarial, pgd", "vae, bce", "cycle")
MORE = ("two models at once", "tokens", "classifier, groups", "classifier, imported and half frozen")
FEW = ("gan, wasserstein", "vae, bce")
PRECISIONS = {"fp64": 1e-9, "fp32": 1e-4}
SHORT = {  # what is run in each way: in fp64, and in fp32; in the long form everything
    "one process": ((), ()),
    "ddp, 2": ((), ()),  # as test_agreement.py has it
    "ddp, 4": ((), ()),
    "fsdp, 2": (SYSTEMS + MORE, ()),
    "fsdp, whole, 2": (FEW, ()),
    "fsdp, blocks, 2": (FEW, ()),
    "zero 1, 2": ((), FEW),
    "zero 2, 2": ((), FEW),
    "zero 3, 2": ((), (*SYSTEMS, "classifier, imported spectral norm")),
}
RUNS = [
    (way, name, precision)
    for way, how in WAYS.items()
    for precision, names in zip(PRECISIONS, (SYSTEMS + MORE, SYSTEMS) if IS_LONG else SHORT[way], strict=True)
    for name in names
    if how.has_fp64 or precision != "fp64"
]
IN_HALF = [("gan, hinge", way) for way in WAYS if way != "one process" and (IS_LONG or way != "ddp, 4")]
MOVING = [(name, way) for way, how in WAYS.items() if how.scale for name in FROZEN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Where the cases of the selected tests were run, one way after the other, at one start each."""
    folder = tmp_path_factory.mktemp("engines")
    write_examples(folder / "examples.npz")
    for way, cases in wanted(request.session.items).items():
        how, scale = WAYS[way], "-"
        if how.scale:
            scale = str(folder / f"{way}.toml")
            Path(scale).write_text(how.scale)
        finish(start_ranks(how.size, "agreement.ranks", str(folder), way, scale, *cases))
    return folder


def wanted(tests: list[pytest.Item]) -> dict[str, list[str]]:
    """What is to be run in each way: that which the selected tests are about."""
    cases: dict[str, dict[str, None]] = {}
    for test in tests:
        if test.path == Path(__file__) and isinstance(test, pytest.Function):
            said = test.callspec.params
            cases.setdefault(said["way"], {})[case_of(test.function, **said)] = None
            if test.function is test_every_way_is_as_near_to_one_process_as_bf16_lets_it or ON_GPUS:
                cases.setdefault("one process", {})[case_of(test.function, **said)] = None
    return {way: list(names) for way, names in cases.items()}


def case_of(test: object, *, name: str, way: str, precision: str = "") -> str:
    """What a test is about, as `agreement.ranks` calls it."""
    if test is test_an_update_moves_the_models_that_it_trains_and_no_others:
        return f"watched {name} in fp32"
    return f"{name} in {precision or 'bf16'}"


def finish(processes: list) -> None:
    try:
        errors = [process.communicate(timeout=900)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(errors)


@pytest.fixture(scope="module")
def by_hand(folder: Path) -> Callable[[str, str, str], references.Numbers]:
    """What a loop written out by hand gives, by case and precision, from the first weights of a way.

    They draw as a CPU does; on GPUs one process takes their place.
    """
    data = dict(np.load(folder / "examples.npz"))
    made: dict[tuple[str, str], references.Numbers] = {}

    def give(way: str, name: str, precision: str) -> references.Numbers:
        case = f"{name} in {precision}"
        if ON_GPUS:
            return found(folder, case, "one process").results
        if (name, precision) not in made:
            train = REFERENCES.get(name) or REFERENCES[name.partition(",")[0]]
            made[name, precision] = train(recipe_of(case), data, found(folder, case, way).first)
        return made[name, precision]

    return give


@pytest.mark.parametrize(("way", "name", "precision"), RUNS)
def test_every_way_gives_the_numbers_of_a_loop_by_hand(
    folder: Path,
    by_hand: Callable[[str, str, str], references.Numbers],
    way: str,
    name: str,
    precision: str,
) -> None:
    run = found(folder, f"{name} in {precision}", way)
    key, value = worst(deviations(run.results, by_hand(way, name, precision)))
    print(f"{name} in {precision}, {way}: {value:.1e} ({key})")
    assert value < PRECISIONS[precision], key
    assert len(set(run.scalars["digests"])) == 1  # the same bits on every rank


@pytest.mark.parametrize(("name", "way"), IN_HALF)
def test_every_way_is_as_near_to_one_process_as_bf16_lets_it(folder: Path, name: str, way: str) -> None:
    ours, one = (found(folder, f"{name} in bf16", each) for each in (way, "one process"))
    apart = off_course(ours, one)
    print(f"{name}, {way}: {apart:.1e} of the way that the weights have gone")
    assert apart < 2**-8  # the spacing of bf16


@pytest.mark.parametrize(("name", "way"), MOVING)
def test_an_update_moves_the_models_that_it_trains_and_no_others(folder: Path, name: str, way: str) -> None:
    updates = json.loads((folder / f"{way} watched {name} in fp32.json").read_text())
    assert len({tuple(update["trains"]) for update in updates}) == 2  # phases
    for update in updates:
        assert update["moved"] == sorted(update["trains"])
