"""Data: where examples come from, which of them an update uses, and how they reach it in time."""

from dtrain.data import arrays, images

__all__ = ["arrays", "images"]  # importing them registers their kinds
