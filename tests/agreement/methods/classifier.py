"""The classifier of `agreement.cases`, written as `composed`, with weights and items of its own."""

from collections.abc import Mapping
from typing import Any

from agreement.cases import ADAMW, CLASSIFIER, Case, recipe
from agreement.references import Numbers, train_classifier

SMOOTH = "cross_entropy(logits, label, smoothing=0.1)"
RIGHT = "argmax(logits) == label"
SYSTEM = {
    "kind": "composed",
    "values": {"logits": "classifier(image)"},
    "phases": [{"updates": ["classifier"], "losses": {"smooth": SMOOTH}, "logs": {"accuracy": RIGHT}}],
    "evaluate": {"loss": "cross_entropy(logits, label)", "accuracy": RIGHT},
}
CASES: Mapping[str, Case] = {
    "composed classifier": Case(
        recipe(SYSTEM, {"classifier": CLASSIFIER}, {"classifier": ADAMW}, classifier=0.9), processes=(1, 2)
    )
}


def train(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    found = train_classifier({**recipe, "system": {"label_smoothing": 0.1}}, data, first)
    return found | {"curve:classifier/smooth": found["curve:classifier/loss"]}
