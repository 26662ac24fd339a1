"""Data: where examples come from, which of them an update uses, and how they reach it in time."""

from dtrain.data import arrays, images, text

__all__ = ["arrays", "images", "text"]  # importing them registers their kinds
