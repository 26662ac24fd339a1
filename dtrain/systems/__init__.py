"""Systems by kind: importing this package registers the built-in ones."""

from dtrain.systems import autoencoder, classifier, gan, language_model, vae

__all__ = ["autoencoder", "classifier", "gan", "language_model", "vae"]
