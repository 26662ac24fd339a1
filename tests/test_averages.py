"""Averages of weights: against formulas and torch.optim.swa_utils, over resumes and processes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Said, cut_off, last_tensors, metrics_of, only_run, start_two
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import dtrain
from dtrain.backends.torch_weights import tensors_of
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.errors import RecipeErrors
from dtrain.events import Evaluated
from dtrain.spec.averages import Average
from dtrain.spec.table import KINDS

Here = Callable[..., Said]
EMA = 'averages.classifier={ kind = "ema", decay = 0.9, warmup = 10, every = 2 }'
SWA = 'averages.classifier={ kind = "swa", start = 2, every = 2 }'
BOTH = {"ema": EMA, "swa": SWA}


def test_every_kind_of_average_is_tried() -> None:
    assert BOTH.keys() == KINDS[Average].keys()


def plain() -> nn.Module:
    """The model of the recipe in plain torch."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64, 3),
    )


def weights_of(run: dtrain.Run, part: str = "models") -> dict[str, Tensor]:
    """A copy of all that a checkpoint would hold of the models, or of their averages."""
    found = (each for each in run.engine.tensors() if each[0] == part)
    return {name.removeprefix("classifier/"): tensor.clone() for _, name, tensor in found}


def course(run: dtrain.Run) -> Iterator[dict[str, Tensor]]:
    """The weights before the first step and after each; a step of a classifier is one update."""
    for event in dtrain.train(run):
        if isinstance(event, dtrain.events.Started | dtrain.events.Stepped):
            yield weights_of(run)


def parameters(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if name.endswith(("weight", "bias"))}


def test_an_average_with_warmup_keeps_the_share_of_its_formula(classifier: Path, tmp_path: Path) -> None:
    recipe = dtrain.load(classifier, [EMA, 'train.precision="fp64"'])
    with dtrain.setup(recipe, runs=tmp_path) as run:
        first, *others = map(parameters, course(run))
        found = weights_of(run, "averages")
    assert found.keys() == first.keys()
    for taken, weights in enumerate(others[1::2]):
        share = min(0.9, (1 + taken) / (10 + taken))
        first = {name: share * mean + (1 - share) * weights[name] for name, mean in first.items()}
    for name, mean in first.items():
        torch.testing.assert_close(found[name], mean, rtol=1e-12, atol=1e-14)


def averaged(run: dtrain.Run, weights: Iterator[dict[str, Tensor]], **options: Callable) -> AveragedModel:
    """What torch's own averaging makes of a course of weights."""
    model = plain()
    mean = AveragedModel(model, **options)
    for each in weights:
        model.load_state_dict(each)
        mean.update_parameters(model)
    return mean


def test_an_average_without_kind_is_that_of_torch(classifier: Path, tmp_path: Path) -> None:
    with dtrain.setup(dtrain.load(classifier, ["averages.classifier={ decay = 0.9 }"]), runs=tmp_path) as run:
        theirs = averaged(run, course(run), multi_avg_fn=get_ema_multi_avg_fn(0.9))
        found = weights_of(run, "averages")
    assert found.keys() == dict(theirs.module.named_parameters()).keys()
    for name, mean in theirs.module.named_parameters():
        torch.testing.assert_close(found[name], mean.detach(), rtol=1e-6, atol=1e-7)


def test_an_equal_average_and_its_statistics_are_those_of_torch(classifier: Path, tmp_path: Path) -> None:
    with dtrain.setup(dtrain.load(classifier, [SWA]), runs=tmp_path) as run:
        weights = list(course(run))  # of 7 moments
        theirs = averaged(run, (weights[step] for step in (3, 5)))  # after the third step, and the fifth
        images = [
            torch.from_numpy(np.asarray(batch["image"])).float()
            for update in range(run.order.updates_per_epoch)
            for _, batch in run.loader.load(update)
        ]
        update_bn(images, theirs)
        found = weights_of(run, "averages")
    wanted = theirs.module.state_dict()
    assert found.keys() == wanted.keys()
    for name, mean in parameters(wanted).items():
        torch.testing.assert_close(found[name], mean, rtol=1e-6, atol=1e-8)
    for name in wanted.keys() - parameters(wanted).keys():
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-6, atol=1e-7)
    assert not torch.allclose(found["1.running_mean"], weights[-1]["1.running_mean"], atol=1e-3)


