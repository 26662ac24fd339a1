"""Distillation of a frozen teacher, by its softened classes and the labels."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from agreement.cases import ADAMW, CLASSES, CLASSIFIER, NESTEROV, Case, Table, layer, recipe
from agreement.references import Numbers, Reference, Terms, classifier, evaluated
from torch import Tensor, nn

STUDENT: Table = {
    "input": [1, 8, 8],
    "layers": [layer("flatten"), layer("dropout", rate=0.1), layer("linear", out=CLASSES)],
}
MODELS = {"teacher": CLASSIFIER, "student": STUDENT}
COMPOSED: Table = {
    "kind": "composed",
    "values": {"student_logits": "student(image)", "taught": "teacher(image)"},
    "phases": [
        {
            "updates": ["student"],
            "losses": {
                "soft": {"of": "9 * kl_categorical(taught / 3, student_logits / 3)", "weight": 0.75},
                "hard": {"of": "cross_entropy(student_logits, label)", "weight": 0.25},
            },
            "logs": {"accuracy": "argmax(student_logits) == label"},
        }
    ],
    "evaluate": {
        "loss": "cross_entropy(student_logits, label)",
        "accuracy": "argmax(student_logits) == label",
        "teacher": "argmax(taught) == label",
        "agreement": "argmax(student_logits) == argmax(taught)",
    },
}


def case(system: Table, optimizer: Table) -> Case:
    found = recipe(system, MODELS, {"student": optimizer}, student=0.9)
    return Case({**found, "hyperparameters": {"temperature": 3.0, "labels": 0.25}}, processes=(1, 2))


CASES: Mapping[str, Case] = {
    "distillation": case({"kind": "distillation", "temperature": 3.0, "labels": 0.25}, NESTEROV),
    "distillation, composed": case(COMPOSED, ADAMW),
}


def train(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    student = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, CLASSES))
    plain = Reference(recipe, data, first, {"teacher": classifier().eval(), "student": student})
    teacher = plain.models["teacher"]
    warm, share = recipe["hyperparameters"]["temperature"], recipe["hyperparameters"]["labels"]

    def loss(indices: Tensor) -> tuple[Tensor, Terms]:
        image, label = plain.data["image"][indices], plain.data["label"][indices]
        logits, taught = student(image), teacher(image).detach()
        log_q, p = (logits / warm).log_softmax(1), (taught / warm).softmax(1)
        soft = warm**2 * F.kl_div(log_q, p, reduction="batchmean")
        hard = F.nll_loss(logits.log_softmax(1), label)
        right = (logits.argmax(1) == label).to(logits.dtype).mean()
        return (1 - share) * soft + share * hard, {"soft": soft, "hard": hard, "accuracy": right}

    for _ in plain.steps():
        plain.update("student", loss=loss)

    def judged(indices: Tensor) -> Terms:
        image, label = plain.data["image"][indices], plain.data["label"][indices]
        logits, taught = plain.averages["student"](image), teacher(image)
        same = {
            "accuracy": logits.argmax(1) == label,
            "teacher": taught.argmax(1) == label,
            "agreement": logits.argmax(1) == taught.argmax(1),
        }
        terms = {name: hits.to(logits.dtype).mean() for name, hits in same.items()}
        return {"loss": F.nll_loss(logits.log_softmax(1), label), **terms}

    return plain.result() | evaluated(plain, judged)
