"""Each kind of metric, in micro-batches of odd sizes, against its definition on the whole set at once."""

import copy
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional import classification, image

from dtrain.backends.torch_measuring import Measuring
from dtrain.backends.torch_metrics import frechet_distance
from dtrain.errors import RecipeError
from dtrain.spec import metrics as spec
from dtrain.spec.decode import decoded
from dtrain.spec.table import KINDS, Imported
from dtrain.spec.trust import EVERYTHING

COUNT = 23
CUTS = (0, 1, 8, 9, 20, 23)  # where micro-batches end
DRAWN = torch.Generator().manual_seed(0)
LOGITS = torch.randn(COUNT, 5, generator=DRAWN)
LOGITS[3] = LOGITS[7]  # a tie of scores between examples
LABELS = torch.randint(0, 4, (COUNT,), generator=DRAWN)  # the last class has no label
TOKENS = torch.randint(-1, 5, (COUNT, 7), generator=DRAWN)  # -1: padding
TOKEN_LOGITS = 3 * torch.randn(COUNT, 7, 5, generator=DRAWN)
REAL = torch.rand(COUNT, 2, 12, 12, generator=DRAWN) * 2 - 1
MADE = (REAL + 0.3 * torch.randn(REAL.shape, generator=DRAWN)).clamp(-1, 1)
FEATURES = nn.Sequential(nn.Flatten(), nn.Linear(288, 6)).double().requires_grad_(False)
KEPT = TOKENS >= 0


