"""What a checkpoint holds, as tables of JSON and as text; all of it may be a stranger's."""

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtrain.cli.tables import bytes_text, columns, moment
from dtrain.errors import RecipeError
from dtrain.format.checkpoints import Checkpoint, glance_at
from dtrain.format.files import MANIFEST, PARTS, RECIPE
from dtrain.format.runs import best_of, ended, outcome, whole_number
from dtrain.format.tensors import Located, locate, model_names, of_model
from dtrain.recipe.load import from_checkpoint
from dtrain.recipe.texts import Text, parse
from dtrain.spec.models import ModelSpec
from dtrain.spec.trust import ImportPathError, Trust, is_import_path
from dtrain.spec.trust import parse as parse_path
from dtrain.spec.words import in_line

Table = dict[str, Any]
LONGEST = 2_000  # characters of a command that is printed


def contents(path: Path, *, with_tensors: bool) -> Table:
    """All that is known of a checkpoint without reading a tensor. Raises DtrainError if it cannot be read."""
    checkpoint = glance_at(path)
    recipe = parse(Text(str(path / RECIPE), checkpoint.recipe, path))
    parts = {part: locate(checkpoint, part) for part in PARTS}
    best = best_of(checkpoint.state)
    manifest = (path / MANIFEST).stat()
    sizes = {name: entry["size"] for name, entry in checkpoint.manifest["files"].items()}
    known = {
        "checkpoint": str(path),
        "recipe": recipe.get("name"),
        "system": _at(recipe, "system", "kind"),
        "step": whole_number(checkpoint.state, "step"),
        "total": whole_number(checkpoint.state, "total"),
        "ended": outcome(path, checkpoint.state) or None,
        "best": None if best is None else vars(best),
        "data": checkpoint.state.get("data"),
        "format": checkpoint.manifest["format"],
        "checksum": checkpoint.checksum,
        "written": moment(manifest.st_mtime),
        "environment": checkpoint.manifest.get("environment"),
        "files": dict(sorted({**sizes, MANIFEST: manifest.st_size}.items())),
    }
    counts, kinds = parameter_counts(checkpoint), _at(recipe, "optimizers")
    for part, tensors in parts.items():
        known[part] = {name: _summary(of_model(tensors, name)) for name in model_names(tensors)}
    for name, model in known["models"].items():
        model["parameters"] = counts.get(name)
    for name, optimizer in (kinds if isinstance(kinds, dict) else {}).items():
        own = known["optimizers"].setdefault(name, _summary({}))
        own["kind"] = _at(optimizer, "kind")
    if with_tensors:
        known["tensors"] = [_row(part, each) for part, found in parts.items() for each in found.values()]
    return known | {"go_on": dict(ways_on(checkpoint, recipe))}


def parameter_counts(checkpoint: Checkpoint) -> dict[str, int]:
    """How many numbers are trained in each model, where its recipe says so and can be read."""
    try:
        recipe = from_checkpoint(checkpoint.recipe, folder=checkpoint.path, trust=Trust())
    except RecipeError:  # of a later dtrain, perhaps
        return {}
    return {
        name: model.parameter_count()
        for name, model in recipe.models.items()
        if isinstance(model, ModelSpec) and not model.imports_layers
    }


def ways_on(checkpoint: Checkpoint, recipe: Table) -> Iterator[tuple[str, str]]:
    """What can be done with a checkpoint, and how."""
    place = str(checkpoint.path)
    trusted = list(dict.fromkeys(imports_to_trust(recipe)))
    trust = [word for name in trusted for word in ("--trust", name)]
    train, longer = _at(recipe, "train"), []
    if ended(checkpoint.state) == "finished" and isinstance(train, dict):
        longer = [
            f"train.{key}={2 * train[key]}" for key in ("steps", "epochs") if type(train.get(key)) is int
        ]
    own = checkpoint.path.parent.parent / RECIPE  # the run's: one in a checkpoint is trusted with no data
    recipe_file = [str(own)] if own.is_file() else [f"{place}/{RECIPE}", "data.path=PATH"]
    yield "resume", shlex.join(["dtrain", "run", *recipe_file, *longer, "--resume", place])
    yield "evaluate", shlex.join(["dtrain", "evaluate", place, *trust])
    yield "load", f"dtrain.load_models({place!r}{f', trust={trusted!r}' if trusted else ''})"


