"""Files that models begin with: found and pinned before a recipe is decoded, compared with the models after.

[models.classifier]
weights = "resnet18.safetensors"

becomes `weights = { path = "/home/you/resnet18.safetensors", checksum = "..." }`, so that a run that is
carried on, or reproduced, begins with the same numbers or not at all. Of what is pinned nothing more is
needed here: a run's checkpoints hold all weights themselves, and the file need not be there any more.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dtrain.errors import CheckpointError, RecipeError
from dtrain.format.weights_files import Found, Weights, checksum, files_of, open_files, open_weights, packaged
from dtrain.recipe.document import Document, at
from dtrain.recipe.fit import is_outside
from dtrain.recipe.texts import near_path
from dtrain.spec.decode import decode
from dtrain.spec.models import Model, ModelSpec, is_argument, weights_of
from dtrain.spec.weights import WeightsFile
from dtrain.spec.weights_fit import FRACTIONS, SORTS, Fit, Tensor, fit
from dtrain.spec.words import Place, dotted


def pin_file(document: Document, place: Place, *, hashes: bool) -> None:
    """Make the path of a model's `weights` absolute and, with `hashes`, note the checksum; or a mistake."""
    value, model = at(document.table, place), at(document.table, place[:-1])
    if isinstance(value, str) and "kind" in model and is_argument(value):
        return
    table = {"path": value} if isinstance(value, str) else value
    source, mistakes = decode(WeightsFile, table, place)
    if mistakes:  # they are told when the recipe is decoded
        return
    here = place if isinstance(value, str) else (*place, "path")
    path = _absolute(source.path, here, document)
    pinned = {**table, "path": str(path)}
    if source.checksum is None:
        try:
            found = _found(path, here, document)
            if found is not None and hashes:
                pinned["checksum"] = checksum(found.files)
        except CheckpointError as error:
            near = near_path(path, str(source.path)) if packaged(path) is None and not path.exists() else None
            document.complain(here, str(error), suggestion=near)
            return
    model[place[-1]] = pinned


def unfit_weights(models: Mapping[str, Model], document: Document) -> Iterator[RecipeError]:
    """Every place where the names and shapes in a file are not those of a stack of layers.

    Of layers that are imported only a run can tell, and so of a file that was pinned and is no longer there.
    """
    for name, model in models.items():
        source, place = weights_of(model), ("models", name, "weights")
        if source is None or not isinstance(model, ModelSpec) or _refusal(source.path, place, document):
            continue
        if (compared := compare(model, source)) is not None:
            yield from compared.mistakes(place)


def compare(model: ModelSpec, source: WeightsFile) -> Fit | None:
    """Which tensor of a file goes where in a stack; None where that cannot be known yet."""
    try:
        if model.imports_layers:
            return None
        return fit(source, tensors_in(open_weights(source.path)), _tensors_of(model), {})
    except (CheckpointError, ValueError):  # they are told where they are found
        return None


def tensors_in(weights: Weights) -> dict[str, Tensor]:
    """What the headers of files say of each tensor."""
    return {
        name: Tensor(stored.shape, SORTS.get(stored.dtype, ""), stored.dtype)
        for name, (_, stored) in weights.tensors.items()
    }


def _tensors_of(model: ModelSpec) -> dict[str, Tensor]:
    """What a checkpoint holds of a stack: parameters, and buffers, which may be numbers of any sort."""
    found = {}
    for row in model.walk():
        for name, parameter in row.layer.parameters(row.before).items():
            found[f"{row.name}.{name}"] = Tensor(parameter.shape, FRACTIONS)
        for name, shape in row.layer.buffers(row.before).items():
            found[f"{row.name}.{name}"] = Tensor(shape, "")
    return found


def _absolute(path: Path, place: Place, document: Document) -> Path:
    folder = document.said_at(place).text.folder
    return path if packaged(path) is not None else Path(os.path.normpath(folder / path))


def _found(path: Path, place: Place, document: Document) -> Found | None:
    """The files that a path means, their headers read; None where it may not be looked for, which is noted.

    Raises CheckpointError if they cannot be read.
    """
    refusal = _refusal(path, place, document)
    if refusal is None:
        found = files_of(path)
        inside: Any = () if packaged(path) is not None else found.files
        refusal = next((said for file in inside if (said := _refusal(file, place, document))), None)
        if refusal is None:
            open_files(found)
            return found
    document.complain(place, refusal)
    return None


def _refusal(path: Path, place: Place, document: Document) -> str | None:
    """Why a recipe from elsewhere may not read a path; None if it may."""
    if (inside := packaged(path)) is not None:
        trusted = document.trust.covers(inside[0])
        said = f"{inside[0]} is not a trusted package; if you trust it, name it: --trust {inside[0]}"
        return None if trusted else said
    key = dotted(place)
    if not is_outside(key, path, document):
        return None
    said = f"{path} lies outside of the recipe's folder, and it is not trusted"
    return f"{said}; give it as an argument: {key}=PATH"
