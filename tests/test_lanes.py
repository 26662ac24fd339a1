"""Lanes: any number of processes that divides them gives the same bits."""

import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSIFIER, GAN, Said, last_tensors, metrics_of, start_world, tensors_of, written
from test_language_model import RECIPE as LANGUAGE_MODEL
from test_language_model import TALE
from torch import Tensor, nn

import dtrain
from dtrain.checkpoint.read import checkpoints_in
from dtrain.events import Saved

pytestmark = pytest.mark.worlds

Here = Callable[..., Said]
WORLDS = (1, 2, 4)
LONG = "DTRAIN_TEST_LONG" in os.environ
STEPS = 200 if LONG else 24
HALF = STEPS // 2

# Micro-batches of two: four to an update, and two in the last of an epoch, or three, the third smaller.
LANES = f"""\
[train]
steps = {STEPS}
batch_size = 8
micro_batch_size = 2
lanes = 4

[every]
log = 1
evaluate = {HALF}
save = {HALF}

[track]
kinds = ["jsonl"]
"""
RECIPES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "classifier": (CLASSIFIER, ("optimizers.classifier.clip=0.5", "averages.classifier.decay=0.9")),
    "gan": (GAN, ()),
    "language_model": (LANGUAGE_MODEL, ("optimizers.language_model.clip=0.3",)),
    "moody": (
        CLASSIFIER,
        (
            'models={classifier={kind="test_lanes:Moody"}}',
            'optimizers={classifier={kind="adamw",lr=1e-2}}',
        ),
    ),
}
SHIPPED = ("classifier", "gan", "language_model")
SHORTENED = (  # of the shipped recipes
    "train={steps=200,batch_size=32,micro_batch_size=8,lanes=4}",
    "every={log=1,evaluate=0,sample=0,save=0}",
    'track.kinds=["jsonl"]',
)


class Moody(nn.Module):
    """A classifier with a part that not all micro-batches use, and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)
        self.more = nn.Linear(64, 3)
        self.never = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x.flatten(1))
        return out + self.more(x.flatten(1)) if x.mean() > 0 else out


def recipe_of(folder: Path, name: str) -> Path:
    """A recipe and what it reads."""
    text = RECIPES[name][0]
    (folder / name).mkdir()
    (folder / name / "tale.txt").write_text(TALE * 16, encoding="utf-8")
    return written(folder / name, "recipe.toml", text[: text.index("[train]")] + LANES)


def train_all(arguments: list[str]) -> int:
    """Train recipes in one world, one after the other: to the end, or to a checkpoint."""
    until, runs, *recipes = arguments
    for recipe in recipes:
        _, overrides = RECIPES.get(Path(recipe).parent.name, ("", SHORTENED))
        with (
            dtrain.setup(dtrain.load(recipe, overrides), runs=Path(recipe).with_name(runs)) as run,
            dtrain.watch(run) as observe,
        ):
            for event in dtrain.train(run):
                observe(event)
                if isinstance(event, Saved) and event.step == int(until):
                    break
    return 0


def train_on(world: int, until: int, runs: str, *recipes: Path) -> None:
    log = recipes[0].with_name(f"log-{runs}-{world}")
    lives = start_world(world, str(until), runs, *recipes, log=log, action=train_all)
    assert [life.end(900) for life in lives] == [0] * world, [life.said for life in lives]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where every recipe was trained on every number of processes, and the GAN by two and then by others."""
    folder = tmp_path_factory.mktemp("lanes")
    recipes = [recipe_of(folder, name) for name in RECIPES]
    for world in WORLDS:
        train_on(world, STEPS, f"on-{world}", *recipes)
    return folder


def only(folder: Path, name: str = "*") -> Path:
    """The one run of a name in a folder of runs."""
    (run,) = folder.glob(f"{name}/*")
    return run


@pytest.mark.parametrize("name", RECIPES)
def test_any_number_of_processes_gives_the_same_bits(folder: Path, name: str) -> None:
    alone, *others = [only(folder / name / f"on-{world}") for world in WORLDS]
    for run in others:
        for path in checkpoints_in(alone):  # weights, optimizer state and averages
            assert tensors_of(run / "checkpoints" / path.name) == tensors_of(path)
        assert metrics_of(run) == metrics_of(alone)
    assert len(metrics_of(alone)) >= STEPS


@pytest.mark.skipif(not LONG, reason="takes minutes; DTRAIN_TEST_LONG=1 runs it")
def test_shipped_recipes_have_the_same_bits_on_any_number_of_processes(tmp_path: Path) -> None:
    shutil.copytree(Path(dtrain.__file__).parents[1] / "recipes", tmp_path / "recipes")
    for world in WORLDS:
        recipes = [tmp_path / "recipes" / f"{name}.toml" for name in SHIPPED]
        train_on(world, 200, f"on-{world}", *recipes)
    for name in SHIPPED:
        alone, *others = [only(tmp_path / "recipes" / f"on-{world}", name) for world in WORLDS]
        for run in others:
            assert last_tensors(run) == last_tensors(alone)
            assert metrics_of(run) == metrics_of(alone)


