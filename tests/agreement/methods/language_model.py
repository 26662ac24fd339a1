"""Language models on sentences of 0 to 5 tokens: the mean is over tokens, wherever the sentences lie."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from agreement.cases import ADAMW, EXAMPLES, MICRO, SEED, VOCABULARY, Case, Table, activation, layer, recipe
from agreement.references import Numbers, Reference
from torch import Tensor, nn

from dtrain.spec.keys import seed_of

RECURRENT: Table = {
    "input": [5],
    "layers": [
        layer("embedding", size=VOCABULARY, out=6),
        layer("gru", out=7),
        layer("dropout", rate=0.2),
        layer("gru", out=8),
        layer("linear", out=VOCABULARY),
    ],
}
TRANSFORMER: Table = {
    "input": [5],
    "layers": [
        layer("embedding", size=VOCABULARY, out=8),
        layer("position"),
        layer(
            "residual", layers=[layer("layer_norm"), layer("attention", heads=2), layer("dropout", rate=0.1)]
        ),
        layer("residual", layers=[layer("layer_norm"), layer("linear", out=8), activation("gelu")]),
        layer("linear", out=VOCABULARY),
    ],
}


NAMED: Table = {
    "kind": "language_model",
    "input": "before",
    "target": "after",
    "weight": "counts",
    "sample": {"length": 4},
}
COMPOSED: Table = {
    "kind": "composed",
    "items": "sum(counts)",
    "values": {"nats": "cross_entropy(language_model(before), after, weight=counts)"},
    "phases": [
        {
            "updates": ["language_model"],
            "losses": {"surprise": "nats"},
            "logs": {"bits_per_character": f"{1 / math.log(2)} * detach(nats)"},
        }
    ],
    "evaluate": {"loss": "nats", "bits_per_character": f"{1 / math.log(2)} * nats"},
}


def case(system: Table, model: Table, tolerance: float) -> Case:
    optimizers = {"language_model": {**ADAMW, "clip": 0.3}}
    return Case(recipe(system, {"language_model": model}, optimizers, language_model=0.9), tolerance)


CASES: Mapping[str, Case] = {
    "language_model, gru": case(NAMED, RECURRENT, 1e-12),
    "language_model, attention": case(NAMED, TRANSFORMER, 1e-9),
    "language_model, composed": case(COMPOSED, RECURRENT, 1e-12),
}


class States(nn.GRU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class Attention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:
        ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return (
            super().forward(x, x, x, attn_mask=ahead, need_weights=True)[0].contiguous()
        )  # as dropout draws


class Places(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Plus(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def recurrent() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(VOCABULARY, 6),
        States(6, 7, batch_first=True),
        nn.Dropout(0.2),
        States(7, 8, batch_first=True),
        nn.Linear(8, VOCABULARY),
    )


def transformer() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(VOCABULARY, 8),
        Places(),
        Plus(nn.LayerNorm(8), Attention(8, 2, batch_first=True), nn.Dropout(0.1)),
        Plus(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()),
        nn.Linear(8, VOCABULARY),
    )


def train(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    """The sum over the tokens of a whole batch, divided by how many there are."""
    kinds = [layer["kind"] for layer in recipe["models"]["language_model"]["layers"]]
    model = recurrent() if "gru" in kinds else transformer()
    plain = Reference(recipe, data, first, {"language_model": model})
    parameters = list(model.parameters())

    def surprise(reader: nn.Module, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of what was not foreseen in these sentences, and their tokens."""
        is_said = plain.data["counts"][indices] > 0
        logits = reader(plain.data["before"][indices])
        return F.cross_entropy(
            logits[is_said], plain.data["after"][indices][is_said], reduction="sum"
        ), is_said.sum()

    for _ in plain.steps():
        sums = [surprise(model, indices) for indices, _ in plain.micro_batches()]
        loss = sum(value for value, _ in sums) / sum(count for _, count in sums)
        means = {"loss": loss.item(), "bits_per_character": loss.item() / math.log(2)}
        if recipe["system"]["kind"] == "composed":
            means["surprise"] = loss.item()
        plain.finish({"language_model": parameters}, torch.autograd.grad(loss, parameters), means)

    mean = plain.averages["language_model"].eval()
    total, count = 0.0, 0
    for number, start in enumerate(range(0, EXAMPLES, MICRO)):
        torch.default_generator.manual_seed(seed_of(SEED, "evaluate", number))
        with torch.no_grad():
            value, tokens = surprise(mean, torch.arange(start, min(start + MICRO, EXAMPLES)))
        total, count = total + value.item(), count + tokens.item()
    return plain.result() | {
        "curve:evaluate/loss": np.array([total / count]),
        "curve:evaluate/bits_per_character": np.array([total / count / math.log(2)]),
    }
