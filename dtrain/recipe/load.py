"""A recipe from its files: put together, resolved, decoded, checked."""

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dtrain.recipe.check import mistakes, unfit_schedules
from dtrain.recipe.check_metrics import idle_choices
from dtrain.recipe.compose import compose
from dtrain.recipe.document import Document, Said, Sayings
from dtrain.recipe.fit import misfits
from dtrain.recipe.groups import fitted, group_problems
from dtrain.recipe.imports import check_imports, check_trust
from dtrain.recipe.keys import is_of_shapes, takes_path
from dtrain.recipe.locate import located
from dtrain.recipe.once import told_once
from dtrain.recipe.parts import decode_parts
from dtrain.recipe.plan import pace_of
from dtrain.recipe.references import resolve
from dtrain.recipe.stacks import expand
from dtrain.recipe.stored import fill_in
from dtrain.recipe.texts import Text, parse
from dtrain.recipe.values import Recipe
from dtrain.recipe.weights import unfit_weights
from dtrain.spec.decode import TOO_MANY
from dtrain.spec.table import key_of
from dtrain.spec.trust import EVERYTHING, Trust
from dtrain.spec.weights import WeightsFile
from dtrain.spec.words import Place
from dtrain.systems.base import System

MOST_MODELS = 1_000


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    set_files: Sequence[str | Path] = (),
    imports: bool = True,
    trust: Trust = EVERYTHING,
) -> Recipe:
    """Read a recipe; overrides look like `optimizers.generator.lr=1e-4`, `set_files` are merged over it.

    A relative path in the recipe is relative to the file that says it, one in an override to the working
    folder. Without `imports` nothing that the recipe names is imported, and else what `trust` allows. Raises
    RecipeErrors with every mistake at once, each at its line.
    """
    document = read(path, overrides, set_files=set_files, trust=trust)
    return from_document(document, imports=imports)


def read(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    set_files: Sequence[str | Path] = (),
    trust: Trust = EVERYTHING,
) -> Document:
    """The document of a recipe: all that its files and arguments say."""
    return compose(Path(path), overrides, set_files=[Path(file) for file in set_files], trust=trust)


def from_table(
    table: Mapping[str, Any],
    *,
    folder: Path,
    source: str,
    imports: bool = True,
) -> Recipe:
    """Resolve, decode and check a table, whose relative paths are relative to `folder`.

    `source` names it in errors, which have no lines.
    """
    text = Text(source, None, folder.absolute())
    said = Sayings({(): Said(text, ())})
    return from_document(Document(copy.deepcopy(dict(table)), said), imports=imports)


def from_checkpoint(content: str, *, folder: Path, trust: Trust) -> Recipe:
    """The recipe that lies in a checkpoint, of which nothing is imported and no file opened here."""
    text = Text(str(folder / "recipe.toml"), content, folder.absolute())
    document = Document(parse(text), Sayings({(): Said(text, ())}), trust=trust)
    return from_document(document, imports=False, vets=False)


def from_document(
    document: Document, *, imports: bool = True, vets: bool = True, hashes: bool = True
) -> Recipe:
    """Resolve, decode and check what a document says; it becomes the resolved one.

    Without `vets` import paths may be such as are not allowed, and choices idle, as of a recipe that is only
    looked at; without `hashes` the files that models begin with, which may be large, have no checksums in it.
    """
    written = document.table
    expand(document)
    environment = os.environ if document.trust.everything else None
    resolved = resolve(document, environment, lambda place: _takes_environment(document.table, place))
    document.table, document.said, document.errors = resolved.table, resolved.said, resolved.errors
    fill_in(document, hashes=hashes)
    spread = _spread_star(document)
    parts = decode_parts(document.table)
    if len(parts.errors) > TOO_MANY:
        raise located(document, parts.errors[:TOO_MANY])
    parts.values = {key: _anchored(value, (key,), document) for key, value in parts.values.items()}
    untrusted = check_trust(parts.values, document.trust) if vets else ()
    errors = told_once([*parts.errors, *untrusted], document, written)
    if imports and not errors:
        system, found = check_imports(parts.values, document.trust)
        parts.values["system"] = _anchored(system, ("system",), document)
        errors += found
    if isinstance(parts.values.get("system"), System):
        parts.values["system"] = parts.values["system"].joined(parts.values.get("models", {}))
    errors += mistakes(parts, spread)
    if not document.errors and not any(is_of_shapes(error) for error in errors):
        errors += misfits(parts.values, document)
    if vets:
        errors += unfit_weights(parts.values.get("models", {}), document)
        errors += idle_choices(parts.values.get("checkpoint"))
    errors += group_problems(parts.values, spread)
    if "train" in parts.values:
        pace = pace_of(parts.values["train"], parts.values.get("system"), None)
        errors += unfit_schedules(parts.values, pace)
    if errors:
        raise located(document, errors)
    return _without(parts.recipe(), spread)


