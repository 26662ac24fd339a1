"""Supervised classification."""

from collections.abc import Mapping, Sequence

from dtrain.data.source import Field
from dtrain.spec.models import Model, output_of
from dtrain.spec.table import Fraction, kind
from dtrain.systems.base import Array, Batch, Logs, Loss, Models, Ops, Phase, System, need


@kind(System, "classifier")
class Classifier(System):
    """Cross-entropy on the logits of the model `classifier`.

    Label smoothing: Szegedy et al. 2016 (arXiv:1512.00567).
    """

    label_smoothing: Fraction = 0.0  # share of each label that goes to all classes alike
    input: str = "image"  # the field of the data that the model reads
    label: str = "label"  # the field with the class, a whole number from 0

    def phases(self) -> Sequence[Phase]:
        return (Phase(("classifier",), self.loss),)

    def reads(self) -> Mapping[str, str | None]:
        return {self.input: "classifier", self.label: None}

    def check(self, models: Mapping[str, Model]) -> None:
        need(models, "classifier")
        out = output_of(models["classifier"])
        if out is not None and len(out) != 1:
            raise ValueError(
                f"models.classifier gives {out}; a classifier gives (classes); end it with a linear layer"
            )

    def check_data(self, models: Mapping[str, Model], fields: Mapping[str, Field]) -> None:
        label, out = fields[self.label], output_of(models["classifier"])
        if label.shape or label.dtype.kind not in "iu":
            raise ValueError(f'the labels in "{self.label}" must be single whole numbers, from 0')
        if out is not None and label.classes is not None and label.classes > out[0]:
            raise ValueError(
                f"the data has {label.classes} classes, but models.classifier gives {out[0]}; "
                f"make its last layer's `out` {label.classes}"
            )

    def loss(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        logits = models.classifier(batch[self.input])  # (N, classes)
        value = ops.cross_entropy(logits, batch[self.label], smoothing=self.label_smoothing)
        return Loss(value, {"accuracy": accuracy(logits, batch[self.label])})

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Logs:
        logits = models.classifier(batch[self.input])
        return {
            "loss": ops.cross_entropy(logits, batch[self.label]),
            "accuracy": accuracy(logits, batch[self.label]),
        }


def accuracy(logits: Array, labels: Array) -> Array:
    """Share of the examples whose largest logit is their label's."""
    return (logits.argmax(-1) == labels).mean(dtype=logits.dtype)
