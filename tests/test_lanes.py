"""Lanes: any number of processes that divides them gives the same bits."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import CLASSIFIER, GAN, Said, last_tensors, metrics_of, only_run, start_world, written
from test_language_model import RECIPE as LANGUAGE_MODEL
from test_language_model import TALE

Here = Callable[..., Said]
WORLDS = (1, 2, 4)
LONG = "DTRAIN_TEST_LONG" in os.environ
STEPS = 20

# Four micro-batches of two to each update; the last batch of an epoch has two of them, or three.
COMMON = ("train.batch_size=8", "train.micro_batch_size=2", "train.lanes=4")
RECIPES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "classifier": (
        CLASSIFIER.replace("epochs = 2", "steps = 6"),
        ("optimizers.classifier.clip=0.5", "averages.classifier.decay=0.9"),
    ),
    "gan": (GAN, ()),
    "language_model": (LANGUAGE_MODEL, ("optimizers.language_model.clip=0.3",)),
}


def written_all(folder: Path, name: str) -> Path:
    """A recipe and what it reads."""
    (folder / name).mkdir()
    (folder / name / "tale.txt").write_text(TALE * 16, encoding="utf-8")
    return written(folder / name, "recipe.toml", RECIPES[name][0])


def trained_on(world: int, recipe: Path, *overrides: str) -> Path:
    """Train on so many processes; the folder of the run."""
    runs, log = recipe.parent / f"runs-{world}", recipe.parent / f"log-{world}"
    lives = start_world(world, "run", recipe, *overrides, "--runs", runs, log=log)
    assert [life.end() for life in lives] == [0] * world, [life.said for life in lives]
    return only_run(runs)


@pytest.mark.parametrize("name", RECIPES)
def test_any_number_of_processes_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    recipe = written_all(tmp_path, name)
    overrides = (*COMMON, *RECIPES[name][1], f"train.steps={STEPS}", "every.evaluate=50", "every.save=0")
    alone, *others = [trained_on(world, recipe, *overrides) for world in WORLDS]
    assert len(last_tensors(alone)) > 10
    for run in others:
        assert last_tensors(run) == last_tensors(alone)
        assert metrics_of(run) == metrics_of(alone)
