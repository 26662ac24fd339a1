"""Metrics of evaluation as data: what is measured of predictions and targets over the whole set.

None is a mean of the values of batches: backends gather what each needs over micro-batches and ranks, and
compute once. Labels below 0, such as those of padding, count for nothing.
"""

from pathlib import Path
from typing import ClassVar, Literal

from dtrain.spec.table import Above0, Positive, Table, kind, table


@table
class Metric(Table):
    """What every metric has: nothing but the value that is best."""

    best: ClassVar[Literal["max", "min"]] = "max"


@kind(Metric, "accuracy")
class Accuracy(Metric):
    """Share of the labels (one an example, or one a token) whose logit is the largest."""


@kind(Metric, "top_k")
class TopK(Metric):
    """Share of the labels whose logit is among the `k` largest."""

    k: Positive  # at most as many as there are classes


@kind(Metric, "f1")
class F1(Metric):
    """Harmonic mean of precision and recall: 2 hits / (labels + predictions) of a class.

    Macro is the mean over the classes that occur among labels or predictions, weighted the same by how many
    labels each has, and micro that of all classes as if they were one, which is the accuracy.
    """

    average: Literal["macro", "weighted", "micro"] = "macro"  # over the classes


@kind(Metric, "auroc")
class AUROC(Metric):
    """Area under the ROC curve of each class against all others, by its softmax; exact, ties count half.

    A class without a label, or with all of them, is left out. It keeps what was predicted for every example:
    8 * (classes + 1) bytes each, on every device. Source: Fawcett 2006 (Pattern Recognition Letters 27).
    """

    average: Literal["macro", "weighted"] = "macro"  # over the classes; weighted by their labels


@kind(Metric, "perplexity")
class Perplexity(Metric):
    """e to the mean cross-entropy over all labels or tokens."""

    best = "min"


@kind(Metric, "mse")
class MSE(Metric):
    """Mean squared difference, over all numbers."""

    best = "min"


@kind(Metric, "psnr")
class PSNR(Metric):
    """Peak signal-to-noise ratio in dB: 10 log10(range² / mse), with the mse of the whole set."""

    range: Above0 | None = None  # from black to white; that of the data if left out


@kind(Metric, "ssim")
class SSIM(Metric):
    """Structural similarity of pictures, in a Gaussian window of 11 x 11, as a mean over the pictures.

    Source: Wang et al. 2004 (IEEE Transactions on Image Processing 13).
    """

    range: Above0 | None = None  # from black to white; that of the data if left out


@kind(Metric, "frechet")
class Frechet(Metric):
    """Squared Frechet distance of two Gaussians, fitted to the features of made and of real examples.

    Features are what a trained model gives, such as a classifier of the same data: a distance is comparable
    with others by the same model and number of examples alone. It keeps sums and outer products, 16 *
    features² bytes. Source: Heusel et al. 2017 (arXiv:1706.08500), who take Inception's features.
    """

    best = "min"

    features: Path  # a checkpoint, or a run for its newest one
    model: str | None = None  # which of its models; of the only one it need not be said
    layers: Positive | None = None  # features come out of so many of its first layers; of all if left out
