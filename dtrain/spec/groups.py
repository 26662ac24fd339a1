"""Which parameters of a model an optimizer trains with which settings: groups, and the two halves of Muon."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TypeVar

from dtrain.spec.initial import Shape
from dtrain.spec.models import ModelSpec
from dtrain.spec.optimizers import ADAMW, MUON, Muon, Optimizer, Patterns, given
from dtrain.spec.sequence import Embedding, Position
from dtrain.spec.table import Wrong
from dtrain.spec.words import either, show

SHOWN = 4  # names of parameters in an error
AnyTuned = TypeVar("AnyTuned", bound=Optimizer)


@dataclass(frozen=True)
class Trainable:
    """The parameters of a model that are trained, by canonical names such as `3.weight`, in their order."""

    shapes: Mapping[str, Shape]
    embeddings: frozenset[str] = frozenset()  # those of them that hold a vector for each token or place


@dataclass(frozen=True)
class Share:
    """Parameters that are trained alike."""

    names: Sequence[str]
    optimizer: Optimizer  # with their settings; what it says of groups and clipping does not count
    own: Sequence[
        str
    ] = ()  # the settings that are theirs: of these a schedule moves the lr alone, in proportion
    group: int | None = None  # the number of their group


def trainable(model: ModelSpec) -> Trainable | None:
    """The parameters of a model; None of one with imported layers, whose names only a run can tell."""
    shapes: dict[str, Shape] = {}
    embeddings: set[str] = set()
    if model.imports_layers:
        return None
    for row in model.walk():
        for name, parameter in row.layer.parameters(row.before).items():
            shapes[f"{row.name}.{name}"] = parameter.shape
            if isinstance(row.layer, Embedding | Position):
                embeddings.add(f"{row.name}.{name}")
    return Trainable(shapes, frozenset(embeddings))


def shares(optimizer: Optimizer, model: Trainable) -> list[Share]:
    """Every parameter once, those of no group first."""
    members: dict[int | None, list[str]] = {None: [], **{n: [] for n in range(len(optimizer.groups))}}
    for name in model.shapes:
        members[_first_group(optimizer, name)].append(name)
    found = []
    for number, names in members.items():
        settings = replace(optimizer, groups=())
        own: list[str] = []
        if number is not None:
            settings = optimizer.of(optimizer.groups[number])
            own = list(given(optimizer.groups[number]))
        found += _halves(Share(names, settings, own, number), model)
    return [share for share in found if share.names]


def problems(optimizer: Optimizer, model: Trainable) -> Iterator[Wrong]:
    """What is wrong with the patterns of an optimizer, and with the settings beside them."""
    for number, place, pattern in patterns(optimizer):
        matched = [name for name in model.shapes if fnmatchcase(name, pattern)]
        if not matched:
            few = list(model.shapes)[:SHOWN]
            there = f"they are such as {either(few)}" if few else "the model has none"
            yield Wrong(place, f"{show(pattern)} matches no parameter that is trained; {there}")
        elif number is not None and number not in {_first_group(optimizer, name) for name in matched}:
            said = (
                f"{show(pattern)} matches nothing that an earlier group does not match; the first one counts"
            )
            yield Wrong(place, said)
    if isinstance(optimizer, Muon):
        yield from _idle_settings(optimizer, model)


def patterns(optimizer: Optimizer) -> Iterator[tuple[int | None, str, str]]:
    """Every pattern: the number of its group, its key from the optimizer on, and itself."""
    for number, group in enumerate(optimizer.groups):
        for place, pattern in _each(group.match, f"groups[{number}].match"):
            yield number, place, pattern
    if isinstance(optimizer, Muon) and optimizer.others.match is not None:
        for place, pattern in _each(optimizer.others.match, "others.match"):
            yield None, place, pattern


def without(optimizer: AnyTuned, places: Sequence[str]) -> AnyTuned:
    """The same without the patterns at these places, and without groups that have no other."""

    def kept(match: Patterns, at: str) -> tuple[str, ...]:
        return tuple(pattern for place, pattern in _each(match, at) if place not in places)

    groups = []
    for number, group in enumerate(optimizer.groups):
        if left := kept(group.match, f"groups[{number}].match"):
            groups.append(replace(group, match=left if isinstance(group.match, tuple) else group.match))
    if isinstance(optimizer, Muon) and optimizer.others.match is not None:
        left = kept(optimizer.others.match, "others.match")
        optimizer = replace(optimizer, others=replace(optimizer.others, match=left or None))
    return replace(optimizer, groups=tuple(groups))


def without_patterns(optimizer: AnyTuned) -> AnyTuned:
    """The same for parameters of any name."""
    return without(optimizer, [place for _, place, _ in patterns(optimizer)])


def _each(match: Patterns, at: str) -> list[tuple[str, str]]:
    """The patterns under a key, with their places."""
    if isinstance(match, str):
        return [(at, match)]
    return [(f"{at}[{number}]", pattern) for number, pattern in enumerate(match)]


def _matches(match: Patterns, name: str) -> bool:
    return any(fnmatchcase(name, pattern) for _, pattern in _each(match, ""))


def _first_group(optimizer: Optimizer, name: str) -> int | None:
    """The group of a parameter: the first one that matches it."""
    matching = (number for number, group in enumerate(optimizer.groups) if _matches(group.match, name))
    return next(matching, None)


def _halves(share: Share, model: Trainable) -> list[Share]:
    """A share as it is, but for Muon's: there the matrices, and the others with AdamW."""
    muon = share.optimizer
    if not isinstance(muon, Muon):
        return [share]
    matrices = [name for name in share.names if _is_muons(muon, name, model)]
    others = [name for name in share.names if name not in matrices]
    return [replace(share, names=matrices), replace(share, names=others, optimizer=muon.adamw, own=ADAMW)]


def _is_muons(muon: Muon, name: str, model: Trainable) -> bool:
    is_named = muon.others.match is not None and _matches(muon.others.match, name)
    return len(model.shapes[name]) == 2 and name not in model.embeddings and not is_named


def _idle_settings(muon: Muon, model: Trainable) -> Iterator[Wrong]:
    """Settings of a group for the half of Muon that trains none of its parameters."""
    found = shares(muon, model)
    for number, group in enumerate(muon.groups):
        halves = {isinstance(share.optimizer, Muon) for share in found if share.group == number}
        for key in given(group) if halves else ():
            if key not in ADAMW and True not in halves:
                yield Wrong(
                    f"groups[{number}].{key}", "AdamW trains all of the group, which has no such setting"
                )
            elif key not in MUON and False not in halves:
                yield Wrong(
                    f"groups[{number}].{key}", "Muon trains all of the group, which has no such setting"
                )
