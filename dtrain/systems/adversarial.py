"""Classifiers that are trained on, and judged by, examples moved to where they err."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from dtrain.data.source import Field
from dtrain.spec.models import Model
from dtrain.spec.table import Above0, Finite, Positive, Wrong, kind
from dtrain.systems.base import Array, Batch, Evaluation, Loss, Models, Ops, Phase, System
from dtrain.systems.classifier import accuracy, check_labels, check_logits
from dtrain.systems.ops import Function


@kind(System, "adversarial")
class Adversarial(System):
    """A classifier against an attack, which moves each example by up to `eps` before the update.

    Methods: fgsm, one step along the signs of the slope (Goodfellow et al. 2014, arXiv:1412.6572); pgd,
    several steps (Madry et al. 2017, arXiv:1706.06083); trades, which learns the labels of the examples as
    they are, and to judge the moved ones alike (Zhang et al. 2019, arXiv:1901.08573); none, for comparison.
    Evaluation attacks with pgd from a random start, whatever the method. In training the model is attacked as
    it is trained: with dropout, and normalised by the statistics of the micro-batch.
    """

    method: Literal["fgsm", "pgd", "trades", "none"] = "pgd"  # what is learned; none: plain examples
    norm: Literal["linf", "l2"] = "linf"  # what `eps` bounds: each element, or the length of the whole move
    eps: Above0  # how far an example may be moved, in the units of the data
    low: Finite  # the smallest value that a moved example may have; the data's own is data.range[0]
    high: Finite  # the largest
    steps: Positive = 7  # of pgd and trades
    step_size: Above0 | None = None  # of pgd and trades; 2.5 eps / steps if left out
    random_start: bool = True  # of pgd: begin somewhere within `eps`; trades always does
    beta: Above0 = 6.0  # of trades: weight of judging alike
    evaluate_steps: Positive = 20  # of the pgd of evaluation, each of 2.5 eps / evaluate_steps
    input: str = "image"  # the field of the data that the model reads and the attack moves
    label: str = "label"  # the field with the class, a whole number from 0

    evaluates = MappingProxyType(
        {"loss": "min", "accuracy": "max", "robust_loss": "min", "robust_accuracy": "max"}
    )

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise Wrong("high", f"found {self.high:g}; a number above `low`, which is {self.low:g}, would do")
        if self.method == "fgsm" and self.norm == "l2":
            said = 'fgsm moves along signs, within linf; method = "pgd" with steps = 1 would do'
            raise Wrong("norm", said)
        if self.method == "trades" and not self.random_start:
            said = "trades starts at random: at the example itself its slope is 0; true would do"
            raise Wrong("random_start", said)

    def phases(self) -> Sequence[Phase]:
        match self.method:
            case "none":
                return (Phase(("classifier",), self.classify),)
            case "trades":
                return (Phase(("classifier",), self.agree, self.attack),)
            case "fgsm" | "pgd":
                return (Phase(("classifier",), self.classify_moved, self.attack),)

    def reads(self) -> Mapping[str, str | None]:
        return {self.input: "classifier", self.label: None}

    def check(self, models: Mapping[str, Model]) -> None:
        check_logits("classifier", models["classifier"])

    def check_data(self, models: Mapping[str, Model], fields: Mapping[str, Field]) -> None:
        check_labels("classifier", models["classifier"], self.label, fields[self.label])
        reached = fields[self.input].range
        if reached is not None and reached != (self.low, self.high):
            key = "low" if reached[0] != self.low else "high"
            said = f"is {getattr(self, key):g}, but the data goes from {reached[0]:g} to {reached[1]:g}"
            raise Wrong(f"system.{key}", said)

    def attack(self, models: Models, batch: Batch, ops: Ops) -> Batch:
        """The batch, and its examples `moved` to where the method sees them worst."""
        x, label = batch[self.input], batch[self.label]

        def surprise(moved: Array) -> Array:
            return ops.cross_entropy(models.classifier(moved), label)

        if self.method == "fgsm":
            moved = ops.fgsm(surprise, x, eps=self.eps, low=self.low, high=self.high)
        elif self.method == "pgd":
            moved = self.climb(surprise, x, ops)
        else:
            judged = models.classifier(x)
            moved = self.climb(lambda moved: ops.kl_categorical(judged, models.classifier(moved)), x, ops)
        return {**batch, "moved": moved}

    def climb(self, function: Function, x: Array, ops: Ops) -> Array:
        """x moved up the slope of `function`, as in training."""
        return ops.pgd(
            function,
            x,
            eps=self.eps,
            steps=self.steps,
            low=self.low,
            high=self.high,
            step_size=self.step_size,
            norm=self.norm,
            random_start=self.random_start,
        )

    def classify(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        return self.loss_at(models.classifier(batch[self.input]), batch, ops)

    def classify_moved(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        return self.loss_at(models.classifier(batch["moved"]), batch, ops)

    def agree(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        """The loss of TRADES: right about the examples, and of one mind about those moved."""
        judged = models.classifier(batch[self.input])  # (N, classes)
        right = self.loss_at(judged, batch, ops)
        apart = ops.kl_categorical(judged, models.classifier(batch["moved"]))
        return Loss(right.value + self.beta * apart, {**right.terms, "natural": right.value, "apart": apart})

    def loss_at(self, logits: Array, batch: Batch, ops: Ops) -> Loss:
        """The cross-entropy of logits (N, classes), and the share that is right."""
        label = batch[self.label]
        return Loss(ops.cross_entropy(logits, label), {"accuracy": accuracy(logits, label)})

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Evaluation:
        x, label = batch[self.input], batch[self.label]
        moved = ops.pgd(
            lambda moved: ops.cross_entropy(models.classifier(moved), label),
            x,
            eps=self.eps,
            steps=self.evaluate_steps,
            low=self.low,
            high=self.high,
            norm=self.norm,
        )
        clean, robust = models.classifier(x), models.classifier(moved)
        at_clean, at_robust = self.loss_at(clean, batch, ops), self.loss_at(robust, batch, ops)
        terms = {
            "loss": at_clean.value,
            "accuracy": at_clean.terms["accuracy"],
            "robust_loss": at_robust.value,
            "robust_accuracy": at_robust.terms["accuracy"],
        }
        return Evaluation(terms, predicted=(clean, label))

    def predict(self, models: Models, batch: Batch, ops: Ops) -> tuple[Array, Array]:
        return models.classifier(batch[self.input]), batch[self.label]  # (N, classes), (N,)
