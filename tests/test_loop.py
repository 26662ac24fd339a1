"""The loop: what it logs, saves and refuses."""

import json
from pathlib import Path

import pytest
import torch
from conftest import CLASSIFIER, written

import dtrain
from dtrain.checkpoint.read import checkpoints_in
from dtrain.errors import DivergedError, RecipeError
from dtrain.events import Evaluated, Stepped
from dtrain.run import Run


def steps_of(run: Run) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints_in(run.folder)]


def test_an_average_is_a_leaf_and_keeps_no_graph(gan: Path, tmp_path: Path) -> None:
    with dtrain.setup(dtrain.load(gan, ["train.steps=4"]), runs=tmp_path) as run:
        for _ in dtrain.train(run):
            pass
        averages = [t for part, _, t in run.engine.tensors() if part == "averages"]
        own = [part for parts in run.engine.averages.parts.values() for part in parts]  # type: ignore[attr-defined]
    assert averages
    assert all(p.is_leaf and not p.requires_grad for p in own)


def test_the_best_evaluation_is_saved_though_no_save_is_due(classifier: Path, tmp_path: Path) -> None:
    overrides = ['checkpoint.best="evaluate/loss"', 'checkpoint.mode="min"', "checkpoint.keep=1"]
    recipe = dtrain.load(classifier, [*overrides, "every.save=0", "every.evaluate=1", "train.epochs=3"])
    losses = {}
    with dtrain.setup(recipe, runs=tmp_path / "runs") as run:
        for event in dtrain.train(run):
            if isinstance(event, Evaluated):
                losses[event.step] = event.metrics["evaluate/loss"]
    best = min(losses, key=lambda step: losses[step])
    assert steps_of(run) == sorted({best, max(losses)})


def test_a_best_metric_that_is_not_evaluated_is_a_mistake_before_the_run(classifier: Path) -> None:
    with pytest.raises(RecipeError, match=r'checkpoint\.best: .*did you mean "evaluate/accuracy"'):
        dtrain.load(classifier, ['checkpoint.best="evaluate/acuracy"'])


def test_the_best_of_another_metric_is_forgotten_on_a_resume(classifier: Path, tmp_path: Path) -> None:
    first = dtrain.load(classifier, ['checkpoint.best="evaluate/loss"', "train.epochs=1"])
    with dtrain.setup(first, runs=tmp_path / "runs") as run:
        list(dtrain.train(run))
    second = dtrain.load(classifier, ['checkpoint.best="evaluate/accuracy"'])
    with dtrain.setup(second, runs=tmp_path / "runs", resume=run.folder) as resumed:
        assert (resumed.step, resumed.best.at) == (3, None)


def test_a_gradient_that_is_not_finite_stops_the_run_before_a_save(classifier: Path, tmp_path: Path) -> None:
    recipe = dtrain.load(classifier, ["every.log=0", "every.save=1"])
    with dtrain.setup(recipe, runs=tmp_path / "runs") as run:
        model = run.engine.bare["classifier"]  # type: ignore[attr-defined]
        model[0].weight.requires_grad_(True).register_hook(lambda slope: torch.full_like(slope, torch.nan))
        model[0].weight.requires_grad_(False)
        with pytest.raises(
            DivergedError, match="step 1, phase classifier: the loss is finite, but the gradient"
        ):
            list(dtrain.train(run))
    assert steps_of(run) == []


def test_losses_are_in_full_precision_where_models_are_in_half(classifier: Path, tmp_path: Path) -> None:
    recipe = dtrain.load(classifier, ['train.precision="bf16"', "train.micro_batch_size=4"])
    with dtrain.setup(recipe, runs=tmp_path / "runs") as run:
        shares = [e.metrics["evaluate/accuracy"] * 6 for e in dtrain.train(run) if isinstance(e, Evaluated)]
    assert shares
    assert all(share == pytest.approx(round(share), abs=1e-6) for share in shares)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("out = 3 },", "out = 2 },", "the data has 3 classes, but models.classifier gives 2"),
        ("input = [1, 8, 8]", "input = [1, 8, 9]", r"models.classifier.input: is \[1, 8, 9\]"),
        ("batch_size = 8", "batch_size = 32", "32 is more than the 20 examples"),
        (
            'kind = "classifier"\n',
            'kind = "classifier"\nlabel = "labels"\n',
            'the data has no field "labels"; it has',
        ),
        ('kind = "classifier"\n', 'kind = "classifier"\nlabel = "image"\n', "must be single whole numbers"),
    ],
)
def test_data_that_does_not_fit_is_a_mistake(
    tmp_path: Path, on_cpu: None, old: str, new: str, said: str
) -> None:
    assert CLASSIFIER.count(old) == 1 or old == "batch_size = 8"
    recipe = dtrain.load(written(tmp_path, "r.toml", CLASSIFIER.replace(old, new, 1)))
    with pytest.raises(RecipeError, match=said):
        dtrain.setup(recipe, runs=tmp_path / "runs")


def test_a_phase_of_every_other_step_is_logged_once_for_each_update(tmp_path: Path, gan: Path) -> None:
    (tmp_path / "every_other.py").write_text(
        "from dataclasses import dataclass, replace\n"
        "from dtrain.systems.gan import GAN\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Slow(GAN):\n"
        "    def phases(self):\n"
        "        first, second = super().phases()\n"
        "        return first, replace(second, every=2)\n"
    )
    text = gan.read_text().replace('kind = "gan"', 'kind = "every_other:Slow"')
    (tmp_path / "slow.toml").write_text(text)
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        recipe = dtrain.load(tmp_path / "slow.toml", ["train.steps=6", "every.log=2"])
        with dtrain.setup(recipe, runs=tmp_path / "runs") as run:
            logged = [e.metrics for e in dtrain.train(run) if isinstance(e, Stepped) and e.metrics]
    finally:
        sys.path.remove(str(tmp_path))
    assert len(logged) == 3
    assert all("generator/loss" in json.loads(json.dumps(dict(metrics))) for metrics in logged)
