"""Autoencoders: plain and denoising."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from agreement.cases import ADAM, DECODER, ENCODER, NESTEROV, Case, recipe
from agreement.references import Numbers, Reference, Terms, decoder, encoder, evaluated
from torch import Tensor

MODELS = {"encoder": ENCODER, "decoder": DECODER}
OPTIMIZERS = {"encoder": {**ADAM, "clip": 0.1}, "decoder": {**NESTEROV, "clip": 0.05}}


def case(**options: Any) -> Case:
    system = {"kind": "autoencoder"} | options
    return Case(recipe(system, MODELS, OPTIMIZERS, encoder=0.9, decoder=0.8), processes=(1, 2))


DENOISING = {"noise": 0.2, "masked": 0.3, "loss": "l1"}
COMPOSED = {  # the same
    "kind": "composed",
    "values": {
        "seen": "(image + 0.2 * normal(1, 8, 8)) * bernoulli(0.7, 1, 8, 8)",
        "missed": "l1(decoder(encoder(seen)), image)",
    },
    "phases": [{"updates": ["encoder", "decoder"], "losses": {"reconstruction": "missed"}}],
    "evaluate": {"loss": "missed"},
}

CASES: Mapping[str, Case] = {
    "autoencoder": case(),
    "autoencoder, denoising": case(**DENOISING),
    "autoencoder, composed": case(**COMPOSED),
}


def train(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    plain = Reference(recipe, data, first, {"encoder": encoder(), "decoder": decoder()})
    is_composed = plain.system["kind"] == "composed"
    said = DENOISING if is_composed else plain.system
    noise, masked = said.get("noise"), said.get("masked")
    difference = F.l1_loss if said.get("loss") == "l1" else F.mse_loss

    def loss(indices: Tensor, models: Mapping[str, torch.nn.Module]) -> Tensor:
        image = seen = plain.data["image"][indices]
        if noise:
            seen = seen + noise * torch.randn_like(image)
        if masked:
            seen = torch.where(torch.empty_like(image).bernoulli_(1 - masked) == 1, seen, 0.0)
        return difference(models["decoder"](models["encoder"](seen)), image)

    def of_both(indices: Tensor) -> tuple[Tensor, Terms]:
        value = loss(indices, plain.models)
        return value, {"reconstruction": value} if is_composed else {}

    for _ in plain.steps():
        plain.update("encoder", "decoder", loss=of_both)
    return plain.result() | evaluated(plain, lambda indices: {"loss": loss(indices, plain.averages)})