def test_an_equal_average_is_the_model_itself_before_it_begins(classifier: Path, tmp_path: Path) -> None:
    overrides = ['averages.classifier={ kind = "swa", start = 4 }', "every.save=1", "checkpoint.keep=9"]
    with dtrain.setup(dtrain.load(classifier, overrides), runs=tmp_path) as run:
        list(dtrain.train(run))
    for path in checkpoints_in(run.folder):
        saved = open_checkpoint(path)
        own, mean = tensors_of(saved, "models"), tensors_of(saved, "averages")
        assert own.keys() == mean.keys()
        begun = saved.step > 5  # of the first of them alone the average is the same weights
        assert all(torch.equal(own[name], mean[name]) for name in parameters(own)) != begun, saved.step


@pytest.mark.parametrize("average", BOTH.values(), ids=BOTH)
def test_an_average_resumes_to_the_bit(
    classifier: Path, tmp_path: Path, dtrain_here: Here, average: str
) -> None:
    command = ["run", classifier, average, "train.epochs=4"]
    assert dtrain_here(*command, "--runs", tmp_path / "alone").code == 0
    cut_off(classifier, tmp_path / "runs", 6, *map(str, command[2:]))
    assert "carrying on" in dtrain_here(*command, "--runs", tmp_path / "runs").out
    run, alone = only_run(tmp_path / "runs"), only_run(tmp_path / "alone")
    assert last_tensors(run) == last_tensors(alone)
    resumed = metrics_of(run)
    assert resumed == metrics_of(alone)[-len(resumed) :]


@pytest.mark.parametrize("average", BOTH.values(), ids=BOTH)
def test_an_average_is_the_same_on_two_processes(
    classifier: Path, tmp_path: Path, dtrain_here: Here, average: str
) -> None:
    command = ["run", classifier, average, 'train.precision="fp64"']
    assert dtrain_here(*command, "--runs", tmp_path / "alone").code == 0
    lives = start_two(*command, "--runs", tmp_path / "runs", log=tmp_path / "log")
    assert [life.end() for life in lives] == [0, 0], lives[0].said
    one, two = (
        tensors_of(open_checkpoint(checkpoints_in(only_run(tmp_path / runs))[-1]), "averages")
        for runs in ("alone", "runs")
    )
    assert one.keys() == two.keys()
    for name, mean in one.items():
        torch.testing.assert_close(two[name], mean, rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("average", BOTH.values(), ids=BOTH)
def test_an_average_that_is_not_evaluated_is_kept_and_the_model_evaluated(
    classifier: Path, tmp_path: Path, average: str
) -> None:
    kept = average.replace(" }", ", evaluate = false }")
    seen = {}
    for name, overrides in {"none": [], "kept": [kept], "used": [average]}.items():
        with dtrain.setup(dtrain.load(classifier, overrides), runs=tmp_path / name) as run:
            events = [e for e in dtrain.train(run) if isinstance(e, Evaluated)]
        seen[name] = [event.metrics for event in events]
    assert seen["kept"] == seen["none"]
    assert seen["used"] != seen["none"]
    saved = tensors_of(open_checkpoint(checkpoints_in(only_run(tmp_path / "kept"))[-1]), "averages")
    used = tensors_of(open_checkpoint(checkpoints_in(only_run(tmp_path / "used"))[-1]), "averages")
    assert all(torch.equal(saved[name], used[name]) for name in used)


def test_loaded_models_have_the_statistics_of_their_averages(classifier: Path, tmp_path: Path) -> None:
    with dtrain.setup(dtrain.load(classifier, [SWA]), runs=tmp_path) as run:
        list(dtrain.train(run))
        found = weights_of(run, "averages")
    loaded = dtrain.load_models(run.folder)["classifier"].state_dict()
    assert all(torch.equal(loaded[name], mean) for name, mean in found.items())
    own = dtrain.load_models(run.folder, averages=False)["classifier"].state_dict()
    assert not torch.equal(own["1.running_mean"], loaded["1.running_mean"])


def test_an_average_that_would_never_begin_is_a_mistake(classifier: Path) -> None:
    late = ['averages.classifier={ kind = "swa", start = 8 }', "train.steps=8", 'train.epochs="${unset}"']
    with pytest.raises(RecipeErrors, match=r"start: found 8, but the whole run has 8 steps; less would do"):
        dtrain.load(classifier, late)
