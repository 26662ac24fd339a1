"""Models that come out of checkpoints: what they are is read there, before the recipe is decoded.

[models.teacher]
kind = "checkpoint"
path = "../runs/classifier"               # the newest finished run of this name; or a run, or a checkpoint
model = "classifier"                      # its name there

becomes the model that stands in the checkpoint's own recipe, with `weights_from`, which names the checkpoint.
So shapes are known at once, a resolved recipe needs no other file to be understood, and a run that is carried
on has the same teacher though newer ones were trained. What such a model imports must be trusted by name,
even in a recipe that is trusted: that may well name a checkpoint from elsewhere.
"""

import os
from pathlib import Path
from typing import Any

from dtrain.errors import CheckpointError, RecipeError
from dtrain.format.checkpoints import Checkpoint, chosen, glance_at
from dtrain.recipe.document import Document, Said, Sayings, at
from dtrain.recipe.fit import is_outside
from dtrain.recipe.imports import check_trust
from dtrain.recipe.texts import Text, parse
from dtrain.recipe.weights import pin_file
from dtrain.spec.decode import BROKEN, decode
from dtrain.spec.models import BEGINNINGS, OF_RUN, AnyModel, StoredModel, WeightsFrom
from dtrain.spec.trust import Trust
from dtrain.spec.words import Place, dotted, nearest


def fill_in(document: Document, *, hashes: bool) -> None:
    """Put in every model that is a checkpoint's, and name the checkpoints; mistakes are noted.

    With `hashes` the files that models begin with are read whole, for their checksums.
    """
    models = document.table.get("models")
    for name, model in models.items() if isinstance(models, dict) else ():
        if isinstance(model, dict) and model.get("kind") == StoredModel.kind:
            put_in(document, ("models", name))
            continue
        if isinstance(model, dict) and "weights_from" in model:
            _pin(document, ("models", name, "weights_from"))
        if isinstance(model, dict) and "weights" in model:
            pin_file(document, ("models", name, "weights"), hashes=hashes)


def put_in(document: Document, place: Place) -> None:
    """Put in the model that a table of kind "checkpoint" stands for; of one with a mistake it stays."""
    table = at(document.table, place)
    stored, mistakes = decode(StoredModel, {key: table[key] for key in table if key != "kind"}, place)
    found = None if mistakes else _found(document, place, stored)
    if found is None:  # what is wrong with the table itself is said when it is decoded
        return
    try:
        source, taken = _taken(found, stored.model, Trust(names=document.trust.names))
    except RecipeError as error:
        key = "model" if error.key == "model" else "path"
        return document.complain((*place, key), f"{found.path}: {error.message}", suggestion=error.suggestion)
    own, kept = document.said_at(place), {key: table[key] for key in OF_RUN if key in table}
    said = {(*place, key): own.below((key,)) for key in kept}
    for key in kept:
        said |= {here: document.said[here] for here in document.said.below((*place, key))}
    at(document.table, place[:-1])[place[-1]] = {**taken, **kept, "weights_from": _pinned(stored, found)}
    document.graft(place, source, ("models", stored.model), own)
    document.said[*place, "weights_from"] = own
    for here, who in said.items():
        document.said[here] = who


def _pin(document: Document, place: Place) -> None:
    """Name the checkpoint of which a model takes the weights alone."""
    table = at(document.table, place)
    source, mistakes = decode(WeightsFrom, table, place)
    if not mistakes and source.checksum is None and (found := _found(document, place, source)) is not None:
        at(document.table, place[:-1])[place[-1]] = _pinned(source, found)


def _found(document: Document, place: Place, source: WeightsFrom) -> Checkpoint | None:
    """The checkpoint that is meant, the small files of it read; or what is wrong with it is noted."""
    here = (*place, "path")
    folder = document.said_at(here).text.folder
    path = Path(os.path.normpath(folder / source.path))
    try:
        checkpoint = path if is_outside(dotted(here), path, document) else chosen(path)
        if not is_outside(dotted(here), checkpoint, document):
            return glance_at(checkpoint)
        said = f"{checkpoint} lies outside of the recipe's folder, and it is not trusted"
        document.complain(here, f"{said}; give it as an argument: {dotted(here)}=PATH")
    except CheckpointError as error:
        document.complain(here, f"{error}; {_command(path, folder)}")
    return None


def _command(path: Path, folder: Path) -> str:
    """What makes the checkpoints that are missing."""
    for recipe in (folder / f"{path.name}.toml", folder.parent / f"{path.name}.toml"):
        if recipe.is_file() and f'name = "{path.name}"' in recipe.read_text(encoding="utf-8").splitlines():
            return f"`dtrain run {os.path.relpath(recipe)} --runs {os.path.relpath(path.parent)}` makes one"
    return f"`dtrain run` of a recipe whose name is {path.name} makes one, with --runs {path.parent}"


def _taken(checkpoint: Checkpoint, name: str, trust: Trust) -> tuple[Document, dict[str, Any]]:
    """The recipe of a checkpoint, and the table of one of its models, without what was that run's.

    Raises RecipeError if it has none, or one that cannot be read or imports what is not trusted.
    """
    text = Text(str(checkpoint.path / "recipe.toml"), checkpoint.recipe, checkpoint.path)
    source = Document(parse(text), Sayings({(): Said(text, ())}))
    models = source.table.get("models")
    if not isinstance(models, dict) or name not in models:
        there = list(models) if isinstance(models, dict) else []
        said = f"there is no such model; there is {', '.join(there) or 'none'}"
        raise RecipeError("model", said, suggestion=nearest(name, there))
    model, mistakes = decode(AnyModel, models[name], ("models", name))
    if isinstance(model, StoredModel):
        mistakes = [RecipeError("", "its recipe was not resolved")]
    if model is not BROKEN:
        mistakes += check_trust({"models": {name: model}}, trust)
    for mistake in mistakes:
        raise mistake
    return source, {key: value for key, value in models[name].items() if key not in (*OF_RUN, *BEGINNINGS)}


def _pinned(source: WeightsFrom, checkpoint: Checkpoint) -> dict[str, Any]:
    """The table that names the checkpoint itself."""
    return {
        "path": str(checkpoint.path),
        "model": source.model,
        "averages": source.averages,
        "checksum": checkpoint.checksum,
    }
