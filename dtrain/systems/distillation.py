"""Distillation of a teacher into a student. Source: Hinton et al. 2015 (arXiv:1503.02531)."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from dtrain.data.source import Field
from dtrain.spec.models import Model, input_of, output_of
from dtrain.spec.table import Above0, Fraction, Wrong, kind
from dtrain.systems.base import Array, Batch, Evaluation, Loss, Models, Ops, Phase, System
from dtrain.systems.classifier import accuracy, check_labels, check_logits


@kind(System, "distillation")
class Distillation(System):
    """A `student` that learns to judge as a frozen `teacher` does, and the labels besides.

    The teacher's logits, divided by the temperature, show which classes it takes for alike. The divergence
    of the student's from them is weighted by its square, so that the slope is of one size at any.
    """

    temperature: Above0 = 4.0  # of the softmax of both; 1 leaves them as they are
    labels: Fraction = 0.1  # share of the loss that is the cross-entropy of the labels
    input: str = "image"  # the field of the data that both models read
    label: str = "label"  # the field with the class, a whole number from 0

    evaluates = MappingProxyType({"loss": "min", "accuracy": "max", "teacher": None, "agreement": "max"})

    def phases(self) -> Sequence[Phase]:
        return (Phase(("student",), self.imitate),)

    def reads(self) -> Mapping[str, str | None]:
        return {self.input: "student", self.label: None}

    def needs(self) -> Sequence[str]:
        return ("student", "teacher")

    def check(self, models: Mapping[str, Model]) -> Iterator[ValueError]:
        check_logits("student", models["student"])
        if "teacher" not in models:
            return
        check_logits("teacher", models["teacher"])
        for what, of in (("input", input_of), ("output", output_of)):
            theirs, own = of(models["teacher"]), of(models["student"])
            if theirs and own and theirs != own:
                said = f"its {what} is {own}, but that of models.teacher is {theirs}; they must agree"
                yield Wrong("models.student", said)

    def check_data(self, models: Mapping[str, Model], fields: Mapping[str, Field]) -> None:
        check_labels("student", models["student"], self.label, fields[self.label])

    def imitate(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        student, taught = models.student(batch[self.input]), models.teacher(batch[self.input])  # (N, classes)
        soft = self.apart(student, taught, ops)
        hard = ops.cross_entropy(student, batch[self.label])
        terms = {"soft": soft, "hard": hard, "accuracy": accuracy(student, batch[self.label])}
        return Loss((1 - self.labels) * soft + self.labels * hard, terms)

    def apart(self, student: Array, taught: Array, ops: Ops) -> Array:
        """How far the student's classes are from the teacher's, both softened by the temperature."""
        t = self.temperature
        return t**2 * ops.kl_categorical(taught / t, student / t)

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Evaluation:
        student, taught = models.student(batch[self.input]), models.teacher(batch[self.input])
        label = batch[self.label]
        terms = {
            "loss": ops.cross_entropy(student, label),
            "accuracy": accuracy(student, label),
            "teacher": accuracy(taught, label),  # its accuracy, for comparison
            "agreement": accuracy(student, ops.argmax(taught)),  # share that both see alike
        }
        return Evaluation(terms, predicted=(student, label))

    def predict(self, models: Models, batch: Batch, ops: Ops) -> tuple[Array, Array]:
        return models.student(batch[self.input]), batch[self.label]  # (N, classes), (N,)
