"""Distillation of a teacher into a student, as distillation.toml says it (Hinton et al. 2015)."""

from dataclasses import dataclass

from dtrain import Loss, Phase, System
from dtrain.spec.schedules import OfSteps


@dataclass(frozen=True, kw_only=True)
class Distillation(System):
    """The keys of `[system]` are the fields; every method sees one micro-batch."""

    temperature: float = 4.0
    labels: float = 0.1  # share of the loss that is the cross-entropy of the labels
    schedule: OfSteps  # factor of the teacher's share over the run

    def phases(self):
        return (Phase(("student",), self.imitate),)

    def imitate(self, models, batch, ops):
        t = self.temperature
        logits, taught = models.student(batch["image"]), models.teacher(batch["image"])  # (N, classes)
        soft = t**2 * ops.kl_categorical(taught / t, logits / t)
        hard = ops.cross_entropy(logits, batch["label"])
        loss = (1 - self.labels) * ops.factor(self.schedule) * soft + self.labels * hard
        right = ops.argmax(logits) == batch["label"]
        return Loss(loss, {"soft": soft, "hard": hard, "accuracy": ops.mean(right)})

    def evaluate(self, models, batch, ops):
        logits, taught = models.student(batch["image"]), models.teacher(batch["image"])
        return {
            "loss": ops.cross_entropy(logits, batch["label"]),
            "accuracy": ops.mean(ops.argmax(logits) == batch["label"]),
            "agreement": ops.mean(ops.argmax(logits) == ops.argmax(taught)),
        }

    def predict(self, models, batch, ops):
        return models.student(batch["image"]), batch["label"]
