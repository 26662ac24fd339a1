"""`dtrain evaluate`: the metrics of a checkpoint, in one process and in two, written nowhere."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSIFIER, Said, metrics_of, only_run, start_two, written
from torchmetrics.functional import classification

import dtrain
from dtrain.checkpoint.read import checkpoints_in
from dtrain.data.opening import open_examples

Here = Callable[..., Said]
METRICS = """
[evaluate.metrics]
exact = { kind = "accuracy" }
top2 = { kind = "top_k", k = 2 }
f1 = { kind = "f1" }
area = { kind = "auroc" }
surprise = { kind = "perplexity" }
kappa = { kind = "torchmetrics.classification:MulticlassCohenKappa", num_classes = 3 }
margin = { kind = "torch.nn:MultiMarginLoss" }
"""
TRUST = ("--trust", "torchmetrics", "--json")


@pytest.fixture
def trained(tmp_path: Path, on_cpu: None) -> Path:
    """A run in double precision, with an average and the best checkpoint by its loss."""
    text = CLASSIFIER.replace("[track]", "[averages.classifier]\ndecay = 0.5\n\n[track]") + METRICS
    recipe = written(tmp_path, "classifier.toml", text)
    best = ['checkpoint.best="evaluate/loss"', 'train.precision="fp64"', "every.save=1", "every.evaluate=1"]
    loaded = dtrain.load(recipe, best)
    with dtrain.setup(loaded, runs=tmp_path / "runs") as run, dtrain.watch(run) as observe:
        for event in dtrain.train(run):
            observe(event)
    return only_run(tmp_path / "runs")


def files_in(folder: Path) -> dict[str, str]:
    """Every file under a folder with its hash."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def predicted(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the averaged model of the newest checkpoint, and labels, of all examples at once."""
    model = dtrain.load_models(run)["classifier"]
    examples = open_examples(dtrain.load(run / "recipe.toml").data, "evaluate", 0)
    batch = examples.fetch(np.arange(len(examples)), 0)
    with torch.no_grad():
        return model(torch.from_numpy(batch["image"]).double()), torch.from_numpy(batch["label"])


def test_every_metric_is_that_of_the_whole_set_on_one_process_and_on_two(
    trained: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    logits, labels = predicted(trained)
    entropy = torch.nn.functional.cross_entropy(logits, labels)
    share = (logits.argmax(-1) == labels).double().mean()
    scores = logits.softmax(-1)
    expected = {
        "evaluate/loss": entropy,
        "evaluate/accuracy": share,
        "evaluate/exact": share,
        "evaluate/top2": (logits.topk(2).indices == labels[:, None]).any(-1).double().mean(),
        "evaluate/f1": classification.multiclass_f1_score(logits, labels, num_classes=3),
        "evaluate/area": classification.multiclass_auroc(scores, labels, num_classes=3),
        "evaluate/surprise": entropy.exp(),
        "evaluate/kappa": classification.multiclass_cohen_kappa(logits, labels, num_classes=3),
        "evaluate/margin": torch.nn.functional.multi_margin_loss(logits, labels),
    }
    before = files_in(trained)
    whole = json.loads(dtrain_here("evaluate", trained, "train.micro_batch_size=8", *TRUST).out)
    assert whole["metrics"].keys() == expected.keys()
    assert whole["metrics"] == pytest.approx(
        {k: float(v) for k, v in expected.items()}, rel=1e-6
    )  # fp32 theirs
    exact = ("evaluate/loss", "evaluate/surprise", "evaluate/margin", "evaluate/accuracy", "evaluate/top2")
    assert {k: whole["metrics"][k] for k in exact} == pytest.approx(
        {k: float(expected[k]) for k in exact}, rel=1e-12
    )
    for micro in (4, 8):  # of 6 examples; of 8 the second rank has none at all
        ranks = start_two(
            "evaluate", trained, f"train.micro_batch_size={micro}", *TRUST, log=tmp_path / f"log{micro}"
        )
        assert [rank.end() for rank in ranks] == [0, 0], ranks[0].said + ranks[1].said
        two = json.loads(ranks[0].said)
        assert (two["processes"], two["examples"], ranks[1].said) == (2, 6, "")
        assert two["metrics"] == pytest.approx(whole["metrics"], rel=1e-12)
    assert files_in(trained) == before


def test_the_best_checkpoint_gives_what_the_run_gave(trained: Path, dtrain_here: Here) -> None:
    of_run = {step: values for step, values in metrics_of(trained) if "evaluate/loss" in values}
    best = min(of_run, key=lambda step: of_run[step]["evaluate/loss"])
    said = json.loads(dtrain_here("evaluate", trained, "--best", *TRUST).out)
    assert said["checkpoint"].endswith(f"step-{best:08d}")
    assert said["metrics"] == {k: v for k, v in of_run[best].items() if k.startswith("evaluate/")}


def test_other_data_and_metrics_may_be_given(trained: Path, tmp_path: Path, dtrain_here: Here) -> None:
    with np.load(tmp_path / "pictures.npz") as arrays:
        kept = {name: array[:5] for name, array in arrays.items()}
    np.savez(tmp_path / "fewer.npz", **kept)
    (tmp_path / "pictures.npz").unlink()  # the training data need not be there
    more = "evaluate.metrics={ top1 = { kind = 'top_k', k = 1 } }"
    for arguments in (("--data", tmp_path / "fewer.npz"), (f"data.path={tmp_path / 'fewer.npz'}",)):
        said = dtrain_here("evaluate", trained, *arguments, more, "--json")
        assert said.code == 0, said.errors
        found = json.loads(said.out)
        assert found["examples"] == 5
        assert found["metrics"].keys() == {"evaluate/loss", "evaluate/accuracy", "evaluate/top1"}


def test_it_prints_a_line_for_each_metric(trained: Path, dtrain_here: Here) -> None:
    said = dtrain_here("evaluate", trained, "--trust", "torchmetrics")
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[:2] == [["checkpoint", str(checkpoints_in(trained)[-1])], ["examples", "6"]]
    assert [name for name, _ in lines[2:]][:3] == ["evaluate/loss", "evaluate/accuracy", "evaluate/exact"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "evaluate.metrics.kappa.kind: .*is not in a trusted package; .*--trust torchmetrics"),
        ((*TRUST, "models.classifier.layers.6.out=4"), "but the data|models do not fit the recipe"),
        ((*TRUST, "data.path=nowhere.npz"), r"data\.path: .*nowhere\.npz does not exist"),
        ((*TRUST, "evaluate.metrics.top2.k=4"), r"evaluate\.metrics\.top2\.k: found 4, but there are 3"),
    ],
)
def test_what_will_not_do_is_a_mistake(
    trained: Path, dtrain_here: Here, arguments: tuple[str, ...], said: str
) -> None:
    found = dtrain_here("evaluate", trained, *arguments)
    assert found.code == 2
    assert re.search(said, found.errors), found.errors


def test_what_is_no_checkpoint_is_a_mistake(tmp_path: Path, dtrain_here: Here) -> None:
    found = dtrain_here("evaluate", tmp_path)
    assert (found.code, "is neither a checkpoint nor a run" in found.errors) == (2, True)


def test_an_altered_checkpoint_is_not_evaluated(trained: Path, dtrain_here: Here) -> None:
    weights = next(checkpoints_in(trained)[-1].glob("models-*"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    found = dtrain_here("evaluate", trained, *TRUST)
    assert (found.code, "was altered" in found.errors) == (2, True)