class AsDouble(nn.Module):
    """The features of pictures in any precision."""

    def __init__(self) -> None:
        super().__init__()
        self.module = copy.deepcopy(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.module(x.double())
        return found


def share_of_top(k: int) -> float:
    hits = [label in logits.topk(k).indices for logits, label in zip(LOGITS, LABELS, strict=True)]
    return sum(hits) / COUNT


def f1_by_class(logits: Tensor = LOGITS, labels: Tensor = LABELS) -> dict[int, float]:
    best = logits.argmax(-1)
    found = {}
    for c in range(5):
        hits, both = int((best.eq(c) & labels.eq(c)).sum()), int(best.eq(c).sum() + labels.eq(c).sum())
        if both:
            found[c] = 2 * hits / both
    return found


def area_by_class() -> dict[int, float]:
    """The share of pairs of a positive and a negative whose positive has the higher score."""
    scores = LOGITS.double().softmax(-1)
    found = {}
    for c in range(5):
        positives, negatives = scores[LABELS.eq(c), c], scores[LABELS.ne(c), c]
        if len(positives) and len(negatives):
            above = (positives[:, None] > negatives).double() + (positives[:, None] == negatives).double() / 2
            found[c] = float(above.mean())
    return found


def weighted(by_class: Mapping[int, float]) -> float:
    counts = {c: int(LABELS.eq(c).sum()) for c in by_class}
    return sum(by_class[c] * counts[c] for c in by_class) / sum(counts.values())


def mean(values: Mapping[int, float]) -> float:
    return sum(values.values()) / len(values)


def squared_error() -> float:
    return float((MADE.double() - REAL.double()).square().mean())


def frechet() -> float:
    """By the eigenvalues of the product of the covariances, and by NumPy-like covariances of the rows."""
    made, real = FEATURES(MADE.double()), FEATURES(REAL.double())
    c, d = made.T.cov(), real.T.cov()
    overlap = torch.linalg.eigvals(c @ d).real.clamp_min(0).sqrt().sum()
    return float((made.mean(0) - real.mean(0)).square().sum() + c.trace() + d.trace() - 2 * overlap)


Case = tuple[dict[str, Any], Tensor, Tensor, Callable[[], float]]
FOLDER = {"features": "run"}
CASES: dict[str, Case] = {
    "accuracy": ({}, LOGITS, LABELS, lambda: share_of_top(1)),
    "accuracy of tokens": (
        {},
        TOKEN_LOGITS,
        TOKENS,
        lambda: float((TOKEN_LOGITS.argmax(-1) == TOKENS)[KEPT].double().mean()),
    ),
    "top_k": ({"k": 3}, LOGITS, LABELS, lambda: share_of_top(3)),
    "f1": ({}, LOGITS, LABELS, lambda: mean(f1_by_class())),
    "f1 weighted": ({"average": "weighted"}, LOGITS, LABELS, lambda: weighted(f1_by_class())),
    "f1 micro": ({"average": "micro"}, LOGITS, LABELS, lambda: share_of_top(1)),
    "f1 of tokens": (
        {},
        TOKEN_LOGITS,
        TOKENS,
        lambda: mean(f1_by_class(TOKEN_LOGITS[KEPT], TOKENS[KEPT])),
    ),
    "auroc": ({}, LOGITS, LABELS, lambda: mean(area_by_class())),
    "auroc weighted": ({"average": "weighted"}, LOGITS, LABELS, lambda: weighted(area_by_class())),
    "perplexity": (
        {},
        TOKEN_LOGITS,
        TOKENS,
        lambda: math.exp(F.cross_entropy(TOKEN_LOGITS[KEPT].double(), TOKENS[KEPT])),
    ),
    "mse": ({}, MADE, REAL, squared_error),
    "psnr": ({}, MADE, REAL, lambda: 10 * math.log10(4 / squared_error())),
    "psnr of a range": ({"range": 1}, MADE, REAL, lambda: -10 * math.log10(squared_error())),
    "ssim": (
        {},
        MADE,
        REAL,
        lambda: float(
            image.structural_similarity_index_measure(MADE.double(), REAL.double(), data_range=2.0)  # type: ignore[arg-type]
        ),
    ),
    "frechet": (FOLDER, MADE, REAL, frechet),
}


def measuring(**tables: spec.Metric | Imported) -> Measuring:
    """Metrics in one process, for data from -1 to 1."""
    features = {name: AsDouble() for name, table in tables.items() if isinstance(table, spec.Frechet)}
    return Measuring(tables, range=2.0, features=features, gather=lambda x: [x], trust=EVERYTHING)


def table_of(case: str) -> spec.Metric:
    made: spec.Metric = decoded(KINDS[spec.Metric][case.split()[0]], CASES[case][0])
    return made


def test_every_kind_has_a_case() -> None:
    assert {case.split()[0] for case in CASES} == KINDS[spec.Metric].keys()


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_it_would_be_of_the_whole_set_at_once(case: str) -> None:
    _, predictions, targets, reference = CASES[case]
    metrics = measuring(it=table_of(case))
    for _ in range(2):  # the second evaluation knows nothing of the first
        for first, end in pairwise(CUTS):
            metrics.update(predictions[first:end], targets[first:end], idle=False)
            metrics.update(predictions[:2], targets[:2], idle=True)  # counts for nothing
        assert metrics.compute()["it"] == pytest.approx(reference(), rel=1e-12)


@pytest.mark.parametrize(
    ("table", "function"),
    [(spec.AUROC(), classification.multiclass_auroc), (spec.F1(), classification.multiclass_f1_score)],
)
def test_our_own_are_those_of_torchmetrics(table: spec.Metric, function: Callable[..., Tensor]) -> None:
    metrics = measuring(it=table)
    labels = torch.arange(COUNT) % 5
    metrics.update(LOGITS, labels, idle=False)
    theirs = function(LOGITS.softmax(-1), labels, num_classes=5, average="macro")
    assert metrics.compute()["it"] == pytest.approx(float(theirs), rel=1e-6)  # theirs are in fp32


def test_the_distance_of_gaussians_without_full_rank_is_exact() -> None:
    mean, other = torch.tensor([1.0, 0.0, 2.0]).double(), torch.zeros(3).double()
    flat, line = torch.diag(torch.tensor([4.0, 9.0, 0.0])).double(), torch.diag(torch.tensor([1.0, 0.0, 0.0]))
    distance = frechet_distance(mean, flat, other, line.double())
    assert float(distance) == pytest.approx(5 + (2 - 1) ** 2 + 3**2, rel=1e-14)
    assert float(frechet_distance(mean, flat, mean, flat)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_no_update_waits_for_the_device(case: str) -> None:
    _, predictions, targets, _ = CASES[case]
    metrics = measuring(it=table_of(case))
    # Of arrays on the device "meta" there are shapes alone: to ask for a value, or how many are true, fails.
    metrics.update(predictions.to("meta"), targets.to("meta"), idle=False)


@pytest.mark.parametrize(
    ("path", "arguments", "reference"),
    [
        (
            "torchmetrics.classification:MulticlassCohenKappa",
            {"num_classes": 5},
            lambda: classification.multiclass_cohen_kappa(LOGITS, LABELS, num_classes=5),
        ),
        (
            "torchmetrics:Accuracy",
            {"task": "multiclass", "num_classes": 5, "average": "micro"},
            lambda: share_of_top(1),
        ),
        ("torch.nn.functional:cross_entropy", {}, lambda: F.cross_entropy(LOGITS.double(), LABELS)),
        ("torch.nn:CrossEntropyLoss", {}, lambda: F.cross_entropy(LOGITS.double(), LABELS)),
    ],
)
def test_what_is_imported_is_exact_too(
    path: str, arguments: dict[str, Any], reference: Callable[[], Any]
) -> None:
    metrics = measuring(it=Imported(path=path, arguments=arguments))
    for first, end in pairwise(CUTS):
        metrics.update(LOGITS[first:end].double(), LABELS[first:end], idle=False)
    assert metrics.compute()["it"] == pytest.approx(float(reference()), rel=1e-6)


@pytest.mark.parametrize(
    ("table", "prediction", "target", "said"),
    [
        (spec.Accuracy(), MADE, REAL, "accuracy failed with arrays of .*it takes logits, classes last"),
        (spec.TopK(k=6), LOGITS, LABELS, r"evaluate\.metrics\.it\.k: found 6, but there are 5 classes"),
        (spec.MSE(), LOGITS, LABELS, "mse failed with arrays of .*predictions and targets of one shape"),
        (spec.SSIM(), LOGITS, LOGITS, "ssim failed with arrays of"),
        (
            Imported(
                path="torchmetrics.classification:MulticlassAccuracy",
                arguments={"num_classes": 5, "average": "none"},
            ),
            LOGITS,
            LABELS,
            r"MulticlassAccuracy gives an array of \[5\]; one number would do",
        ),
        (
            Imported(path="torchmetrics.classification:MulticlassAccuracy", arguments={"num_classes": 1}),
            LOGITS,
            LABELS,
            "evaluate.metrics.it: torchmetrics.classification:MulticlassAccuracy: .*num_classes",
        ),
    ],
)
def test_a_metric_that_will_not_do_is_named(
    table: spec.Metric | Imported, prediction: Tensor, target: Tensor, said: str
) -> None:
    metrics = measuring(it=table)

    def evaluate() -> None:
        metrics.update(prediction, target, idle=False)
        metrics.compute()

    with pytest.raises(RecipeError, match=said):
        evaluate()
