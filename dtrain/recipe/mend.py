"""Which one number would make shapes fit that do not: mostly it is the one that was mistyped."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dtrain.errors import RecipeError
from dtrain.recipe.document import Document, at, has
from dtrain.spec.blocks import count
from dtrain.spec.models import Model, ModelSpec, input_of, output_of
from dtrain.spec.spatial import Conv, ConvTranspose
from dtrain.spec.table import key_of
from dtrain.spec.words import Place, dotted, placed, show
from dtrain.systems.composed import Composed

Models = Mapping[str, Model]
Problems = Callable[[Models, Any], Sequence[RecipeError]]  # of models and a system
Change = tuple[Sequence[Place], Any, Any]  # where, what is there, and what would do
CHARACTER = 2  # layers that could be looked at while a character of an expression is
EFFORT = 60_000  # layers that are looked at for all problems, which takes about half a second


def mended(models: Models, system: Any, problems: Problems, document: Document) -> list[RecipeError]:
    """The problems of models and system, each at the number whose change would solve it, if there is one.

    A number that the recipe leaves to a default was not mistyped; one that a stack or a reference brings to
    several places changes in all of them. Where a word is near to what was found, the word was mistyped.
    """
    found = list(problems(models, system))
    if not found:
        return []
    size = sum(count(model.layers) for model in models.values() if isinstance(model, ModelSpec))
    if isinstance(system, Composed):
        size += CHARACTER * system.effort
    tries = EFFORT // (size + 10) // len(found)
    return [
        error
        if error.suggestion is not None or _has_number(error, document)
        else _relocated(error, found, (models, system), problems, document, tries)
        for error in found
    ]


def _has_number(error: RecipeError, document: Document) -> bool:
    """Whether a problem is in an expression that says a number itself, as likely wrong as any other."""
    if error.within is None or not has(document.table, placed(error.key)):
        return False
    first, length = error.within
    return any(c.isdigit() for c in str(at(document.table, placed(error.key)))[first : first + length])


def _relocated(
    error: RecipeError,
    errors: Sequence[RecipeError],
    given: tuple[Models, Any],
    problems: Problems,
    document: Document,
    tries: int,
) -> RecipeError:
    """The same problem at what to change, with what would fit; of several the likeliest."""
    whole = {"models": dict(given[0]), "system": given[1]}
    others = {other.key for other in errors} - {error.key}
    best: tuple[float, Change] | None = None
    solved: set[Place] = set()
    faces = _faces(given[0])
    for places, old, new in _changes(whole, error, document):
        place, changed = places[0], whole
        for each in () if place in solved else places:
            changed = changed and _changed(changed, each, new)
        if changed is None or changed is whole:
            continue
        if error.within is not None and _faces(changed["models"]) in (None, faces):
            continue
        tries -= 1
        if tries < 0:
            break
        if {left.key for left in problems(changed["models"], changed["system"])} <= others:
            likelihood = _plainness(whole, changed, place) - _distance(old, new)
            if best is None or likelihood > best[0]:
                best = (likelihood, (places, old, new))
            solved.add(place)
    if best is None:
        return error
    (place, *_), old, new = best[1]
    where = f"{error.key}: " if dotted(place) != error.key else ""
    shown = list(new) if isinstance(new, tuple) else new
    return RecipeError(dotted(place), f"found {show(old)}; {show(shown)} would fit ({where}{error.message})")


def _changes(whole: Mapping[str, Any], error: RecipeError, document: Document) -> Iterator[Change]:
    """Every change that may be tried for a problem, those near to what is there first.

    What a layer is given depends on no layer behind it.
    """
    here = placed(error.key)
    named = {int(digits) for digits in re.findall(r"\d{1,7}", error.message)}
    candidates = sorted(_candidates(whole["models"], whole["system"]) | named)
    is_layer = len(here) > 3 and here[0] == "models" and here[2] == "layers"
    for places, old in _written(whole, document):
        if is_layer and all(place[:2] != here[:2] or _is_behind(place, here) for place in places):
            continue
        if isinstance(old, tuple):
            for number in range(len(old)) if len(old) > 1 else ():
                yield places, old, old[:number] + old[number + 1 :]
            continue
        for new in sorted(candidates, key=lambda n, old=old: abs(n - old)):  # type: ignore[misc]
            if new != old and (new > 0 or "padding" in places[0]):
                yield places, old, new


def _faces(models: Models) -> list[Any] | None:
    """What models take and give, all that an expression sees of them; None where layers do not fit."""
    try:
        return [(input_of(model), output_of(model)) for model in models.values()]
    except ValueError:
        return None


def _written(whole: Mapping[str, Any], document: Document) -> Iterator[tuple[Sequence[Place], Any]]:
    """Every number that is written, with all its places."""
    found: dict[tuple[str, Place], tuple[list[Place], Any]] = {}
    for place, old in numbers(whole, ()):
        if has(document.table, place):
            said = document.said_at(place)
            found.setdefault((said.text.name, said.place), ([], old))[0].append(place)
    yield from found.values()


def _is_behind(place: Place, at: Place) -> bool:
    """Whether a place is in a layer behind the one of another, both in one model."""
    return place[2] == "layers" and isinstance(at[3], int) and isinstance(place[3], int) and place[3] > at[3]


def numbers(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    """Every whole number of models and a system, and every array of them, with its place."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, (*place, key))
    elif isinstance(value, tuple):
        if value and all(isinstance(item, int) for item in value):
            yield place, value
        for number, item in enumerate(value):
            yield from numbers(item, (*place, number))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if key_of(field.name) == field.name:  # the others hold expressions and no shapes
                yield from numbers(getattr(value, field.name), (*place, field.name))


