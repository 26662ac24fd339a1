"""Variational autoencoders: of values from 0 to 1, and of any."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from agreement.cases import ADAM, ADAMW, DECODER, ENCODER, LATENT, Case, layer, recipe
from agreement.references import Numbers, Reference, Terms, decoder, encoder, evaluated
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

TWICE = {**ENCODER, "layers": [*ENCODER["layers"][:-1], layer("linear", out=2 * LATENT)]}
MODELS = {"encoder": TWICE, "decoder": DECODER}


def case(**options: Any) -> Case:
    return system({"kind": "vae", "latent": LATENT, **options})


def system(said: Mapping[str, Any]) -> Case:
    return Case(
        recipe(dict(said), MODELS, {"encoder": ADAM, "decoder": ADAMW}, decoder=0.8), processes=(1, 2)
    )


RISE = {"kind": "constant", "warmup": 20}
COMPOSED = {  # the same as "vae, bce"
    "kind": "composed",
    "values": {
        "code": "encoder(image)",
        "log_variance": "slice(code, 5, 10)",
        "z": f"slice(code, 0, 5) + exp(log_variance / 2) * normal({LATENT})",
        "missed": "64 * bce(decoder(z), image)",
        "divergence": "kl_normal(slice(code, 0, 5), log_variance)",
    },
    "phases": [
        {
            "updates": ["encoder", "decoder"],
            "losses": {
                "reconstruction": "missed",
                "kl": {"of": "divergence", "weight": 0.3, "schedule": RISE},
            },
        }
    ],
    "evaluate": {"loss": "missed + 0.3 * divergence", "reconstruction": "missed", "kl": "divergence"},
}

CASES: Mapping[str, Case] = {
    "vae, bce": case(beta=0.3, schedule=RISE),
    "vae, mse": case(loss="mse"),
    "vae, composed": system(COMPOSED),
}


def train(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    made_of = {"encoder": nn.Sequential(*encoder()[:-1], nn.Linear(64, 2 * LATENT)), "decoder": decoder()}
    plain = Reference(recipe, data, first, made_of)
    beta, warmup = (1.0, 1) if plain.system.get("loss") == "mse" else (0.3, RISE["warmup"])

    def terms(indices: Tensor, decode: nn.Module) -> Terms:
        image = plain.data["image"][indices]
        code = plain.models["encoder"](image)
        posterior = Normal(code[:, :LATENT], (code[:, LATENT:] / 2).exp())
        made = decode(posterior.rsample())
        if plain.system.get("loss") == "mse":
            missed = 0.5 * (made - image).square()
        else:
            missed = F.binary_cross_entropy_with_logits(made, image, reduction="none")
        divergence = kl_divergence(posterior, Normal(torch.zeros_like(code[:, :LATENT]), 1.0))
        return {"reconstruction": missed.flatten(1).sum(1).mean(), "kl": divergence.sum(1).mean()}

    def bound(indices: Tensor) -> tuple[Tensor, Terms]:
        parts = terms(indices, plain.models["decoder"])
        factor = beta * min((plain.step + 1) / warmup, 1.0)
        return parts["reconstruction"] + factor * parts["kl"], parts

    def judged(indices: Tensor) -> Terms:
        parts = terms(indices, plain.averages["decoder"])
        return {"loss": parts["reconstruction"] + beta * parts["kl"], **parts}

    for _ in plain.steps():
        plain.update("encoder", "decoder", loss=bound)
    return plain.result() | evaluated(plain, judged)
