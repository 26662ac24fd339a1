"""From expressions to one Python function: the values that it needs in their order, then what it gives."""

import keyword
import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

from dtrain.spec.table import Wrong
from dtrain.spec.words import nearest
from dtrain.systems.expressions import ExpressionError, Read, Scope, names_in, read
from dtrain.systems.shapes import Shaped
from dtrain.systems.signatures import ops_by_name

DEEPEST = 100  # values that need each other
Keyed = Mapping[str, tuple[str, str]]  # name -> an expression, and the key under which it stands


class Body:
    """The lines of a function of (models, batch, ops), and every mistake in the expressions that go into it.

    The values that an expression needs are computed before it, each once, in the order in which they are
    written.
    """

    def __init__(self, scope: Scope, values: Keyed):
        self.models, self.fields = scope.models, scope.fields
        self.values = values
        self._places = {name: place for place, name in enumerate(values)}
        self.known: dict[str, Any] = {}  # values that are computed
        self.lines: list[str] = []
        self.mistakes: list[ValueError] = []
        self.called: dict[str, None] = {}  # models
        self.reached: set[str] = set()  # models that a gradient flows back to, from what was added
        self._reached_by: dict[str, set[str]] = {}  # the same from each value
        self.read_fields: dict[str, None] = {}
        self.counts = False
        self._now: set[str] = set()  # models that the expression read last reaches
        self._open: list[str] = []  # values being computed, the one that needs the next before it

    def add(self, text: str, key: str) -> Read:
        """Understand an expression; what is wrong is noted, and what it gives is then unknown."""
        try:
            needed = self._needed(names_in(text, key)) & self._places.keys()
            for name in sorted(needed, key=self._places.__getitem__):  # as they are written, so they draw
                self._compute(name, text, key)
            found = read(text, Scope(self.models, self.known, self.fields, self.values), key)
        except ExpressionError as error:
            self.mistakes.append(error)
            return Read("None", Shaped(), (), ())
        self.counts |= found.counts
        self.called |= dict.fromkeys(found.models)
        self._now = {name for name in found.reaches if name in self.models and name not in self.known}
        self._now |= set().union(*(self._reached_by.get(name, set()) for name in found.reaches))
        self.reached |= self._now if not self._open else set()
        self.read_fields |= dict.fromkeys(name for name in found.names if name not in self.known)
        return found

    def _needed(self, names: Set[str]) -> set[str]:
        """The values among names that are not there yet, and those that these are computed from."""
        found: set[str] = set()
        while more := (names & self.values.keys()) - found - self.known.keys():
            found |= more
            names = set[str]().union(*(_names_if_any(*self.values[name]) for name in more))
        return found

    def one(self, text: str, key: str) -> Read:
        """The same of an expression that must give one array or number."""
        found = self.add(text, key)
        if isinstance(found.value, tuple | bool | str):
            said = "gives several arrays; take one of them, such as [0]" if found.value else "gives no array"
            self.mistakes.append(ExpressionError(key, said, within=(0, len(text))))
        return found

    def _compute(self, name: str, text: str, key: str) -> None:
        """Put the line of a value, unless it is there."""
        if name in self.known:
            return
        if name in self._open:
            circle = " -> ".join([*self._open[self._open.index(name) :], name])
            raise ExpressionError(key, f"goes round in a circle: {circle}", within=_where(name, text))
        if len(self._open) == DEEPEST:
            said = f"needs a value, which needs another, and so on: more than {DEEPEST} of them"
            raise ExpressionError(key, said, within=_where(name, text))
        self._open.append(name)
        of, at = self.values[name]
        self._now = set()
        found = self.add(of, at)
        self._reached_by[name] = self._now
        self._open.pop()
        self.known[name] = found.value
        self.lines.append(f"v_{name} = {found.code}")

    def function(self, name: str, returns: str, names: Mapping[str, Any]) -> Callable[..., Any]:
        """The function, which ends with `return` and what is given; `names` are what it refers to."""
        head = [f"f_{field} = batch[{field!r}]" for field in self.read_fields]
        body = [*self.lines, f"return {returns}"]
        if self.counts:
            head.insert(0, "n = len(next(iter(batch.values())))")
        code = "\n    ".join([f"def {name}(models, batch, ops):", *head, *body]) + "\n"
        return made(code, name, names)


def made(code: str, name: str, names: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that a text of Python defines; its lines show in tracebacks."""
    source = f"<recipe: {name}, {hash(code):x}>"
    linecache.cache[source] = (len(code), None, code.splitlines(keepends=True), source)
    space = dict(names)  # exec adds the ordinary __builtins__, which torch.compile asks for
    exec(compile(code, source, "exec"), space)
    function: Callable[..., Any] = space[name]
    return function


def _names_if_any(text: str, key: str) -> Set[str]:
    """The names in an expression; none in what is no expression, which is said when it is read."""
    try:
        return names_in(text, key)
    except ExpressionError:
        return set()


def _where(name: str, text: str) -> tuple[int, int]:
    return max(text.find(name), 0), len(name)


def unfit_names(
    values: Keyed, models: Mapping[str, Any], fields: Mapping[str, Any] | None
) -> Iterator[Wrong]:
    """Every name that a value cannot have."""
    for name, (_, key) in values.items():
        if not name.isidentifier() or keyword.iskeyword(name):
            said = "letters, digits and underscores would do, as expressions name it"
        elif name in models:
            said = "is a model's name"
        elif name in ops_by_name():
            said = "is an op's name"
        elif name in (fields or ()):
            said = "is a field of the data; another name would do, or `prepare`, which replaces fields"
        else:
            continue
        yield Wrong(key, said, is_key=True)


def unknown_model(at: str, name: str, models: Sequence[str]) -> Wrong:
    """There is no such model."""
    there = ", ".join(models) or "none"
    return Wrong(at, f'there is no model "{name}"; models are {there}', suggestion=nearest(name, models))