def _changed(value: Any, place: Place, new: Any) -> Any:
    """The same value with another number at a place; None where it may not be that."""
    if not place:
        return new
    part, rest = place[0], place[1:]
    if isinstance(value, dict):
        inner = _changed(value[part], rest, new)
        return None if inner is None else {**value, part: inner}
    if isinstance(value, tuple):
        assert isinstance(part, int)
        inner = _changed(value[part], rest, new)
        return None if inner is None else (*value[:part], inner, *value[part + 1 :])
    inner = _changed(getattr(value, str(part)), rest, new)
    try:
        return None if inner is None else dataclasses.replace(value, **{str(part): inner})
    except ValueError:
        return None


def _candidates(models: Models, system: Any) -> set[int]:
    """Numbers that may be meant: those of the recipe, of the shapes in it, and their quotients."""
    found = {n for _, n in numbers({"models": dict(models), "system": system}, ()) if isinstance(n, int)}
    sizes = set()
    for model in models.values():
        if isinstance(model, ModelSpec):
            for shape in (*_shapes(model), *_targets(model)):
                found |= set(shape)
                sizes |= {math.prod(shape), math.prod(shape[1:])}
    quotients = {a // b for a in sizes for b in sizes | found if b and a % b == 0}
    return {n for n in found | sizes | quotients | set(range(8)) if 0 <= n < 10**7}


def _shapes(model: ModelSpec) -> Iterator[tuple[int, ...]]:
    """The shapes in a model, as far as its layers fit."""
    yield model.input
    try:
        for row in model.walk():
            yield row.after
    except ValueError:
        return


def _targets(model: ModelSpec) -> Iterator[tuple[int, ...]]:
    for layer in model.layers:
        shape = getattr(layer, "shape", None)
        if isinstance(shape, tuple):
            yield shape


def _distance(old: Any, new: Any) -> float:
    """How far apart two numbers are, in doublings; an array with one item too many is far from none."""
    return 0.0 if isinstance(old, tuple) else abs(math.log2((new + 1) / (old + 1)))


def _plainness(before: Any, after: Any, place: Place) -> float:
    """How much more usual a change makes what it changes: people mistype the odder one of two numbers."""
    for part in place:
        if isinstance(before, Conv | ConvTranspose):
            return _usual(after) - _usual(before)
        before, after = (
            (getattr(before, str(part)), getattr(after, str(part)))
            if dataclasses.is_dataclass(before)
            else (before[part], after[part])
        )
    return 0.0 if isinstance(before, tuple) else _plain(after) - _plain(before)


def _plain(number: int) -> float:
    """0 for powers of two, and less the larger their odd factor is; round decimals are plain, too."""
    if number == 0:
        return 0.0
    odd = number // (number & -number)
    return max(-math.log2(odd), -math.inf if number % 10 else _plain(number // 10) - 2)


def _usual(layer: Conv | ConvTranspose) -> float:
    """The same of a convolution, whose kernel, stride and padding belong together."""
    score = _plain(layer.out) + _plain(layer.groups)
    windows = (layer.kernel, layer.stride, layer.padding)
    kernel, stride, padding = (value if isinstance(value, int) else max(value) for value in windows)
    score -= abs(stride - 1) if stride > 2 else 0
    if isinstance(layer, Conv):
        fits = padding in (0, kernel // 2) and (kernel % 2 == 1 or kernel == stride or kernel == 2 * stride)
    else:
        usual = ((2 * stride, stride // 2), (stride, 0), (2 * stride - 1, stride - 1), (3, 1))
        fits = (kernel, padding) in usual
    return score - (0 if fits else 2) - abs(kernel - 3) / 4


def roundness(number: int) -> int:
    """How often a number can be halved, or is ten: of two that disagree people mistype the odder one."""
    tens = 3 if number and number % 10 == 0 else 0
    return max((number & -number).bit_length(), tens)
