"""The recipes whose numbers must agree, and examples for them; nothing here imports torch.

52 examples in batches of 15 and micro-batches of 3: four batches an epoch, of 15, 15, 15 and 7, cut up
as 3 3 3 3 3 and as 3 3 1. So two processes idle in turn, and the last of four has nothing at all to do
in the last batch of an epoch.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLES, BATCH, MICRO, SEED = 52, 15, 3, 7
IS_LONG = bool(os.environ.get("DTRAIN_TEST_LONG"))
STEPS = 200 if IS_LONG else 26
LATENT, CLASSES, VOCABULARY = 5, 4, 7

Table = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One recipe, the numbers of processes it is run on, and how near to its reference they must stay."""

    recipe: Table
    tolerance: float = 1e-9  # of the largest value of each tensor and curve
    processes: tuple[int, ...] = (1, 2, 4)


def write_examples(path: Path) -> None:
    """Pictures of four kinds, and sentences of 0 to 6 tokens, padded to 6; and so before and after."""
    random = np.random.default_rng(0)
    label = random.integers(CLASSES, size=EXAMPLES)
    kinds = random.standard_normal((CLASSES, 1, 8, 8))
    image = np.tanh(kinds[label] + 0.5 * random.standard_normal((EXAMPLES, 1, 8, 8)))
    token = random.integers(VOCABULARY, size=(EXAMPLES, 6))
    length = random.integers(7, size=EXAMPLES)
    between = {"before": token[:, :-1], "after": token[:, 1:]}
    counts = (np.arange(1, 6) < length[:, None]).astype(float)  # whether `after` is still in the sentence
    other = image[:, :, ::-1]  # pictures of another kind: these, upside down
    np.savez(
        path, image=image, other=other, label=label, token=token, length=length, **between, counts=counts
    )


def layer(kind: str, **options: Any) -> Table:
    return {"kind": kind, **options}


def activation(function: str) -> Table:
    return layer("activation", function=function)


CLASSIFIER: Table = {
    "input": [1, 8, 8],
    "layers": [
        layer("conv", out=4, kernel=3, padding=1, bias=False),
        layer("batch_norm", momentum=0.2),
        activation("silu"),
        layer("pool", mode="average"),
        layer("flatten"),
        layer("dropout", rate=0.25),
        layer("linear", out=12),
        activation("tanh"),
        layer("dropout", rate=0.1),
        layer("linear", out=CLASSES),
    ],
}
GENERATOR: Table = {
    "input": [LATENT],
    "layers": [
        layer("linear", out=24, bias=False),
        layer("reshape", shape=[6, 2, 2]),
        layer("batch_norm"),
        activation("leaky_relu"),
        layer("conv_transpose", out=4, kernel=4, stride=2, padding=1),
        activation("softplus"),
        layer("conv_transpose", out=1, kernel=4, stride=2, padding=1),
        activation("tanh"),
    ],
}
DISCRIMINATOR: Table = {
    "input": [1, 8, 8],
    "layers": [
        layer("conv", out=4, kernel=4, stride=2, padding=1),
        activation("silu"),
        layer("conv", out=6, kernel=4, stride=2, padding=1, bias=False),
        layer("batch_norm"),
        activation("softplus"),
        layer("dropout", rate=0.2),
        layer("flatten"),
        layer("linear", out=1),
    ],
}
ENCODER: Table = {
    "input": [1, 8, 8],
    "layers": [
        layer("conv", out=4, kernel=4, stride=2, padding=1, bias=False),
        layer("batch_norm"),
        activation("gelu"),
        layer("flatten"),
        layer("linear", out=LATENT),
    ],
}
DECODER: Table = {
    "input": [LATENT],
    "layers": [
        layer("linear", out=16),
        activation("silu"),
        layer("dropout", rate=0.1),
        layer("linear", out=64),
        layer("reshape", shape=[1, 8, 8]),
        activation("tanh"),
    ],
}
JUDGE: Table = {
    "input": [1, 8, 8],
    "layers": [
        layer("conv", out=3, kernel=3),
        layer("batch_norm"),
        layer("dropout", rate=0.5),
        activation("softplus"),
    ],
}
SPEAKER: Table = {
    "input": [5],
    "layers": [
        layer("embedding", size=VOCABULARY, out=6),
        layer("layer_norm"),
        layer("linear", out=8),
        activation("gelu"),
        layer("linear", out=VOCABULARY),
    ],
}
FALL = {"kind": "cosine", "warmup": 5, "floor": 0.1}


def recipe(
    system: Table, models: Table, optimizers: Table, *, precision: str = "fp64", **averages: Any
) -> Table:
    return {
        "name": "agreement",
        "seed": SEED,
        "system": system,
        "models": models,
        "optimizers": optimizers,
        "averages": {name: {"decay": decay} for name, decay in averages.items()},
        "data": {"kind": "arrays", "path": "examples.npz"},
        "train": {"steps": STEPS, "batch_size": BATCH, "micro_batch_size": MICRO, "precision": precision},
        "every": {"log": 1},
        "track": {"kinds": []},
    }


def gan(loss: str, optimizers: Table, *, precision: str = "fp64", **options: Any) -> Table:
    system = {"kind": "gan", "latent": LATENT, "loss": loss, "critic_steps": 2, **options}
    models = {"generator": GENERATOR, "discriminator": DISCRIMINATOR}
    return recipe(system, models, optimizers, precision=precision, generator=0.9)


def classifier(
    optimizer: Table, *, model: Table = CLASSIFIER, precision: str = "fp64", **system: Any
) -> Table:
    return recipe(
        {"kind": "classifier", **system},
        {"classifier": model},
        {"classifier": optimizer},
        precision=precision,
        classifier=0.9,
    )


