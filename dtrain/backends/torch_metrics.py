"""Metrics as torch modules that gather over micro-batches and compute once, on torchmetrics' base class.

Sums are in double precision and updates never wait for the device; labels below 0 count for nothing.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image import StructuralSimilarityIndexMeasure
from torchmetrics.utilities import dim_zero_cat

from dtrain.spec import metrics as spec
from dtrain.spec.table import Wrong


@dataclass(frozen=True)
class Setting:
    """What metrics need to know besides their tables."""

    classes: int  # the last axis of what was predicted
    range: float  # of the data, from black to white
    features: nn.Module | None  # examples (N, ...) to (N, ...), where a table asks for a model's features


def build_metric(table: spec.Metric, setting: Setting, first: Tensor) -> Metric:
    """The metric of a table; `first` are the predictions of some micro-batch. Raises Wrong of a key."""
    match table:
        case spec.Accuracy():
            return TopK(1)
        case spec.TopK(k=k):
            if k > setting.classes:
                raise Wrong("k", f"found {k}, but there are {setting.classes} classes; at most that would do")
            return TopK(k)
        case spec.F1(average=average):
            return F1(setting.classes, average)
        case spec.AUROC(average=average):
            return AUROC(average)
        case spec.Perplexity():
            return Perplexity()
        case spec.MSE():
            return SquaredError()
        case spec.PSNR(range=range):
            return PSNR(range or setting.range)
        case spec.SSIM(range=range):
            return StructuralSimilarityIndexMeasure(data_range=range or setting.range).set_dtype(
                torch.float64
            )
        case spec.Frechet():
            assert setting.features is not None
            return Frechet(setting.features, flat(setting.features(first)).shape[1])
    raise AssertionError(table)


def labelled(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (M, classes) and labels (M) of examples or tokens. Raises ValueError unless they are such."""
    if target.is_floating_point() or prediction.shape[:-1] != target.shape:
        raise ValueError("it takes logits, classes last, and a whole number for each row of them")
    return prediction.reshape(-1, prediction.shape[-1]), target.reshape(-1)


