"""Systems by kind: importing this package registers the built-in ones."""

from dtrain.systems import (
    adversarial,
    autoencoder,
    classifier,
    composed,
    contrastive,
    cycle,
    diffusion,
    distillation,
    gan,
    language_model,
    vae,
)

__all__ = [
    "adversarial",
    "autoencoder",
    "classifier",
    "composed",
    "contrastive",
    "cycle",
    "diffusion",
    "distillation",
    "gan",
    "language_model",
    "vae",
]