ADAM = {"kind": "adam", "lr": 2e-3, "betas": [0.5, 0.9], "clip": 0.5}
SGD = {"kind": "sgd", "lr": 0.02, "momentum": 0.9, "clip": 0.4}
NESTEROV = {**SGD, "nesterov": True, "weight_decay": 1e-2}
ADAMW = {"kind": "adamw", "lr": 5e-3, "weight_decay": 0.1, "clip": 0.5, "schedule": FALL}
RMSPROP = {"kind": "rmsprop", "lr": 1e-3, "alpha": 0.9, "momentum": 0.5, "centered": True, "clip_value": 0.01}
ADAFACTOR = {
    "kind": "adafactor",
    "lr": 0.05,
    "eps1": 1e-8,
    "eps2": 1e-2,
    "weight_decay": 0.01,
    "schedule": FALL,
}
LION = {"kind": "lion", "lr": 1e-3, "weight_decay": 0.1, "clip_value": 0.02, "clip": 0.1, "schedule": FALL}
MUON = {
    "kind": "muon",
    "lr": 0.02,
    "others": {"lr": 2e-3, "weight_decay": 0.1},
    "clip": 0.5,
    "schedule": FALL,
}
GROUPS = [{"match": "*.bias", "weight_decay": 0.0, "lr": 2e-3}, {"match": "6.*", "betas": [0.5, 0.9]}]
BOTH_ADAM = {"generator": {**ADAM, "schedule": FALL}, "discriminator": ADAM}
MAIN_GAN = {"loss": "non_saturating", "optimizers": BOTH_ADAM}
MAIN_CLASSIFIER = {"optimizer": ADAMW, "label_smoothing": 0.1}
JOINT = recipe(
    {"kind": "agreement.systems:Autoencoder"},
    {"encoder": ENCODER, "decoder": DECODER, "judge": JUDGE},
    {"encoder": {**ADAM, "clip": 0.1}, "decoder": {**NESTEROV, "clip": 0.05}},
    decoder=0.8,
)

CASES: Mapping[str, Case] = {
    "gan, non_saturating, r1": Case(gan(**MAIN_GAN, r1=1.0)),
    "gan, hinge": Case(gan("hinge", {"generator": ADAMW, "discriminator": {**ADAM, "weight_decay": 0.01}})),
    "gan, least_squares": Case(gan("least_squares", {"generator": SGD, "discriminator": NESTEROV})),
    "gan, wasserstein": Case(gan("wasserstein", BOTH_ADAM, gradient_penalty=10.0)),
    "gan, fp32": Case(gan(**MAIN_GAN, precision="fp32"), 1e-4),
    "classifier, adamw": Case(classifier(**MAIN_CLASSIFIER)),
    "classifier, sgd": Case(classifier({**NESTEROV, "schedule": {"kind": "linear", "floor": 0.2}})),
    "classifier, adam": Case(
        classifier(
            {"kind": "adam", "lr": 3e-3, "weight_decay": 0.05, "schedule": {"kind": "constant", "warmup": 7}}
        )
    ),
    "classifier, rmsprop": Case(classifier(RMSPROP)),
    "classifier, adafactor": Case(classifier(ADAFACTOR)),
    "classifier, lion": Case(classifier(LION)),
    "classifier, groups": Case(classifier({**ADAMW, "groups": GROUPS})),
    "classifier, imported optimizer": Case(
        classifier({"kind": "torch.optim:NAdam", "lr": 2e-3, "momentum_decay": 0.01, "clip": 0.5})
    ),
    "classifier, imported batch norm": Case(
        classifier(ADAMW, model={"kind": "agreement.systems:Normed", "width": 4})
    ),
    "classifier, imported and half frozen": Case(
        classifier(ADAMW, model={"kind": "agreement.systems:HalfFrozen", "width": 4})
    ),
    "classifier, imported spectral norm": Case(
        classifier(ADAM, model={"kind": "agreement.systems:Spectral", "out": CLASSES})
    ),
    "classifier, fp32": Case(classifier(**MAIN_CLASSIFIER, precision="fp32"), 1e-4),
    "tokens": Case(
        recipe({"kind": "agreement.systems:Speech"}, {"speaker": SPEAKER}, {"speaker": SGD}), 1e-12
    ),
    "tokens, muon": Case(
        recipe({"kind": "agreement.systems:Speech"}, {"speaker": SPEAKER}, {"speaker": MUON})
    ),
    "two models at once": Case(JOINT),
}

# What has no reference but itself in another precision: bf16 and fp16.
HALVES: Mapping[str, Case] = {
    "gan, bf16": Case(gan(**MAIN_GAN, precision="bf16"), processes=(1, 2)),
    "classifier, bf16": Case(classifier(**MAIN_CLASSIFIER, precision="bf16"), processes=(1, 2)),
    "gan, fp16": Case(gan(**MAIN_GAN, precision="fp16"), processes=(1,)),
    "classifier, fp16": Case(classifier(**MAIN_CLASSIFIER, precision="fp16"), processes=(1, 2)),
    "overflow": Case(
        {
            **classifier(ADAM, precision="fp16"),
            "system": {"kind": "agreement.systems:Loud", "factor": 1000.0},
        },
        processes=(1, 2),
    ),
}

# Watched update by update: models with buffers of every sort, trained in turn.
SPECTRAL = {"generator": GENERATOR, "discriminator": {"kind": "agreement.systems:Spectral", "out": 1}}
FROZEN: Mapping[str, Table] = {
    "gan": gan(**MAIN_GAN),
    "gan, imported spectral norm": {**gan(**MAIN_GAN), "models": SPECTRAL},
    "two models at once": JOINT,
}