def alike(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The same two. Raises ValueError unless they are of one shape."""
    if prediction.shape != target.shape:
        raise ValueError("it takes predictions and targets of one shape")
    return prediction, target


def flat(x: Tensor) -> Tensor:
    """Each example as a row."""
    return x.reshape(len(x), -1)


class Summing(Metric):
    """A metric whose states are sums, by name; with `shape`, of each class or feature."""

    full_state_update = False

    def sums(self, *names: str, shape: tuple[int, ...] = (), whole: bool = False) -> None:
        """Add states that start from 0: in double precision, or whole numbers."""
        dtype = torch.int64 if whole else torch.float64
        for name in names:
            self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")


class TopK(Summing):
    """Share of the labels that are among the classes of the k largest logits."""

    hits: Tensor
    count: Tensor

    def __init__(self, k: int):
        super().__init__()
        self.k = k
        self.sums("hits", "count", whole=True)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        logits, labels = labelled(prediction, target)
        # argmax takes the first of equal ones, as the classifier's own accuracy does; topk any.
        best = logits.argmax(-1, keepdim=True) if self.k == 1 else logits.topk(self.k).indices
        self.hits += ((best == labels[:, None]).any(-1) & (labels >= 0)).sum()
        self.count += (labels >= 0).sum()

    def compute(self) -> Tensor:
        return self.hits.double() / self.count


class F1(Summing):
    """F1 from the hits, predictions and labels of each class."""

    hits: Tensor
    predicted: Tensor
    labels: Tensor

    def __init__(self, classes: int, average: str):
        super().__init__()
        self.average = average
        self.sums("hits", "predicted", "labels", shape=(classes,), whole=True)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        logits, labels = labelled(prediction, target)
        best, counts = logits.argmax(-1), (labels >= 0).long()
        self.hits.scatter_add_(0, best, (best == labels).long())
        self.predicted.scatter_add_(0, best, counts)
        self.labels.scatter_add_(0, labels.clamp_min(0), counts)

    def compute(self) -> Tensor:
        hits, both = self.hits.double(), self.predicted + self.labels
        if self.average == "micro":
            return 2 * hits.sum() / both.sum()
        weight = self.labels.double() if self.average == "weighted" else (both > 0).double()
        return (weight * 2 * hits / both.clamp_min(1)).sum() / weight.sum()


class AUROC(Metric):
    """Area under the ROC curve, by the ranks of the scores (the statistic of Mann and Whitney)."""

    full_state_update = False
    scores: list[Tensor]  # softmax of each micro-batch
    labels: list[Tensor]

    def __init__(self, average: str):
        super().__init__()
        self.average = average
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        logits, labels = labelled(prediction, target)
        self.scores.append(logits.softmax(-1, dtype=torch.float64))
        self.labels.append(labels)

    def compute(self) -> Tensor:
        scores, labels = dim_zero_cat(self.scores), dim_zero_cat(self.labels)
        scores, labels = scores[labels >= 0], labels[labels >= 0]
        counts = torch.bincount(labels, minlength=scores.shape[1]).double()
        others = len(labels) - counts
        known = (counts > 0) & (others > 0)
        if not known.any():
            return scores.new_tensor(torch.nan)
        areas = torch.stack([self._above(scores[:, c], labels == c) for c in range(scores.shape[1])])
        areas = areas[known] / (counts * others)[known]
        weight = counts[known] if self.average == "weighted" else torch.ones_like(areas)
        return (weight * areas).sum() / weight.sum()

    @staticmethod
    def _above(scores: Tensor, positive: Tensor) -> Tensor:
        """In how many pairs of a positive and a negative the positive scores more; a tie is half a pair."""
        _, place, ties = torch.unique(scores, return_inverse=True, return_counts=True)
        rank = ties.cumsum(0) - (ties.double() - 1) / 2  # of each value, counted from 1; the mean among ties
        count = positive.sum().double()
        pairs: Tensor = rank[place][positive].sum() - count * (count + 1) / 2
        return pairs


class Perplexity(Summing):
    """e to the mean cross-entropy over the labels."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.sums("total")
        self.sums("count", whole=True)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        logits, labels = labelled(prediction, target)
        counted = labels.where(labels >= 0, -100)  # what torch leaves out
        self.total += F.cross_entropy(logits.double(), counted, reduction="sum")
        self.count += (labels >= 0).sum()

    def compute(self) -> Tensor:
        return (self.total / self.count).exp()


class SquaredError(Summing):
    """Mean squared difference over all numbers."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.sums("total")
        self.sums("count", whole=True)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        prediction, target = alike(prediction, target)
        self.total += (prediction.double() - target.double()).square().sum()
        self.count += target.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


class PSNR(SquaredError):
    """The mean squared error in decibels below the square of the range."""

    def __init__(self, range: float):
        super().__init__()
        self.range = range

    def compute(self) -> Tensor:
        return 10 * (self.range**2 / (self.total / self.count)).log10()


class Frechet(Summing):
    """Distance of Gaussians from counts, sums and outer products of features."""

    count: Tensor
    sum_made: Tensor
    sum_real: Tensor
    products_made: Tensor
    products_real: Tensor

    def __init__(self, features: nn.Module, width: int):
        super().__init__()
        self.features = features
        self.sums("count", whole=True)
        self.sums("sum_made", "sum_real", shape=(width,))
        self.sums("products_made", "products_real", shape=(width, width))

    def update(self, prediction: Tensor, target: Tensor) -> None:
        made, real = (flat(self.features(x)).double() for x in alike(prediction, target))  # (N, features)
        self.count += len(made)
        self.sum_made += made.sum(0)
        self.sum_real += real.sum(0)
        self.products_made += made.T @ made
        self.products_real += real.T @ real

    def compute(self) -> Tensor:
        made = gaussian(self.count, self.sum_made, self.products_made)
        return frechet_distance(*made, *gaussian(self.count, self.sum_real, self.products_real))


def gaussian(count: Tensor, total: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (features) and unbiased covariance of rows, from their sum and the sum of their outer products."""
    mean = total / count
    return mean, (products - count * torch.outer(mean, mean)) / (count - 1)


def frechet_distance(mean: Tensor, covariance: Tensor, other: Tensor, others: Tensor) -> Tensor:
    """|m - n|² + tr(C + D - 2 (C D)^½), of Gaussians N(m, C) and N(n, D); nan where there is one example.

    The trace of (C D)^½ is that of (C^½ D C^½)^½, which is symmetric: eigenvalues of symmetric matrices are
    exact to rounding where those of C D, or a Newton iteration, fail on covariances without full rank.
    Source: Dowson & Landau 1982.
    """
    if not covariance.isfinite().all() or not others.isfinite().all():
        return mean.new_tensor(torch.nan)
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    inner = root @ others @ root
    overlap: Tensor = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    distance: Tensor = (mean - other).square().sum() + covariance.trace() + others.trace() - 2 * overlap
    return distance
