"""`[layers.block]`: layers under a name, put in where `{ kind = "use", stack = "block" }` stands.

[layers.block]
parameters = ["width"]                    # what every use must give
defaults = { stride = 1 }                 # what it may give
layers = [
    { kind = "conv", out = "${width}", kernel = 3, stride = "${stride}", padding = 1 },
    { kind = "activation", function = "relu" },
]
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dtrain.errors import RecipeError
from dtrain.recipe.document import Document, Said, copied
from dtrain.recipe.references import REFERENCE
from dtrain.spec.decode import MissingKey
from dtrain.spec.layers import Flatten
from dtrain.spec.words import BARE, Place, dotted, nearest, show

KEYS = ("parameters", "defaults", "layers")
MOST_LAYERS, LARGEST = 1_000, 200_000  # layers, and characters in them, that stacks may make of a recipe


class TooMuch(Exception):
    """Stacks make too much of a recipe; `place` is the layer at which that was found."""

    def __init__(self, place: Place, message: str):
        super().__init__(message)
        self.place = place


class NoParameter(RecipeError):
    """A stack has no parameter of a name."""


def expand(document: Document) -> None:
    """Put every stack in where it is used, and take the table of stacks away; mistakes are noted."""
    given = copied(document)
    stacks = document.table.pop("layers", {})
    if not isinstance(stacks, dict):
        document.table["layers"] = stacks  # of a model, mostly, and here an unknown key
        return
    good = {name: stack for name, stack in stacks.items() if _check(document, name, stack)}
    expander = Expander(document, given, good)
    found = document.table.get("models")
    models = found.items() if isinstance(found, dict) else ()
    layered = {name: m for name, m in models if isinstance(m, dict) and isinstance(m.get("layers"), list)}
    try:
        for name, model in layered.items():
            place = ("models", name, "layers")
            model["layers"] = expander.layers(model["layers"], place, place, Use())
    except TooMuch as error:
        expander.complain(error.place, str(error))
        for model in layered.values():
            model["layers"] = [Flatten()]


def _check(document: Document, name: str, stack: Any) -> bool:
    """Note what is wrong in the table of a stack itself; whether it can be used."""
    before = len(document.errors)
    place: Place = ("layers", name)
    if not isinstance(stack, dict):
        document.complain(place, f"found {show(stack)}; a table with `layers` would do")
        return False
    for key in stack:
        if key not in KEYS:
            near = nearest(key, KEYS)
            document.complain((*place, key), "unknown key", is_key=True, suggestion=near)
    if "layers" not in stack and not any(nearest(key, ["layers"]) for key in stack):
        document.errors.append(MissingKey(dotted((*place, "layers")), "required, but missing"))
    for key, sort, wanted in (
        ("layers", list, "an array of layers"),
        ("parameters", list, "an array of names"),
        ("defaults", dict, "a table"),
    ):
        if not isinstance(stack.get(key, sort()), sort):
            document.complain((*place, key), f"found {show(stack[key])}; {wanted} would do")
    if len(document.errors) == before:
        _check_names(document, place, stack)
    return len(document.errors) == before


def _check_names(document: Document, place: Place, stack: Mapping[str, Any]) -> None:
    """Note what is no name of a parameter, where one is listed and where one is referred to."""
    parameters = stack.get("parameters", [])
    for number, name in enumerate(parameters):
        if not isinstance(name, str):
            document.complain((*place, "parameters", number), f"found {show(name)}; a name would do")
            return
    names = [*parameters, *stack.get("defaults", {})]

    def visit(value: Any, at: Place) -> None:
        if isinstance(value, dict | list):
            for part, item in value.items() if isinstance(value, dict) else enumerate(value):
                visit(item, (*at, part))
        for name in REFERENCE.findall(value) if isinstance(value, str) else ():
            if BARE.fullmatch(name) and name not in names and name not in document.table:
                said = f"the stack {place[1]} has no parameter {name}"
                document.errors.append(NoParameter(dotted(at), said, suggestion=nearest(name, names)))

    visit(stack.get("layers"), (*place, "layers"))


@dataclass(frozen=True)
class Use:
    """What a stack is put in with; outside of stacks, nothing."""

    values: Mapping[str, tuple[Any, Place]] = field(default_factory=dict)  # parameters, and who gives them
    through: Said | None = None  # where the stack is used
    inside: tuple[str, ...] = ()  # the stacks that are being put in


class Expander:
    """Puts stacks in; every layer remembers where it was written, and what used it."""

    def __init__(self, document: Document, given: Document, stacks: Mapping[str, dict[str, Any]]):
        self.document = document
        self.given = given
        self.stacks = stacks
        self.names = list(given.table.get("layers", {}))  # those of broken stacks, too
        self.count = self.size = 0

    def layers(self, layers: list[Any], old: Place, place: Place, use: Use) -> list[Any]:
        """What the array at `old` becomes, at `place`."""
        found: list[Any] = []
        for number, layer in enumerate(layers):
            self._add(found, layer, (*old, number), place, use)
        return found

    def _add(self, found: list[Any], layer: Any, old: Place, array: Place, use: Use) -> None:
        self.count += bool(use.inside)
        if self.count > MOST_LAYERS:
            raise TooMuch(old, f"stacks make more than {MOST_LAYERS:,} layers of this recipe")
        if isinstance(layer, dict) and self._is_use(layer, old):
            self._use(found, layer, old, array, use)
            return
        place = (*array, len(found))
        if use.inside or old != place:
            self.document.graft(place, self.given, old, use.through)
        layer = self._filled(layer, place, use)
        if isinstance(layer, dict) and isinstance(layer.get("layers"), list):  # a block
            layer["layers"] = self.layers(layer["layers"], (*old, "layers"), (*place, "layers"), use)
        found.append(layer)

    def _is_use(self, layer: dict[str, Any], old: Place) -> bool:
        """Whether a layer is one or more of a stack; a misspelt one is noted."""
        kind = layer.get("kind")
        if "stack" not in layer or kind == "use" or (isinstance(kind, str) and ":" in kind):
            return kind == "use"
        misspelt = next((key for key in layer if key != "stack" and nearest(key, ["kind"])), None)
        if kind is None and misspelt is not None:
            self.complain((*old, misspelt), "unknown key", is_key=True, suggestion="kind")
        else:
            said = f"found {show(kind)}; with a stack," if kind else "missing;"
            meant = "use" if kind else None
            self.complain((*old, "kind"), f'{said} kind = "use" would do', suggestion=meant)
        return True

    def _use(self, found: list[Any], layer: dict[str, Any], old: Place, array: Place, use: Use) -> None:
        stack = self._stack_of(layer, old, use) if layer.get("kind") == "use" else None
        if stack is None:
            found.append(Flatten())  # what takes anything stands for what would have been here
            return
        name = layer["stack"]
        values: dict[str, tuple[Any, Place]] = {
            key: (value, ("layers", name, "defaults", key))
            for key, value in stack.get("defaults", {}).items()
        }
        for key in layer.keys() - {"kind", "stack"}:
            values[key] = self._given_value(layer[key], (*old, key), use)
        inner = Use(values, self.given.said_at(old), (*use.inside, name))
        for number, part in enumerate(stack["layers"]):
            self._add(found, copy.deepcopy(part), ("layers", name, "layers", number), array, inner)

    def _given_value(self, value: Any, old: Place, use: Use) -> tuple[Any, Place]:
        """What a use gives for a parameter, which may be one of the stack around it."""
        whole = REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if whole and whole[1] in use.values:
            return use.values[whole[1]]
        found = _filled_in(value, use)
        self.size += len(str(found)) if found != value else 0
        if self.size > LARGEST:
            raise TooMuch(old, f"stacks make more than {LARGEST:,} characters of this recipe")
        return found, old

    def _filled(self, value: Any, place: Place, use: Use) -> Any:
        """A layer with `${parameter}` replaced; references to other things stay."""
        if isinstance(value, dict):
            return {
                key: item if key == "layers" else self._filled(item, (*place, key), use)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._filled(item, (*place, number), use) for number, item in enumerate(value)]
        whole = REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if whole and whole[1] in use.values:
            found, source = use.values[whole[1]]
            self.document.graft(place, self.given, source, use.through)
            return copy.deepcopy(found)
        return _filled_in(value, use)

    def _stack_of(self, layer: dict[str, Any], old: Place, use: Use) -> dict[str, Any] | None:
        """The stack that a use names, if all its parameters are given; else what is wrong is noted."""
        name = layer.get("stack")
        if name is None:
            misspelt = next((key for key in layer if nearest(key, ["stack"])), None)
            if misspelt is not None:
                self.complain((*old, misspelt), "unknown key", is_key=True, suggestion="stack")
            else:
                self.complain((*old, "stack"), f"missing; one of {', '.join(self.names)} would do")
            return None
        if not isinstance(name, str) or name not in self.names:
            there = (
                f"one of {', '.join(self.names)} would do" if self.names else "write a table [layers.NAME]"
            )
            near = nearest(name, self.names)
            self.complain((*old, "stack"), f"there is no stack {show(name)}; {there}", suggestion=near)
            return None
        if name in use.inside:
            circle = " -> ".join([*use.inside[use.inside.index(name) :], name])
            self.complain((*old, "stack"), f"stacks use each other in a circle: {circle}")
            return None
        if name not in self.stacks or not self._fits(layer, old, name):
            return None
        return self.stacks[name]

    def _fits(self, layer: dict[str, Any], old: Place, name: str) -> bool:
        """Whether a use gives the parameters of its stack; else what is wrong is noted."""
        required = self.stacks[name].get("parameters", [])
        known = [*required, *self.stacks[name].get("defaults", {})]
        given = [key for key in layer if key not in ("kind", "stack")]
        missing = [key for key in required if key not in given]
        near = {key: nearest(key, known, first=missing) for key in given if key not in known}
        for key, word in near.items():
            said = f"the stack {name} has no such parameter"
            self.complain((*old, key), said, sort=NoParameter, is_key=True, suggestion=word)
        for key in missing:
            if key not in near.values():
                self.complain((*old, key), f"required by the stack {name}, but missing")
        return not near and not missing

    def complain(
        self, old: Place, message: str, sort: type[RecipeError] = RecipeError, **options: Any
    ) -> None:
        """Note a mistake at a place of the recipe as it was before."""
        said = self.given.said_at(old)
        spot = said.text.spot(said.place, is_key=options.get("is_key", False))
        self.document.errors.append(sort(dotted(said.place), message, spot=spot, **options))


def _filled_in(value: Any, use: Use) -> Any:
    """A value with the parameters inside its strings replaced."""
    if isinstance(value, dict):
        return {key: _filled_in(item, use) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled_in(item, use) for item in value]
    if not isinstance(value, str):
        return value
    return REFERENCE.sub(lambda found: str(use.values.get(found[1], (found[0],))[0]), value)