@pytest.mark.parametrize(("first", "then"), [(2, 4), (4, 1)] if LONG else [(4, 1)])
def test_a_run_goes_on_on_another_number_of_processes_to_the_same_bits(
    folder: Path, first: int, then: int
) -> None:
    recipe, runs = folder / "gan" / "recipe.toml", f"from-{first}-to-{then}"
    train_on(first, HALF, runs, recipe)
    assert len(checkpoints_in(only(recipe.with_name(runs)))) == 1
    train_on(then, STEPS, runs, recipe)
    moved, alone = only(recipe.with_name(runs)), only(recipe.with_name("on-1"))
    assert last_tensors(moved) == last_tensors(alone)
    assert metrics_of(moved) == metrics_of(alone)


def test_a_lane_adds_up_its_micro_batches_and_then_lanes_are_added(tmp_path: Path, on_cpu: None) -> None:
    text = CLASSIFIER.replace("epochs = 2", "steps = 1").replace('"adamw"', '"sgd"')
    layers = 'layers = [{ kind = "flatten" }, { kind = "linear", out = 3, bias = false }]\n\n'
    text = text[: text.index("layers")] + layers + text[text.index("[optimizers") :]
    recipe = written(tmp_path, "recipe.toml", text)
    found = {}
    for lanes in (1, 2):
        overrides = [f"train.lanes={lanes}", "train.micro_batch_size=1", "optimizers.classifier.lr=1"]
        with dtrain.setup(dtrain.load(recipe, overrides), runs=tmp_path / "runs", fresh=True) as run:
            (first,) = [value.clone() for part, _, value in run.engine.tensors() if part == "models"]
            batches = [
                {name: torch.from_numpy(array).clone() for name, array in arrays.items()}
                for _, arrays in run.loader.load(0)
            ]
            for _ in dtrain.train(run):
                pass
            (found[lanes],) = [value.clone() for part, _, value in run.engine.tensors() if part == "models"]

    def gradient(batch: Mapping[str, Tensor]) -> Tensor:
        weight = first.clone().requires_grad_()
        logits = batch["image"].flatten(1) @ weight.T
        (F.cross_entropy(logits, batch["label"], label_smoothing=0.1) * (1 / 8)).backward()
        assert weight.grad is not None
        return weight.grad

    g = [gradient(batch) for batch in batches]
    in_order = g[0] + g[1] + g[2] + g[3] + g[4] + g[5] + g[6] + g[7]
    in_two = (g[0] + g[2] + g[4] + g[6]) + (g[1] + g[3] + g[5] + g[7])
    assert not torch.equal(in_order, in_two)
    assert torch.equal(found[1], first - in_order)
    assert torch.equal(found[2], first - in_two)


@pytest.mark.parametrize(
    ("lanes", "processes", "said"),
    [
        (5, 1, r"train\.lanes: found 5, but an update has 4 micro-batches .*; 4 would do"),
        (3, 2, r"train\.lanes: 3 cannot be shared evenly by 2 processes; 4 would do"),
        (2, 4, r"train\.lanes: 2 cannot be shared evenly by 4 processes; 4 would do"),
    ],
)
def test_lanes_that_processes_cannot_share_are_refused(
    gan: Path, dtrain_here: Here, lanes: int, processes: int, said: str
) -> None:
    overrides = ("train.micro_batch_size=2", f"train.lanes={lanes}", "--processes", str(processes))
    ended = dtrain_here("check", gan, *overrides)
    assert ended.code == 2
    assert re.search(said, ended.errors)


@pytest.mark.parametrize("kind", ['"fsdp"', '"zero", stage = 2'])
def test_lanes_are_of_whole_gradients_alone(gan: Path, dtrain_here: Here, kind: str) -> None:
    (gan.parent / "scale.toml").write_text(f"engine = {{ kind = {kind} }}")
    ended = dtrain_here("run", gan, "train.lanes=2", "--scale", gan.parent / "scale.toml")
    assert ended.code == 2
    assert "train.lanes: adds up gradients that are whole on every process" in ended.errors


def test_lanes_are_of_kernels_that_do_not_change(gan: Path, dtrain_here: Here) -> None:
    (gan.parent / "scale.toml").write_text('compile = { what = "blocks", backend = "eager" }')
    ended = dtrain_here("run", gan, "train.lanes=2", "--scale", gan.parent / "scale.toml")
    assert ended.code == 2
    assert "compile: chooses kernels by the batches that a process has met" in ended.errors
