"""`${a.b.c}`: replaced by the value that stands there, typed; and `${env:NAME}`, by the environment's."""

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

from dtrain.errors import RecipeError, RecipeErrors
from dtrain.recipe.document import Document, at, copied, has
from dtrain.recipe.locate import located
from dtrain.recipe.values import Recipe
from dtrain.spec.decode import MANY, TOO_MANY, fields_of
from dtrain.spec.words import MOST, Place, distance, dotted, nearest, placed, show

REFERENCE = re.compile(r"\$\{([^{}]*)\}")
LARGEST = 200_000  # characters and values that references may make of a recipe
MOST_REFERENCES = 4_000


class TooManyMistakes(Exception):
    """Enough was found to complain of."""


class TooLarge(Exception):
    """References make too much of a recipe."""


class Dangling(RecipeError):
    """A reference that leads nowhere."""

    def __init__(self, place: Place, name: str, suggestion: str | None):
        super().__init__(dotted(place), f"${{{name}}} refers to nothing", suggestion=suggestion)
        self.target = placed(name)


def resolve(
    document: Document, environment: Mapping[str, str] | None, takes_environment: Callable[[Place], bool]
) -> Document:
    """Replace every reference, and note those that lead nowhere.

    Where `environment` is None it may not be looked at; `takes_environment` says of which places it may.
    """
    return Resolver(document, environment, takes_environment).resolved()


class Resolver:
    """Walks through a document and makes another; what was replaced remembers who referred to what."""

    def __init__(
        self,
        document: Document,
        environment: Mapping[str, str] | None,
        takes_environment: Callable[[Place], bool],
    ):
        self.given = document
        self.made = copied(document)
        self.environment = environment
        self.takes_environment = takes_environment
        self.size = self.references = 0

    def resolved(self) -> Document:
        try:
            self.made.table = self._visit(self.given.table, (), ())
        except TooManyMistakes:
            raise located(self.given, self.made.errors) from None
        except TooLarge as error:
            raise RecipeErrors([RecipeError("", str(error))], self.given.main.name) from None
        return self.made

    def _visit(self, value: Any, place: Place, inside: tuple[str, ...]) -> Any:
        if inside:
            self._count(value)
        if isinstance(value, dict):
            return {key: self._visit(item, (*place, key), inside) for key, item in value.items()}
        if isinstance(value, list):
            return [self._visit(item, (*place, number), inside) for number, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        self.references += 1
        if self.references > MOST_REFERENCES:
            raise TooLarge(f"there are more than {MOST_REFERENCES:,} references in this recipe")
        try:
            if (whole := REFERENCE.fullmatch(value)) and not whole[1].startswith("env:"):
                return self._follow(whole[1], place, inside)
            text = REFERENCE.sub(lambda found: self._text(found[1], place, inside), value)
            if "${" in text:
                said = "this reference is not closed, or stands in another; ${a.b.c} would do"
                raise RecipeError(dotted(place), said)
            self._count(text)
            return text
        except RecipeError as error:
            self.made.errors.append(error)
            if len(self.made.errors) > TOO_MANY:
                raise TooManyMistakes from None
            return value

    def _follow(self, name: str, place: Place, inside: tuple[str, ...]) -> Any:
        """The value that a name refers to, itself resolved."""
        target = self._meant(placed(name))
        if name in inside or (place == target and not inside):
            circle = " -> ".join([*inside, name] if inside else [dotted(place), name])
            raise RecipeError(dotted(place), f"references go in a circle: {circle}")
        if "" in target or not target or not has(self.given.table, target):
            is_one_of_few = len(self.made.errors) < MANY
            raise Dangling(place, name, self._near(name, target) if is_one_of_few else None)
        if not inside:  # the mistakes in what is brought here are those of where it was said
            self.made.graft(place, self.given, target, through=self.given.said_at(place))
        before = len(self.made.errors)
        found = self._visit(copy.deepcopy(at(self.given.table, target)), place, (*inside, name))
        if len(self.made.errors) > before and inside:
            raise self.made.errors.pop()
        return found

    def _text(self, name: str, place: Place, inside: tuple[str, ...]) -> str:
        """What a reference inside a string becomes."""
        if name.startswith("env:"):
            return self._variable(name, place)
        value = self._follow_quietly(name, place, inside)
        if isinstance(value, dict | list):
            raise RecipeError(
                dotted(place), f"${{{name}}} is {show(value)}; only single values can stand inside a string"
            )
        return str(value).lower() if isinstance(value, bool) else str(value)

    def _follow_quietly(self, name: str, place: Place, inside: tuple[str, ...]) -> Any:
        """Follow a reference inside a string: the string stays where it is."""
        said = {p: self.made.said[p] for p in self.made.said.below(place)}
        try:
            return self._follow(name, place, inside)
        finally:
            self.made.forget(place)
            for old, who in said.items():
                self.made.said[old] = who

    def _variable(self, name: str, place: Place) -> str:
        _, variable, *default = name.split(":", 2)
        if self.environment is None:
            raise RecipeError(dotted(place), f"${{{name}}} is not read for a recipe that is not trusted")
        if not self.takes_environment(place):
            raise RecipeError(
                dotted(place),
                f"${{{name}}} may stand in paths and in [track] alone, as a recipe says all that its result "
                "depends on; set it on the command line",
            )
        if variable in self.environment:
            return self.environment[variable]
        if not default:
            raise RecipeError(
                dotted(place),
                f"the environment has no {variable}; set it, or give a default: ${{env:{variable}:default}}",
                suggestion=nearest(variable, self.environment),
            )
        return default[0]

    def _count(self, value: Any) -> None:
        """Count what references make, as a few of them can make more than a machine holds."""
        self.size += 1 + (len(value) if isinstance(value, str) else 0)
        if self.size > LARGEST:
            raise TooLarge(f"references make more than {LARGEST:,} characters of this recipe")

    def _meant(self, target: Place) -> Place:
        """The same in the table that stands under a misspelt name, of which enough is said there."""
        table, known = self.given.table, fields_of(Recipe)
        if target and target[0] in known and target[0] not in table:
            for key in table:
                if key not in known and nearest(key, known) == target[0] and has(table, (key, *target[1:])):
                    return (key, *target[1:])
        return target

    def _near(self, name: str, target: Place) -> str | None:
        """The reference that was meant: all names as they are, but for the ones that are near."""
        known = self.given.table.get("hyperparameters")
        names = [dotted(("hyperparameters", key)) for key in known] if isinstance(known, dict) else []
        if near := next((other for other in names[:MOST] if distance(name, other) <= 1), None):
            return near
        node, found = self.given.table, []
        for part in target:
            if isinstance(node, dict) and part not in node:
                near = nearest(part, node)
                if near is None:
                    return self._elsewhere(target)
                part = near
            elif not isinstance(node, dict) and not has(node, (part,)):
                return self._elsewhere(target)
            found.append(part)
            node = node[part]
        return dotted(found)

    def _elsewhere(self, target: Place) -> str | None:
        """A hyperparameter of that name, as references mostly are to these."""
        known = self.given.table.get("hyperparameters")
        near = nearest(target[-1], known) if isinstance(known, dict) and target else None
        if isinstance(known, dict) and target and target[-1] in known:
            near = str(target[-1])
        return None if near is None else f"hyperparameters.{near}"
