"""Kinds given by an import path in whole recipes: layers, losses, metrics, a user's own systems and data."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSIFIER, GAN, last_tensors, metrics_of, only_run, start, start_two, written
from torch import nn

import dtrain
from dtrain.data.opening import open_examples
from dtrain.errors import RecipeError, RecipeErrors
from dtrain.recipe.imports import check_imports, missing_modules
from dtrain.recipe.load import load
from dtrain.spec.trust import EVERYTHING

WRONG = """
[system]
kind = "classifier"
loss = { kind = "torch.nn:MultiMarginLoss", margins = 0.5 }

[models.classifier]
input = [1, 8, 8]
layers = [
    { kind = "torch.nn:Flatten", output = [64], start = 1 },
    { kind = "residual", layers = [{ kind = "torch.nn:PReLU", num_parameter = 1 }] },
    { kind = "repeat", times = 2, layers = [{ kind = "torch.nn:PReLUU" }] },
    { kind = "torch.optim:Adam" },
    { kind = "linear", out = 3 },
]

[optimizers.classifier]
kind = "torch.optim:NAdam"
lr = 1e-3
betaz = [0.5, 0.9]

[optimizers.classifier.schedule]
kind = "torch.optim.lr_scheduler:SequentialLR"
milestones = [3]
schedulers = [
    { kind = "torch.optim.lr_scheduler:StepLR" },
    { kind = "torch.optim.lr_scheduler:ExponentialLr", gamma = 0.9 },
    { kind = "torch.optim.lr_scheduler:LambdaLR", lr_lambda = "math:sqroot" },
]

[data]
kind = "torchless.datasets:MNIST"

[evaluate.data]
kind = "torch.utils.data:TensorDataset"
tensor = 3
examples = { field = ["image"] }

[evaluate.metrics]
sum = { kind = "torch.nn:CrossEntropyLoss", reduction = "sum" }
weird = { kind = "math:sqrt" }
running = { kind = "my_measures:Running" }
"""

MEASURES = """
from torch import nn
class Running(nn.Module):
    def update(self, preds, target): ...
    def compute(self): ...
def agreement(prediction, target, *, top=1):
    best = prediction.topk(top, dim=-1).indices
    return (best == target[:, None]).any(-1).double().mean()
def margin(prediction, target):
    return prediction.gather(1, target[:, None]).neg().mean()
def each(prediction, target):
    return (prediction.argmax(-1) == target).float()
