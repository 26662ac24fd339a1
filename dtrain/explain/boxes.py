"""A flow as few boxes and arrows: models, data and losses have boxes, small sums stand inside of them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import Literal

from dtrain.explain.expressions import expression
from dtrain.explain.flow import Flow, Value, summands

# What a box looks like. A `value` is computed from others; a `metric` is a result of an evaluation.
Form = Literal["data", "noise", "trained", "frozen", "average", "value", "stop", "loss", "metric"]
Style = Literal["title", "code", "note"]

STOPS = "no gradient goes back from here"
WIDEST = 34  # letters of code in a line


@dataclass(frozen=True)
class Line:
    """A line of text in a box."""

    text: str
    style: Style


@dataclass(frozen=True)
class Box:
    """A value of a flow, with all that is computed on the way to it from other boxes."""

    number: int  # the value's; of the metrics of an evaluation beyond them
    form: Form
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Arrow:
    """One box goes into another; `carries` says whether gradients come back on it."""

    start: int
    end: int
    carries: bool


@dataclass(frozen=True)
class Graph:
    """The boxes of a flow in the order of their values, and the arrows between them."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]


def graph(flow: Flow) -> Graph:
    """The picture's boxes and arrows."""
    return Drawn(flow).graph()


class Drawn:
    """Which values of a flow have boxes."""

    def __init__(self, flow: Flow):
        self.flow = flow
        self.is_phase = bool(flow.trained)
        self.ends = [flow.loss] if self.is_phase else list(flow.results.values())
        self.needed = flow.needed(*self.ends)
        self.uses = Counter(item.number for value in self.needed for item in value.inputs)
        parts = summands(flow.loss) if self.is_phase else []
        self.terms = {value.number for value in (*flow.results.values(), *parts)}
        self.own = {value.number for value in self.needed if self._has_box(value)}

    def graph(self) -> Graph:
        """Boxes and arrows; a metric that is no more than another value has a box beside that one's."""
        boxes = [self._box(value) for value in self.needed if value.number in self.own]
        arrows = [arrow for value in self.needed if value.number in self.own for arrow in self._into(value)]
        if not self.is_phase:
            for place, (name, value) in enumerate(self.flow.results.items()):
                if value.kind != "function":
                    number, has_own = len(self.flow.values) + place, value.number in self.own
                    code = () if has_own else self._code(value)
                    boxes.append(Box(number, "metric", (Line(name, "title"), *code)))
                    starts = [value.number] if has_own else self._sources(value)
                    arrows += [Arrow(start, number, carries=False) for start in starts]
        return Graph(tuple(boxes), tuple(arrows))

    def _has_box(self, value: Value) -> bool:
        if value in self.ends and (self.is_phase or value.kind == "function"):
            return True
        if value.kind in ("field", "noise", "model") or (value.kind == "stop" and self.is_phase):
            return True
        if value.kind != "function":
            return False
        if value.shape is None:
            return any(item.kind == "part" and item.name and value in item.inputs for item in self.needed)
        is_deep = bool(value.models) or any(item.kind == "function" for item in value.inputs)
        is_shared = self.uses[value.number] > 1
        return bool(value.name) and (is_deep or is_shared or value.number in self.terms)

    def _box(self, value: Value) -> Box:
        return Box(value.number, self._form(value), tuple(self._lines(value)))

    def _form(self, value: Value) -> Form:
        if value in self.ends and (self.is_phase or value.kind == "function"):
            return "loss" if self.is_phase else "metric"
        if value.kind == "model":
            return self._state(value.call.split(".")[0], value)
        forms: dict[str, Form] = {"field": "data", "noise": "noise", "stop": "stop"}
        return forms.get(value.kind, "value")

    def _state(self, model: str, value: Value) -> Literal["trained", "frozen", "average"]:
        """What a model is where a value is computed."""
        if model in self.flow.averaged:
            return "average"
        return "trained" if model in self.flow.trained and not value.is_prepared else "frozen"

    def _lines(self, value: Value) -> Iterator[Line]:
        form = self._form(value)
        if value.kind == "model" and form != "loss":
            yield from self._model_lines(value)
            return
        named = ", ".join(self._names(value))
        if form in ("loss", "metric"):
            yield Line(next(name for name, end in self.flow.results.items() if end is value), "title")
        elif named or form == "stop":
            yield Line(f"{named}, prepared" if value.call == "prepared" else named or value.call, "title")
        if form != "data":
            yield from self._code(value)
            yield from self._inside(value)
        if form == "loss":
            yield Line(f"trains {', '.join(self.flow.reach[value.number].models) or 'nothing'}", "note")
        elif form == "stop":
            yield Line(STOPS, "note")
        elif form != "noise" and value.shape:  # of noise its arguments say it
            yield Line(_shape_text(value), "note")

    def _model_lines(self, value: Value) -> Iterator[Line]:
        state = self._state(value.call.split(".")[0], value)
        yield Line(value.call, "title")
        yield Line("frozen, lets gradients through" if state == "frozen" and value.flows else state, "note")
        taken = [item for item in value.arguments if isinstance(item, Value)]
        if any(item.number not in self.own for item in taken):
            yield from self._code(value)
        names = ", ".join(self._names(value))
        shape = "" if value.shape is None else _shape_text(value)
        yield Line(f"{names} {shape}".strip(), "code")

    def _inside(self, value: Value) -> Iterator[Line]:
        """The models that are called on the way to a value by ops in its box, such as attacks."""
        for name in sorted(self._called(value)):
            yield Line(f"calls {name}, {self._state(name, value)}", "note")

    def _called(self, value: Value) -> set[str]:
        inlined = [item for item in value.inputs if item.number not in self.own]
        own = set(value.models) if value.kind == "function" else set()
        return own.union(*(self._called(item) for item in inlined))

    def _names(self, value: Value) -> list[str]:
        """What it is called; of several values their names."""
        if value.shape is not None:
            return [value.name] if value.name else []
        return [
            item.name for item in self.needed if item.kind == "part" and item.name and value in item.inputs
        ]

    def _code(self, value: Value) -> Iterator[Line]:
        """What a value is made of, in terms of other boxes."""
        text = expression(value, self._refer)
        yield from (Line(part, "code") for part in wrap(text, WIDEST, break_long_words=False))

    def _refer(self, value: Value) -> str | None:
        """How the code in a box refers to another box."""
        if value.kind == "part" and value.name and value.inputs[0].number in self.own:
            return value.name
        if value.number not in self.own:
            return None
        if value.name:
            return value.name
        return expression(value, self._refer) if value.kind == "noise" else f"{value.call}(…)"

    def _into(self, value: Value) -> Iterator[Arrow]:
        sources = self._sources(value)
        yield from (Arrow(start, value.number, carries) for start, carries in sources.items())

    def _sources(self, value: Value) -> dict[int, bool]:
        """The boxes that a value is made of, and whether gradients flow back to each."""
        found: dict[int, bool] = {}
        for item in value.inputs:
            flows = item.number in value.flows and item.carries
            reached = {item.number: True} if item.number in self.own else self._sources(item)
            for number, carries in reached.items():
                found[number] = found.get(number, False) or (flows and carries)
        return found


def _shape_text(value: Value) -> str:
    return "(" + ", ".join(map(str, value.shape or ())) + ")"
