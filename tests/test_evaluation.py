"""Evaluation: every example once, weighed as the system says, whatever the micro-batches and ranks."""

from pathlib import Path

import pytest
from conftest import CLASSIFIER, metrics_of, written

import dtrain

WEIGHING = """
from dtrain.systems.base import Evaluation
from dtrain.systems.classifier import Classifier

class Weighing(Classifier):
    evaluates = {"sum": None}

    def evaluate(self, models, batch, ops):
        logits, labels = self.predict(models, batch, ops)
        weight = labels.sum()  # as many items in an example as its label says; perhaps none in a micro-batch
        terms = {"sum": (logits.sum(-1) * labels).sum() / weight}
        return Evaluation(terms, weight=weight)
"""
SHORT = ("train.epochs=1", 'train.precision="fp64"', "optimizers.classifier.lr=0", "every.evaluate=0")


def evaluated(run: Path) -> dict[str, float]:
    """The last evaluation of a run."""
    lines = [values for _, values in metrics_of(run) if any(name.startswith("evaluate/") for name in values)]
    return {name: value for name, value in lines[-1].items() if name.startswith("evaluate/")}


def evaluate_alone(recipe: Path, runs: Path, *overrides: str) -> dict[str, float]:
    """The metrics after one epoch in one process."""
    loaded = dtrain.load(recipe, [*SHORT, *overrides])
    with dtrain.setup(loaded, runs=runs) as run, dtrain.watch(run) as observe:
        for event in dtrain.train(run):
            observe(event)
    return evaluated(run.folder)


def test_terms_are_means_over_the_items_that_the_system_counts(tmp_path: Path, on_cpu: None) -> None:
    (tmp_path / "weighing.py").write_text(WEIGHING)
    text = CLASSIFIER.replace('kind = "classifier"', 'kind = "./weighing.py:Weighing"')
    recipe = written(tmp_path, "r.toml", text.replace('{ kind = "batch_norm" },', ""))
    whole, *parts = (
        evaluate_alone(recipe, tmp_path / str(micro), f"train.micro_batch_size={micro}")
        for micro in (8, 4, 2, 1)
    )
    for found in parts:
        assert found == pytest.approx(whole, rel=1e-12)