def imports_to_trust(value: Any) -> Iterator[str]:
    """The import paths of a recipe that are found only where they are trusted."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key == "kind" and isinstance(item, str) and is_import_path(item):
            try:
                path = parse_path(item)
            except ImportPathError:
                continue
            if Trust().refusal(path) is not None:
                yield item if path.file is None else f"{path.file}:{path.name}"
        else:
            yield from imports_to_trust(item)


def lines(known: Table) -> Iterator[str]:
    """The same as text."""
    yield from columns([(key, text) for key, text in _facts(known) if text])
    for part in PARTS:
        if known[part]:
            yield from _titled(part, [_model_row(name, own) for name, own in known[part].items()])
    if "tensors" in known:
        yield from _titled("tensors", [_tensor_row(own) for own in known["tensors"]])
    yield from _titled("files", [(in_line(name), bytes_text(size)) for name, size in known["files"].items()])
    yield from _titled("to go on", [(what, in_line(how, LONGEST)) for what, how in known["go_on"].items()])


def _titled(title: str, rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield ""
    yield title
    yield from (f"  {line}" for line in columns(rows))


def _facts(known: Table) -> Iterator[tuple[str, str]]:
    best, environment = known["best"], known["environment"]
    yield "checkpoint", in_line(known["checkpoint"], LONGEST)
    yield "recipe", f"{in_line(known['recipe'])} ({in_line(known['system'])})"
    how = "" if known["ended"] is None else f": {known['ended']}"
    yield "step", f"{known['step']:,} of {known['total']:,}{how}"
    if best is not None:
        yield "best", f"{in_line(best['metric'])} {best['value']:.6g} at step {best['step']:,}"
    yield "data", ", ".join(_data(known["data"]))
    size = bytes_text(sum(known["files"].values()))
    yield "format", f"{known['format']}: {len(known['files'])} files, {size}; checksum {known['checksum']}"
    yield "written", known["written"]
    if isinstance(environment, dict):
        for key in sorted(environment):
            yield in_line(key, 40), _flat(environment[key])


def _data(data: Any) -> Iterator[str]:
    match data:
        case {"examples": examples, "fields": dict(fields)}:
            yield f"{in_line(examples)} examples"
            for name, shape in fields.items():
                yield f"{in_line(name)} {_shape(shape)}"


def _model_row(name: str, own: Mapping[str, Any]) -> tuple[str, ...]:
    counted, kind = own.get("parameters"), own.get("kind") or ""
    count = f"{own['numbers']:,} numbers" if counted is None else f"{counted:,} parameters"
    return in_line(name), in_line(kind), count, bytes_text(own["bytes"]), ", ".join(own["dtypes"])


def _tensor_row(own: Mapping[str, Any]) -> tuple[str, ...]:
    name = in_line(f"{own['part']}/{own['name']}")
    return name, own["dtype"], _shape(own["shape"]), bytes_text(own["bytes"])


def _summary(tensors: Mapping[str, Located]) -> Table:
    found = [each.stored for each in tensors.values()]
    return {
        "tensors": len(found),
        "numbers": sum(math.prod(each.shape) for each in found),
        "bytes": sum(each.size for each in found),
        "dtypes": sorted({each.dtype for each in found}),
    }


def _row(part: str, located: Located) -> Table:
    name, dtype, shape, _, size = located.stored
    return {
        "part": part,
        "name": name,
        "dtype": dtype,
        "shape": list(shape),
        "bytes": size,
        "file": located.file.name,
        "hash": located.hash,
    }


def _at(table: Any, *keys: str) -> Any:
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def _shape(shape: Iterable[Any] | Any) -> str:
    return ("x".join(map(in_line, shape)) or "one number") if isinstance(shape, list) else in_line(shape)


def _flat(value: Any) -> str:
    """A table as `key value, key value`."""
    if isinstance(value, dict):
        return ", ".join(f"{in_line(key, 40)} {_flat(item)}" for key, item in value.items())
    return in_line(value)