class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(1, 1)
"""


@pytest.fixture
def measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of losses and metrics."""
    (tmp_path / "my_measures.py").write_text(MEASURES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_measures", raising=False)


def test_every_mistake_about_what_is_imported_has_its_key(
    measures: None, classifier: Path, tmp_path: Path
) -> None:
    text = classifier.read_text()
    head, _, tail = text.partition("[system]")
    classifier.write_text(head + WRONG + tail[tail.index("\n[train]") :])
    with pytest.raises(RecipeErrors) as caught:
        dtrain.load(classifier)
    found = {error.key: error for error in caught.value.errors}
    expected = {
        "system.loss.margins": 'MultiMarginLoss takes no such argument; did you mean "margin"?',
        "models.classifier.layers[0].start": "Flatten takes no such argument",
        "models.classifier.layers[1].layers[0].num_parameter": 'did you mean "num_parameters"?',
        "models.classifier.layers[2].layers[0].kind": 'did you mean "torch.nn:PReLU"?',
        "models.classifier.layers[3].kind": "a subclass of torch.nn.Module",
        "optimizers.classifier.betaz": 'NAdam takes no such argument; did you mean "betas"?',
        "optimizers.classifier.schedule.schedulers[0].step_size": "required by StepLR, but missing",
        "optimizers.classifier.schedule.schedulers[1].kind": 'lr_scheduler:ExponentialLR"?',
        "optimizers.classifier.schedule.schedulers[2].lr_lambda": 'did you mean "math:sqrt"?',
        "data.kind": "No module named 'torchless'; is it installed?",
        "evaluate.data.examples.field": 'did you mean "fields"?',
        "evaluate.metrics.sum.reduction": "a mean over them would do",
        "evaluate.metrics.weird.kind": "sqrt takes 1 argument by position, and dtrain gives it 2",
        "evaluate.metrics.running.kind": "a subclass of torchmetrics.metric.Metric, or a function such",
    }
    assert found.keys() == expected.keys()
    for key, said in expected.items():
        assert said in found[key].message
    assert found["optimizers.classifier.betaz"].is_key
    assert found["optimizers.classifier.betaz"].suggestion == "betas"


def test_a_system_that_predicts_nothing_has_no_metrics(gan: Path, tmp_path: Path) -> None:
    (tmp_path / "silent.py").write_text(
        "from dtrain.systems.base import System\n"
        "from dtrain.systems.gan import GAN\n\n"
        "class Silent(GAN):\n"
        "    predict = System.predict\n"
    )
    text = GAN.replace('kind = "gan"', 'kind = "./silent.py:Silent"')
    gan.write_text(text + '\n[evaluate.metrics.mse]\nkind = "torch.nn.functional:mse_loss"\n')
    with pytest.raises(RecipeErrors, match=r"evaluate\.metrics: the gan has no predictions to measure"):
        dtrain.load(gan)


@pytest.mark.parametrize("brings", [True, False])
def test_metrics_of_predictions_cost_no_second_forward_where_the_system_brings_them(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brings: bool
) -> None:
    name = f"counting_{brings}".lower()
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n"
        "from dtrain.systems.classifier import Classifier\n\n"
        "class Own(Classifier):\n"
        "    def evaluate(self, models, batch, ops):\n"
        f"        shown = super().evaluate(models, batch, ops)\n"
        f"        return shown if {brings} else shown.terms\n\n"
        "class Counting(nn.Flatten):\n"
        "    seen = []\n"
        "    def forward(self, x):\n"
        "        Counting.seen.append(len(x)) if not self.training else None\n"
        "        return super().forward(x)\n"
    )
    text = CLASSIFIER.replace('kind = "classifier"', f'kind = "./{name}.py:Own"')
    text = text.replace('{ kind = "flatten" }', f'{{ kind = "./{name}.py:Counting", output = [64] }}')
    metrics = '\n[evaluate.metrics]\nmargin = { kind = "torch.nn:MultiMarginLoss" }\n'
    classifier.write_text(text + metrics)
    recipe = dtrain.load(classifier, ["train.epochs=1", "every.evaluate=0", "train.micro_batch_size=4"])
    with dtrain.setup(recipe, runs=tmp_path / "runs") as run:
        seen = sys.modules[name].Counting.seen
        seen.clear()
        list(dtrain.train(run))
    assert seen == ([4, 4, 2] if brings else [4, 4, 4, 4, 2, 2])  # [4] is the look at the start


def test_checking_imports_without_mistakes_says_nothing(classifier: Path) -> None:
    recipe = dtrain.load(classifier)
    assert check_imports(vars(recipe), EVERYTHING) == (recipe.system, [])


STACK = """\
layers = [
    { kind = "torch.nn:Conv2d", in_channels = 1, out_channels = 4, kernel_size = 3, output = [4, 6, 6] },
    { kind = "torch.nn:BatchNorm2d", num_features = 4 },
    { kind = "torch.nn:PReLU", num_parameters = 4 },
    { kind = "residual", layers = [
        { kind = "torch.nn:Conv2d", in_channels = 4, out_channels = 4, kernel_size = 1 },
        { kind = "torch.nn:Mish" },
    ] },
    { kind = "torch.nn:AdaptiveAvgPool2d", output_size = 2, output = [4, 2, 2] },
    { kind = "flatten" },
    { kind = "torch.nn:Dropout", p = 0.3 },
    { kind = "linear", out = 3 },
]
"""


def with_layers(text: str, layers: str) -> str:
    head, _, tail = text.partition("layers = [")
    return head + layers + tail[tail.index("\n[optimizers") :]


def train(recipe: Path, runs: Path, *overrides: str) -> Path:
    with dtrain.setup(dtrain.load(recipe, overrides), runs=runs) as run, dtrain.watch(run) as observe:
        for event in dtrain.train(run):
            observe(event)
    return run.folder


