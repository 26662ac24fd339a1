"""Evaluation: every example once, weighed as the system says, whatever the micro-batches and ranks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSIFIER, GAN, Said, last_tensors, metrics_of, only_run, start_two, written

import dtrain
from dtrain.checkpoint.read import checkpoints_in
from dtrain.errors import RecipeError
from dtrain.events import Evaluated, Event, Finished, Saved, Started
from dtrain.recipe.metrics import best_mode

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


# Losses are lowest where the weights are those of the start, as the rate is far too large.
STOPPING = (
    "every.evaluate=1",
    "every.save=1",
    "train.epochs=4",
    "optimizers.classifier.lr=0.3",
    'checkpoint.best="evaluate/loss"',
)


def steps_of(run: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in checkpoints_in(run)]


def watched(
    recipe: Path, runs: Path, *overrides: str, until: int = 99, **how: Any
) -> tuple[Path, list[Event]]:
    """Train up to a step and give the run and its events."""
    events: list[Event] = []
    with dtrain.setup(dtrain.load(recipe, overrides), runs=runs, **how) as run, dtrain.watch(run) as observe:
        for event in dtrain.train(run):
            observe(event)
            events.append(event)
            if isinstance(event, Saved) and event.step == until:
                break
    return run.folder, events


def test_a_run_that_does_not_become_better_ends_early_and_is_not_carried_on(
    classifier: Path, tmp_path: Path
) -> None:
    run, events = watched(classifier, tmp_path / "runs", *STOPPING, "train.patience=2")
    losses = {e.step: e.metrics["evaluate/loss"] for e in events if isinstance(e, Evaluated)}
    best = min(losses, key=lambda step: losses[step])
    assert max(losses) == best + 2 < 12
    assert isinstance(events[-1], Finished)
    assert events[-1].early == (
        f"evaluate/loss was not better than {losses[best]:.4g} of step {best} in 2 evaluations"
    )
    assert {best, best + 2} <= {*steps_of(run)}
    again, _ = watched(classifier, tmp_path / "runs", *STOPPING, "train.patience=2", until=1)
    assert again != run  # it is finished, so the same command begins anew
    same, events = watched(classifier, tmp_path / "runs", *STOPPING, "train.patience=2", resume=run)
    assert (same, [type(event) for event in events]) == (run, [Started, Finished])


def test_patience_is_exact_over_a_resume(classifier: Path, tmp_path: Path) -> None:
    settings = (*STOPPING, "train.patience=3")
    alone, events = watched(classifier, tmp_path / "alone", *settings)
    for cut in (events[-1].step - 1, events[-1].step - 2):
        runs = tmp_path / str(cut)
        first, _ = watched(classifier, runs, *settings, until=cut)
        second, _ = watched(classifier, runs, *settings)
        assert second == first
        assert last_tensors(second) == last_tensors(alone)
        assert metrics_of(second) == metrics_of(alone)


def test_two_ranks_end_at_the_same_step(classifier: Path, tmp_path: Path) -> None:
    settings = (*STOPPING, "train.patience=2", 'train.precision="fp64"')
    alone, _ = watched(classifier, tmp_path / "one", *settings)
    ranks = start_two(
        "run",
        classifier,
        *settings,
        'track.kinds=["console"]',
        "--runs",
        tmp_path / "two",
        log=tmp_path / "log",
    )
    assert [rank.end() for rank in ranks] == [0, 0], ranks[0].said + ranks[1].said
    two = only_run(tmp_path / "two")
    assert steps_of(two)[-1] == steps_of(alone)[-1]
    assert "evaluate/loss was not better than" in ranks[0].said
    assert "\nbest        " in ranks[0].said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.patience=2"], r"train\.patience: needs the metric that is to become better"),
        (
            ["train.patience=2", 'checkpoint.best="evaluate/loss"', "every.evaluate=0"],
            r"train\.patience: nothing is evaluated before the end",
        ),
        (
            ["evaluate.metrics.loss={kind='accuracy'}"],
            r"evaluate\.metrics\.loss: the system evaluates this itself",
        ),
        (
            ["evaluate.metrics.own={kind='torch.nn:MultiMarginLoss'}", "checkpoint.best='evaluate/own'"],
            r'checkpoint\.mode: required, as nothing says which value of "evaluate/own" is best',
        ),
    ],
)
def test_what_cannot_be_is_found_before_the_run(classifier: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        dtrain.load(classifier, overrides)


@pytest.mark.parametrize(
    ("overrides", "mode"),
    [
        (["checkpoint.best='evaluate/loss'"], "min"),
        (["checkpoint.best='evaluate/accuracy'"], "max"),
        (["checkpoint.best='evaluate/loss'", "checkpoint.mode='max'"], "max"),
        (["checkpoint.best='evaluate/p'", "evaluate.metrics.p.kind='perplexity'"], "min"),
        (["checkpoint.best='evaluate/f'", "evaluate.metrics.f.kind='f1'"], "max"),
        ([], None),
    ],
)
def test_which_value_is_best_need_not_be_said_where_it_is_known(
    classifier: Path, overrides: list[str], mode: str | None
) -> None:
    assert best_mode(dtrain.load(classifier, overrides)) == mode


def test_a_metric_that_will_not_do_is_found_before_the_first_step(classifier: Path, tmp_path: Path) -> None:
    recipe = dtrain.load(classifier, ["evaluate.metrics.top={kind='top_k',k=4}", "every.evaluate=0"])
    with (
        dtrain.setup(recipe, runs=tmp_path) as run,
        pytest.raises(RecipeError, match=r"evaluate\.metrics\.top\.k: found 4, but there are 3 classes"),
    ):
        next(dtrain.train(run))


def test_features_of_a_trained_classifier_tell_how_far_a_gan_is(
    classifier: Path, tmp_path: Path, dtrain_here: Callable[..., Said]
) -> None:
    judge, _ = watched(classifier, tmp_path / "judge", 'train.precision="fp64"')
    gan = written(tmp_path, "gan.toml", GAN)
    frechet = f"evaluate.metrics.far={{ kind = 'frechet', features = '{judge}', layers = 5 }}"
    settings = (frechet, 'checkpoint.best="evaluate/far"', 'train.precision="fp64"')
    run, events = watched(gan, tmp_path / "gan", *settings, "train.steps=4", "every.evaluate=0")
    (evaluated,) = (event.metrics for event in events if isinstance(event, Evaluated))
    assert evaluated["evaluate/far"] > 0
    said = dtrain_here("evaluate", run, "--json", "train.micro_batch_size=8")
    again = json.loads(said.out)["metrics"]["evaluate/far"]
    ranks = start_two("evaluate", run, "--json", "train.micro_batch_size=8", log=tmp_path / "log")
    assert [rank.end() for rank in ranks] == [0, 0], ranks[0].said
    assert json.loads(ranks[0].said)["metrics"]["evaluate/far"] == pytest.approx(again, rel=1e-9)
