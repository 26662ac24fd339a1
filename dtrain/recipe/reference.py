"""The generated parts of docs/recipe.md: every table and key, made of the types that recipes are read by.

`python -m dtrain.recipe.reference docs/recipe.md` writes them anew, each between its two marks.
"""

import dataclasses
import inspect
import math
import re
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dtrain.data.dataset import Reading
from dtrain.data.source import Source
from dtrain.errors import DtrainError
from dtrain.recipe.descriptions import descriptions, paragraphs, source
from dtrain.recipe.keys import arms_of, default_of
from dtrain.recipe.values import Checkpoint, Evaluate, Every, Recipe, Track, Train
from dtrain.recipe.write import encode
from dtrain.spec.averages import Average
from dtrain.spec.axes import Axis
from dtrain.spec.decode import ARRAYS, WANTED, fields_of, own_keys, split
from dtrain.spec.initial import Initial
from dtrain.spec.layers import ImportedLayer, Layer
from dtrain.spec.lengths import Span
from dtrain.spec.losses import Term
from dtrain.spec.metrics import Metric
from dtrain.spec.models import ModelSpec, StoredModel
from dtrain.spec.optimizers import ImportedOptimizer, Optimizer
from dtrain.spec.rates import ImportedSchedule
from dtrain.spec.schedules import Part, RateSchedule
from dtrain.spec.sweep import Pruner, Sweep
from dtrain.spec.table import OneOf, Within
from dtrain.spec.weights import WeightsFile
from dtrain.spec.words import either, written
from dtrain.systems.base import System
from dtrain.systems.composed import PhaseTable
from dtrain.systems.ops import Ops
from dtrain.systems.signatures import ops_by_name, usage

