"""DDP, FSDP2 and ZeRO give the numbers of a loop written out by hand, and carry on what another has saved."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from agreement import references
from agreement.cases import FROZEN, write_examples
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
PRECISIONS = {"fp64": 1e-9, "fp32": 1e-4}
MORE_IN_FULL = ("two models at once", "tokens", "classifier, groups", "classifier, imported and half frozen")
RUNS = [
    (way, name, precision)
    for way, how in WAYS.items()
    for names, precision in ((SYSTEMS, "fp64"), (MORE_IN_FULL, "fp64"), (SYSTEMS, "fp32"))
    for name in names
    if how.has_fp64 or precision != "fp64"
]
IN_HALF = ("gan, hinge in bf16", "vae, bce in bf16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every case was run in every way, one way after the other."""
    folder = tmp_path_factory.mktemp("engines")
    write_examples(folder / "examples.npz")
    for way, how in WAYS.items():
        names = [f"{name} in {precision}" for each, name, precision in RUNS if each == way]
        scale = "-"
        if how.scale:
            scale = str(folder / f"{way}.toml")
            Path(scale).write_text(how.scale)
        finish(start_ranks(how.size, "agreement.ranks", str(folder), way, scale, *names, *IN_HALF))
    return folder


def finish(processes: list) -> None:
    try:
        errors = [process.communicate(timeout=900)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(errors)


@pytest.fixture(scope="module")
def by_hand(folder: Path) -> dict[tuple[str, str], references.Numbers]:
    """What the loops written out by hand give, by case and precision.

    They draw as a CPU does; on GPUs one process takes their place.
    """
    if ON_GPUS:
        cases = dict.fromkeys((name, precision) for _, name, precision in RUNS)
        return {(n, p): found(folder, f"{n} in {p}", "one process").results for n, p in cases}
    data = dict(np.load(folder / "examples.npz"))
    made = {}
    for name, precision in dict.fromkeys((name, precision) for _, name, precision in RUNS):
        train = REFERENCES.get(name) or REFERENCES[name.partition(",")[0]]
        first = found(folder, f"{name} in {precision}", "one process").first
        made[name, precision] = train(recipe_of(f"{name} in {precision}"), data, first)
    return made


@pytest.mark.parametrize(("way", "name", "precision"), RUNS)
def test_every_way_gives_the_numbers_of_a_loop_by_hand(
    folder: Path,
    by_hand: dict[tuple[str, str], references.Numbers],
    way: str,
    name: str,
    precision: str,
) -> None:
    run = found(folder, f"{name} in {precision}", way)
    key, value = worst(deviations(run.results, by_hand[name, precision]))
    print(f"{name} in {precision}, {way}: {value:.1e} ({key})")
    assert value < PRECISIONS[precision], key
    assert len(set(run.scalars["digests"])) == 1  # the same bits on every rank


@pytest.mark.parametrize("name", IN_HALF)
@pytest.mark.parametrize("way", [way for way in WAYS if way != "one process"])
def test_every_way_is_as_near_to_one_process_as_bf16_lets_it(folder: Path, way: str, name: str) -> None:
    ours, one = found(folder, name, way), found(folder, name, "one process")
    apart = off_course(ours, one)
    print(f"{name}, {way}: {apart:.1e} of the way that the weights have gone")
    assert apart < 2**-8  # the spacing of bf16


@pytest.mark.parametrize("name", FROZEN)
@pytest.mark.parametrize("way", WAYS)
def test_an_update_moves_the_models_that_it_trains_and_no_others(folder: Path, way: str, name: str) -> None:
    updates = json.loads((folder / f"{way} {name} frozen.json").read_text())
    assert len({tuple(update["trains"]) for update in updates}) == 2  # phases
    for update in updates:
        assert update["moved"] == sorted(update["trains"])