def test_a_stack_of_imported_layers_trains_resumes_and_is_loaded(classifier: Path, tmp_path: Path) -> None:
    classifier.write_text(with_layers(CLASSIFIER, STACK) + "\n[averages.classifier]\ndecay = 0.9\n")
    whole = train(classifier, tmp_path / "whole")
    with dtrain.setup(dtrain.load(classifier), runs=tmp_path / "cut") as run:
        for event in dtrain.train(run):
            if getattr(event, "path", None) is not None:
                break
    folder = train(classifier, tmp_path / "cut")
    assert folder == run.folder
    assert last_tensors(folder) == last_tensors(whole)
    models = dtrain.load_models(whole)  # torch.nn needs nobody's trust
    assert models["classifier"](torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    norm = models["classifier"][1]
    assert int(norm.num_batches_tracked) == 2 * 5  # micro-batches of two epochs of 20 by 4


def test_a_plan_says_what_it_cannot_know(classifier: Path, dtrain_here: Any) -> None:
    classifier.write_text(with_layers(CLASSIFIER, STACK))
    said = dtrain_here("check", classifier)
    assert said.code == 0, said.errors
    assert "51 parameters + those of imported layers" in said.out
    assert "torch.nn:AdaptiveAvgPool2d" in said.out
    assert "unknown, as a model or a layer is imported" in said.out


@pytest.mark.parametrize("path", ["torch.nn:CrossEntropyLoss", "torch.nn.functional:cross_entropy"])
def test_an_imported_cross_entropy_is_the_built_in_one(classifier: Path, tmp_path: Path, path: str) -> None:
    built_in = train(classifier, tmp_path / "a")
    loss = f'loss = {{ kind = "{path}", label_smoothing = 0.1 }}'
    classifier.write_text(CLASSIFIER.replace("label_smoothing = 0.1", loss))
    imported = train(classifier, tmp_path / "b")
    assert last_tensors(imported) == last_tensors(built_in)


def test_metrics_are_exact_means_over_the_examples(measures: None, classifier: Path, tmp_path: Path) -> None:
    table = """
[evaluate.metrics]
entropy = { kind = "torch.nn.functional:cross_entropy" }
smooth = { kind = "torch.nn:CrossEntropyLoss", label_smoothing = 0.5 }
one = { kind = "my_measures:agreement" }
two = { kind = "my_measures:agreement", top = 2 }
"""
    best = '[checkpoint]\nbest = "evaluate/two"\nmode = "max"\n\n[track]'
    classifier.write_text(CLASSIFIER.replace("[track]", best) + table)
    run = train(classifier, tmp_path)
    lines = [values for _, values in metrics_of(run) if "evaluate/loss" in values]
    assert lines
    for values in lines:
        assert values["evaluate/entropy"] == pytest.approx(values["evaluate/loss"], rel=1e-12)
        assert values["evaluate/one"] == pytest.approx(values["evaluate/accuracy"])
        assert values["evaluate/two"] >= values["evaluate/one"]
    model = dtrain.load_models(run)["classifier"]
    examples = open_examples(dtrain.load(classifier).data, "evaluate", 0)
    image, labels = (torch.from_numpy(v) for v in examples.fetch(np.arange(6), 0).values())
    logits = model(image)
    smooth = nn.functional.cross_entropy(logits, labels, label_smoothing=0.5)
    assert lines[-1]["evaluate/smooth"] == pytest.approx(float(smooth), rel=1e-5)


@pytest.mark.parametrize(
    ("table", "key", "said"),
    [
        ('loss = { kind = "torch.nn:MSELoss" }', "system.loss", "failed with arrays of"),
        ('loss = { kind = "my_measures:each" }', "system.loss", r"gives an array of \[4\]; the mean over"),
        (
            'loss = { kind = "my_measures:Learned" }',
            "system.loss.kind",
            "weights of its own .*and nothing trains",
        ),
        (
            'loss = { kind = "torch.nn:MultiMarginLoss", p = 3 }',
            "system.loss",
            "only p == 1 and p == 2 supported",
        ),
    ],
)
def test_a_loss_that_will_not_do_is_named(
    measures: None, classifier: Path, tmp_path: Path, table: str, key: str, said: str
) -> None:
    classifier.write_text(CLASSIFIER.replace("label_smoothing = 0.1", table))
    with pytest.raises(RecipeError, match=said) as caught:
        train(classifier, tmp_path)
    assert caught.value.key == key


def test_a_metric_may_not_hide_one_of_the_systems(measures: None, classifier: Path, tmp_path: Path) -> None:
    classifier.write_text(CLASSIFIER + '\n[evaluate.metrics.accuracy]\nkind = "my_measures:agreement"\n')
    with pytest.raises(RecipeError, match=r"evaluate\.metrics\.accuracy: the system evaluates this itself"):
        train(classifier, tmp_path)


def test_label_smoothing_belongs_to_the_built_in_loss(classifier: Path) -> None:
    loss = 'label_smoothing = 0.1\nloss = { kind = "torch.nn:MultiMarginLoss" }'
    classifier.write_text(CLASSIFIER.replace("label_smoothing = 0.1", loss))
    with pytest.raises(RecipeErrors, match=r"system\.label_smoothing: belongs to the cross-entropy"):
        dtrain.load(classifier)


MY_SYSTEM = """
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from beside_my_system import twice
from dtrain import Loss, Phase, System
from dtrain.data.array_examples import ArrayExamples
from dtrain.data.source import Source


@dataclass(frozen=True)
class MySystem(System):
    power: float = 2.0

    def phases(self) -> Sequence[Phase]:
        return (Phase(("encoder",), self.squeeze),)

    def squeeze(self, models, batch, ops) -> Loss:
        return Loss(twice((models.encoder(batch["x"]) - batch["x"]).abs() ** self.power).mean())


class Ramp:
    def __init__(self, count):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        return np.full(4, index / self.count, np.float32) * np.arange(4, dtype=np.float32)
"""

LOCAL = """\
name = "local"

[system]
kind = "./my_own_system.py:MySystem"
power = 1.5

[models.encoder]
input = [4]
layers = [{ kind = "linear", out = 2 }, { kind = "torch.nn:Mish" }, { kind = "linear", out = 4 }]

[optimizers.encoder]
kind = "adabelief_pytorch:AdaBelief"
lr = 1e-2
print_change_log = false

[data]
kind = "./my_own_system.py:Ramp"
count = 12

[data.examples]
fields = ["x"]
workers = 2

[train]
steps = 3
batch_size = 4

[every]
log = 1
save = 2

[track]
kinds = ["jsonl"]
"""


def load_and_say(arguments: list[str]) -> int:
    model = dtrain.load_models(arguments[0])["encoder"]
    print(model(torch.zeros(1, 4)).shape)
    return 0


def test_a_system_in_a_file_beside_the_recipe_trains_resumes_and_is_loaded(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "my_own_system.py").write_text(MY_SYSTEM)
    (home / "beside_my_system.py").write_text("def twice(x):\n    return 2 * x\n")
    (home / "local.toml").write_text(LOCAL)
    runs, log = tmp_path / "runs", tmp_path / "log"
    life = start("run", home / "local.toml", "--runs", runs, log=log)
    assert life.end() == 0, life.said
    run = only_run(runs)
    saved = (run / "checkpoints" / "step-00000003" / "recipe.toml").read_text()
    assert f'kind = "{home}/my_own_system.py:MySystem"' in saved
    assert f'kind = "{home}/my_own_system.py:Ramp"' in saved

    life = start("run", home / "local.toml", "train.steps=5", "--runs", runs, "--resume", run, log=log)
    assert life.end() == 0, life.said
    (longer,) = [found for found in runs.glob("*/*/") if found != run]
    life = start("run", home / "local.toml", "train.steps=5", "--runs", tmp_path / "whole", log=log)
    assert life.end() == 0, life.said
    assert last_tensors(longer) == last_tensors(only_run(tmp_path / "whole"))

    for file in home.iterdir():
        file.unlink()  # the model itself needs none of them
    life = start(run, log=tmp_path / "loading", action=load_and_say)
    assert life.end() == 0, life.said
    assert "torch.Size([1, 4])" in life.said


def test_a_file_that_is_not_there_is_found_without_importing(tmp_path: Path) -> None:
    (tmp_path / "my_own_systen.py").write_text("raise SystemExit\n")
    (tmp_path / "local.toml").write_text(LOCAL)
    recipe = load(tmp_path / "local.toml", imports=False)
    errors = {error.key: error.message for error in missing_modules(vars(recipe))}
    assert errors.keys() == {"system.kind", "data.kind"}
    assert f'did you mean "{tmp_path}/my_own_systen.py:MySystem"?' in errors["system.kind"]


def test_two_ranks_learn_the_same_with_imported_kinds(measures: None, tmp_path: Path) -> None:
    text = with_layers(CLASSIFIER, STACK).replace(
        "label_smoothing = 0.1", 'loss = { kind = "torch.nn:MultiMarginLoss", margin = 0.5 }'
    )
    metric = '\n[evaluate.metrics.agreement]\nkind = "./my_measures.py:agreement"\ntop = 2\n'
    recipe = written(tmp_path, "classifier.toml", text + metric)
    alone = start("run", recipe, "--runs", tmp_path / "one", log=tmp_path / "log")
    assert alone.end() == 0, alone.said
    for rank in start_two("run", recipe, "--runs", tmp_path / "two", log=tmp_path / "logs"):
        assert rank.end() == 0, rank.said
    one, two = only_run(tmp_path / "one"), only_run(tmp_path / "two")
    for name, (_, shape, data) in last_tensors(one).items():
        other = last_tensors(two)[name]
        assert other[1] == shape
        if not name.endswith("num_batches_tracked"):
            a, b = (torch.frombuffer(bytearray(x), dtype=torch.float32) for x in (data, other[2]))
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    found = [values["evaluate/agreement"] for _, values in metrics_of(one) if "evaluate/agreement" in values]
    assert found == pytest.approx(
        [v["evaluate/agreement"] for _, v in metrics_of(two) if "evaluate/loss" in v]
    )