def _takes_environment(table: Any, place: Place) -> bool:
    return place[0] == "track" or takes_path(table, place)


def _spread_star(document: Document) -> set[str]:
    """Give the optimizer "*" to every model that has none of its own; which models these are."""
    optimizers, models = document.table.get("optimizers"), document.table.get("models")
    if not isinstance(optimizers, dict) or not isinstance(models, dict) or "*" not in optimizers:
        return set()
    if len(models) > MOST_MODELS:
        document.complain(("models",), f"found {len(models):,} models; at most {MOST_MODELS:,} would do")
        return set()
    given = Document(document.table, Sayings(document.said))
    every = optimizers.pop("*")
    served = [name for name in models if name not in optimizers]
    own = dict(optimizers)
    optimizers.clear()
    for name in served:
        optimizers[name] = copy.deepcopy(every)
        document.graft(("optimizers", name), given, ("optimizers", "*"))
    optimizers.update(own)
    return set(served)


def _without(recipe: Recipe, spread: set[str]) -> Recipe:
    """Take the optimizer "*" from the models that no phase trains: they are frozen.

    Of the others each gets the patterns that match something of it.
    """
    kept = {
        name: fitted(o, recipe.models[name]) if name in spread else o for name, o in recipe.optimizers.items()
    }
    if isinstance(recipe.system, System):
        trained = {name for names in recipe.system.trains() for name in names}
        kept = {name: o for name, o in kept.items() if name in trained or name not in spread}
    return dataclasses.replace(recipe, optimizers=MappingProxyType(kept))


def _anchored(value: Any, place: Place, document: Document) -> Any:
    """Make every path absolute: from the folder of the file that says it, or the working one."""
    if isinstance(value, WeightsFile):  # `fill_in` made its path absolute, where it is no package's
        return value
    if isinstance(value, Path):
        return Path(os.path.normpath(document.said_at(place).text.folder / value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        is_imported = {"path", "arguments"} <= fields.keys()
        moved = {
            name: _anchored_import(item, name, place, document)
            if is_imported and name in ("path", "arguments")
            else _anchored(item, (*place, key_of(name)), document)
            for name, item in fields.items()
        }
        changed = {name: item for name, item in moved.items() if item is not fields[name]}
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, Mapping):
        moved = {key: _anchored(item, (*place, key), document) for key, item in value.items()}
        return MappingProxyType(moved) if any(moved[key] is not value[key] for key in value) else value
    if isinstance(value, tuple):
        items = tuple(_anchored(item, (*place, number), document) for number, item in enumerate(value))
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value


def _anchored_import(value: Any, name: str, place: Place, document: Document) -> Any:
    """Of what is imported, the file that it is imported from, and arguments that begin with ./ or ../."""
    if name == "path":
        file, _, name = value.rpartition(":")
        return f"{_absolute(file, (*place, 'kind'), document)}:{name}" if file.endswith(".py") else value
    return _anchored_arguments(value, place, document)


def _anchored_arguments(value: Any, place: Place, document: Document) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({k: _anchored_arguments(v, (*place, k), document) for k, v in value.items()})
    if isinstance(value, tuple):
        return tuple(_anchored_arguments(item, (*place, n), document) for n, item in enumerate(value))
    is_path = isinstance(value, str) and value.startswith(("./", "../"))
    return _absolute(value, place, document) if is_path else value


def _absolute(path: str, place: Place, document: Document) -> str:
    return os.path.normpath(document.said_at(place).text.folder / path)
