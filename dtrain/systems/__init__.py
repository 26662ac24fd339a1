"""Systems by kind: importing this package registers the built-in ones."""

from dtrain.systems import classifier, gan

__all__ = ["classifier", "gan"]
