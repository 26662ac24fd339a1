"""The features of examples: what a trained model out of a checkpoint makes of them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from dtrain.checkpoint.models import models_of
from dtrain.checkpoint.read import newest_of
from dtrain.data.arrays import Arrays
from dtrain.data.dataset import Reading
from dtrain.data.images import Images
from dtrain.data.source import Source
from dtrain.errors import CheckpointError, RecipeError
from dtrain.recipe.load import from_checkpoint
from dtrain.spec.metrics import Frechet
from dtrain.spec.models import ModelSpec
from dtrain.spec.table import Imported
from dtrain.spec.trust import Trust
from dtrain.spec.words import nearest

Range = tuple[float, float]


class Features(nn.Module):
    """What the first layers of a model give; pictures come in one range and are mapped to the model's own."""

    def __init__(self, module: nn.Module, dtype: torch.dtype, given: Range, wanted: Range):
        super().__init__()
        self.module, self.dtype = module, dtype
        self.scale = (wanted[1] - wanted[0]) / (given[1] - given[0])
        self.shift = wanted[0] - self.scale * given[0]

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, ...) of examples (N, ...)."""
        features: Tensor = self.module((x * self.scale + self.shift).to(self.dtype))
        return features


def load_features(table: Frechet, given: Range, *, at: str, trust: Trust) -> Features:
    """The features that a metric under the key `at` goes by, of pictures whose black and white are `given`.

    What the checkpoint's recipe imports is what `trust` names, as it may come from elsewhere. Raises
    RecipeError if there is no such checkpoint, or no such model or layer in it.
    """
    trusted = Trust(names=trust.names)
    try:
        checkpoint = newest_of(table.features)
        recipe = from_checkpoint(checkpoint.recipe, folder=checkpoint.path, trust=trusted)
        name = _chosen(table, recipe.models, at)
        module = models_of(checkpoint, recipe, trusted, only=name)[name]
    except CheckpointError as error:
        raise RecipeError(f"{at}.features", str(error)) from None
    spec = recipe.models[name]
    if table.layers is not None:
        if not isinstance(spec, ModelSpec) or not isinstance(module, nn.Sequential):
            said = f"{name} is imported and has no list of layers; a model of layers would do"
            raise RecipeError(f"{at}.layers", said, is_key=True)
        if table.layers > len(module):
            said = f"found {table.layers}, but {name} has {len(module)} layers; at most that would do"
            raise RecipeError(f"{at}.layers", said)
        module = module[: table.layers]
    dtype = torch.float64 if recipe.train.precision == "fp64" else torch.float32
    return Features(module, dtype, given, range_of(recipe.data) or given)


def range_of(data: Source | Imported) -> Range | None:
    """What black and white become; None of data that has no pictures, for all one can tell."""
    match data:
        case Arrays(range=range) | Images(range=range):
            return range
        case Imported(arguments=arguments):
            low, high = arguments.get("examples", {}).get("range", Reading().range)
            return (low, high)
    return None


def _chosen(table: Frechet, models: Mapping[str, object], at: str) -> str:
    """The name of the model whose features are wanted."""
    if table.model is None and len(models) == 1:
        return next(iter(models))
    place, there = Path(table.features).name, ", ".join(models)
    if table.model is None:
        raise RecipeError(f"{at}.model", f"required, as {place} has several models: {there}")
    if table.model not in models:
        near = nearest(table.model, models)
        said = f'{place} has no model "{table.model}"; it has {there}'
        raise RecipeError(f"{at}.model", said, suggestion=near)
    return table.model
