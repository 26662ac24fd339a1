"""Supervised classification."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from dtrain.data.source import Field
from dtrain.spec.models import Model, output_of
from dtrain.spec.table import Fraction, Wrong, kind
from dtrain.systems.base import AnyLoss, Array, Batch, Evaluation, Loss, Models, Ops, Phase, System


@kind(System, "classifier")
class Classifier(System):
    """Cross-entropy, or another loss, on the logits of the model `classifier`.

    Label smoothing: Szegedy et al. 2016 (arXiv:1512.00567).
    """

    loss: AnyLoss | None = None  # of logits and labels, by its import path; the cross-entropy if left out
    label_smoothing: Fraction = 0.0  # share of each label that goes to all classes alike
    input: str = "image"  # the field of the data that the model reads
    label: str = "label"  # the field with the class, a whole number from 0

    evaluates = MappingProxyType({"loss": "min", "accuracy": "max"})

    def __post_init__(self) -> None:
        if self.loss is not None and self.label_smoothing:
            raise Wrong(
                "label_smoothing", "belongs to the cross-entropy, not to a loss of one's own", is_key=True
            )

    def phases(self) -> Sequence[Phase]:
        return (Phase(("classifier",), self.classify),)

    def reads(self) -> Mapping[str, str | None]:
        return {self.input: "classifier", self.label: None}

    def check(self, models: Mapping[str, Model]) -> None:
        check_logits("classifier", models["classifier"])

    def check_data(self, models: Mapping[str, Model], fields: Mapping[str, Field]) -> None:
        check_labels("classifier", models["classifier"], self.label, fields[self.label])

    def classify(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        logits, labels = self.predict(models, batch, ops)
        value = self.loss_of(logits, labels, ops, smoothing=self.label_smoothing)
        return Loss(value, {"accuracy": accuracy(logits, labels)})

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Evaluation:
        logits, labels = self.predict(models, batch, ops)
        terms = {"loss": self.loss_of(logits, labels, ops), "accuracy": accuracy(logits, labels)}
        return Evaluation(terms, predicted=(logits, labels))

    def predict(self, models: Models, batch: Batch, ops: Ops) -> tuple[Array, Array]:
        return models.classifier(batch[self.input]), batch[self.label]  # (N, classes), (N,)

    def loss_of(self, logits: Array, labels: Array, ops: Ops, *, smoothing: float = 0.0) -> Array:
        """The mean loss over the examples."""
        if self.loss is not None:
            return ops.call(self.loss, logits, labels, at="system.loss")
        return ops.cross_entropy(logits, labels, smoothing=smoothing)


def check_logits(name: str, model: Model) -> None:
    """Raise ValueError unless a model gives one number a class."""
    out = output_of(model)
    if out is not None and len(out) != 1:
        raise Wrong(f"models.{name}", f"gives {out}, but must give (classes); end it with a linear layer")


def check_labels(name: str, model: Model, key: str, label: Field) -> None:
    """Raise ValueError unless a field of the data holds classes, and the model has as many."""
    out = output_of(model)
    if label.shape or not label.holds_whole_numbers:
        raise ValueError(f'the labels in "{key}" must be single whole numbers, from 0')
    if out is not None and label.classes is not None and label.classes > out[0]:
        raise ValueError(
            f"the data has {label.classes} classes, but models.{name} gives {out[0]}; "
            f"make its last layer's `out` {label.classes}"
        )


def accuracy(logits: Array, labels: Array) -> Array:
    """Share of the examples whose largest logit is their label's."""
    return (logits.argmax(-1) == labels).mean(dtype=logits.dtype)