PART = re.compile(r"(?<=<!-- generated: )([a-z]+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
FAMILIES = {  # what a table of a family is called
    "Activations": "[table](#activation-checkpointing)",
    "Average": "[average](#averages)",
    "Compile": "[table](#compile)",
    "Axis": "[axis](#axes)",
    "Initial": "[initial value](#initial-values)",
    "Layer": "[layers](#layers)",
    "Metric": "[metric](#metrics)",
    "ModelSpec": "[model](#models)",
    "Parallel": "[engine](#engine)",
    "Optimizer": "[optimizer](#optimizers)",
    "RateSchedule": "[schedule](#schedules)",
    "Schedule": "[schedule](#schedules) of steps",
    "Pruner": "[pruner](#pruners)",
    "Part": "[part](#sequences)",
    "Span": "[length](#lengths)",
    "Source": "[source](#data)",
    "System": "[system](#systems)",
    "WeightsFile": "[table](#weights-of-a-file)",
    "Imported": "table with an [import path](#imported-kinds)",
}


def parts() -> dict[str, str]:
    """Every generated part by name, in Markdown."""
    return {
        "recipe": rows(Recipe),
        "train": rows(Train),
        "averages": "\n".join(family(Average)),
        "every": rows(Every),
        "evaluate": rows(Evaluate),
        "metrics": "\n".join(family(Metric)),
        "checkpoint": rows(Checkpoint),
        "track": rows(Track),
        "sweep": rows(Sweep),
        "axes": rows(Axis),
        "pruners": "\n".join(family(Pruner)),
        "systems": "\n".join(family(System)),
        "phases": rows(PhaseTable),
        "terms": rows(Term),
        "ops": ops_in_words(),
        "models": "\n".join(
            [rows(ModelSpec), *_kind("`checkpoint`", StoredModel, [*fields_of(StoredModel)])]
        ),
        "weights": rows(WeightsFile),
        "layers": "\n".join(family(Layer, ImportedLayer)),
        "initial": "\n".join(family(Initial)),
        "optimizers": "\n".join(family(Optimizer, ImportedOptimizer)),
        "schedules": "\n".join(family(RateSchedule, ImportedSchedule)),
        "parts": rows(Part),
        "lengths": rows(Span),
        "sources": "\n".join(family(Source)),
        "examples": rows(Reading),
    }


def renewed(text: str, made: Mapping[str, str]) -> str:
    """A Markdown text with these generated parts. Raises DtrainError unless each is there once."""
    found = [name for name, _ in PART.findall(text)]
    if sorted(found) != sorted(made):
        wrong = sorted({*found, *made} - ({*found} & {*made})) or found
        raise DtrainError(f"the generated parts are {', '.join(made)}, each once; look at {', '.join(wrong)}")
    return PART.sub(lambda part: f"{part[1]}{part[2]}{made[part[1]]}", text)


def family(base: type, imported: type | None = None) -> Iterator[str]:
    """The kinds of a family, each with its keys; first those that all have."""
    shared = list(fields_of(base)) if dataclasses.is_dataclass(base) else []
    if shared:
        yield f"Every one has:\n\n{rows(base)}"
    for name, cls in OneOf(base).kinds.items():
        yield from _kind(f"`{name}`", cls, [key for key in fields_of(cls) if key not in shared])
    if imported is not None:
        own = [key for key in own_keys(imported) if key not in shared]
        yield from _kind("An import path", imported, own)


def ops_in_words() -> str:
    """A table of the ops of expressions, with their arguments."""
    lines = ["| op | what it gives |", "|---|---|"]
    for name in ops_by_name():
        said = " ".join((inspect.getdoc(getattr(Ops, name)) or "").split())
        lines.append(f"| `{name}({usage(name)})` | {said.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def rows(cls: type, keys: list[str] | None = None) -> str:
    """A table of a class's keys, or of some of them."""
    said = descriptions(cls)
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, (target, is_required) in fields_of(cls).items():
        if keys is None or key in keys:
            default = "required" if is_required else default_in_words(cls, key)
            value = value_in_words(target)
            if cls is Recipe and value == "table" and key != "hyperparameters":
                value = f"[table](#{key})"
            lines.append(f"| `{key}` | {value} | {default} | {said[key]} |")
    return "\n".join(lines) + "\n"


def _kind(title: str, cls: type, keys: list[str]) -> Iterator[str]:
    paper = f" Source: {source(cls)}" if source(cls) else ""
    said = "\n\n".join(paragraphs(cls)) + paper
    yield f"**{title}**: " + "\n\n".join([said, *_measured(cls)]) + "\n"
    if keys:
        yield rows(cls, keys)


def _measured(cls: type) -> Iterator[str]:
    """What a system evaluates, and which value of it, or of a metric, is best."""
    if issubclass(cls, Metric):
        yield f"Best: `{cls.best}`."
    elif issubclass(cls, System) and isinstance(cls.evaluates, Mapping) and cls.evaluates:
        names = [f"`{name}`" + (f" (best: `{best}`)" if best else "") for name, best in cls.evaluates.items()]
        yield f"Evaluates {', '.join(names)}."


def default_in_words(cls: type, key: str) -> str:
    """What a key is when it is left out, as a recipe writes it."""
    value = default_of(cls, key)
    is_section = cls is Recipe and dataclasses.is_dataclass(value)
    return "" if value is None or value == {} or is_section else f"`{written(encode(value))}`"


def value_in_words(target: Any) -> str:
    """What may stand under a key."""
    arms = [_one_in_words(arm) for arm in arms_of(target)]
    if len(arms) == 2 and arms[1].startswith("array of "):
        count = "2 " if arms[1].startswith("array of 2 ") else ""
        return f"{arms[0]}, or array of {count}such"
    return either(arms)


def _one_in_words(target: Any) -> str:
    inner, notes = split(target)
    for note in notes:
        if isinstance(note, OneOf):
            return FAMILIES[note.base.__name__]
    origin, inside = typing.get_origin(inner), typing.get_args(inner)
    if origin is typing.Literal:
        return either(f"`{written(choice)}`" for choice in inside)
    if origin in ARRAYS:
        return _array_in_words(inside)
    if inner is Any:
        return "anything"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        what = value_in_words(inside[-1])
        return "table" if what == "anything" else f"by name: {what}"
    if dataclasses.is_dataclass(inner) and isinstance(inner, type):
        return FAMILIES.get(inner.__name__, "table")
    words = WANTED[inner][1].removeprefix("a ").replace("path, as a string", "path")
    return words + "".join(_bounds_in_words(note) for note in notes if isinstance(note, Within))


def _array_in_words(inside: tuple[Any, ...]) -> str:
    what = value_in_words(inside[0])
    many = what.replace("number", "numbers").replace("string", "strings").replace("table", "tables")
    if inside[-1] is ...:
        return f"array of {many}"
    return f"array of {len(inside)} {many}"


def _bounds_in_words(bounds: Within) -> str:
    """` above 0`, ` from 0 to 1`."""
    if math.isfinite(bounds.at_least) and math.isfinite(bounds.at_most):
        return f" from {bounds.at_least:g} to {bounds.at_most:g}"
    names = ("above", "at_least", "at_most", "below")
    given = [(name.replace("_", " "), getattr(bounds, name)) for name in names]
    said = " and ".join(f"{name} {value:g}" for name, value in given if math.isfinite(value))
    return f" {said}" if said else ""


def main(arguments: list[str]) -> None:
    """Write the generated parts of a file anew."""
    (path,) = map(Path, arguments)
    path.write_text(renewed(path.read_text(encoding="utf-8"), parts()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
