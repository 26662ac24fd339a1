"""A system written down in the recipe: phases, values and losses as expressions, without Python."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NamedTuple

from dtrain.data.source import Field
from dtrain.spec.losses import Expression, Term, Terms, terms
from dtrain.spec.models import Model
from dtrain.spec.schedules import Constant
from dtrain.spec.table import AtLeastOne, Frozen, Positive, Table, Wrong, empty, kind, table
from dtrain.spec.words import dotted
from dtrain.systems.base import Array, Batch, Evaluation, Loss, Mode, Models, Ops, Phase, Predicted, System
from dtrain.systems.expressions import ExpressionError, Read, Scope
from dtrain.systems.functions import Body, Keyed, unfit_names, unknown_model
from dtrain.systems.shapes import Examples, Shaped

Fields = Mapping[str, Shaped] | None
MOST = 100_000  # characters of expressions that are read, those of values once for each phase
AN_EXPRESSION = 40  # characters that one more expression is worth
FILE = re.compile(r"[\w-]+")  # the name of pictures, which a file has


@table
class PhaseTable(Table):
    """One phase: whose weights move, down the sum of its own losses and those of the models it updates."""

    updates: Annotated[tuple[str, ...], AtLeastOne()]  # the models that it trains; all others are frozen
    # what replaces fields of the batch, or adds to them, computed first and with every model frozen: attacks
    prepare: Frozen[Expression] = field(default_factory=empty)
    # by name, for the losses: computed before them, each once, in the order in which they are written
    values: Frozen[Expression] = field(default_factory=empty)
    losses: Terms = field(default_factory=empty)  # by name; besides those of the models
    logs: Frozen[Expression] = field(default_factory=empty)  # what else is worth a curve
    # how many items the loss is a mean over; as for the whole system if left out
    items: Expression | None = None
    repeat: Positive = 1  # updates in a step, each on fresh data
    every: Positive = 1  # only on steps divisible by it, counted from 0


@table
class Prediction(Table):
    """What the metrics of a recipe compare."""

    prediction: Expression  # what is predicted, such as logits or a reconstruction
    target: Expression  # what would be right


class Weighed(NamedTuple):
    """A term of a loss, and the key of its expression."""

    name: str
    term: Term
    key: str


@kind(System, "composed")
class Composed(System):
    """Phases, values and losses as expressions.

    Expressions have calls of models and ops, arithmetic, and names of fields of the batch and of values.
    Arrays have their examples along axis 0; where something is drawn, their number goes without saying:
    `normal(16)` is 16 numbers for each example. A loss is the mean of its expression. What a model always
    has to answer for may stand in its own table, `[models.NAME.losses]`.
    """

    phases_: Annotated[tuple[PhaseTable, ...], AtLeastOne()]  # of one step, in order
    values: Frozen[Expression] = field(default_factory=empty)  # by name, for all phases and what is below
    # how many items losses and metrics are means over, such as "sum(weight)"; their examples if left out
    items: Expression | None = None
    evaluate_: Frozen[Expression] = field(default_factory=empty)  # metrics by name; means over the examples
    predict_: Prediction | None = None  # for the metrics under [evaluate.metrics]
    samples_: Frozen[Expression] = field(default_factory=empty)  # pictures worth looking at, by name

    models: ClassVar[Mapping[str, Model]] = MappingProxyType({})  # of the recipe, once it is `joined`

    def __post_init__(self) -> None:
        if self.effort > MOST:
            said = f"has more expressions than can be read in a moment: {self.effort:,} characters"
            raise ValueError(f"{said}, those of values for each phase; {MOST:,} would do")
        for name in self.samples_:
            if not FILE.fullmatch(name):
                said = "letters, digits, underscores and dashes would do, as a file is named by it"
                raise Wrong(dotted(("samples", name)), said, is_key=True)

    @property
    def effort(self) -> int:
        """How much there is to be read: characters, those of values as often as they are."""
        own = [each for phase in self.phases_ for each in _texts(phase)]
        rest = [*self.evaluate_.values(), *self.samples_.values()]
        often, once = (
            sum(len(text) + AN_EXPRESSION for text in texts)
            for texts in (self.values.values(), (*own, *rest))
        )
        return (often + AN_EXPRESSION) * (len(self.phases_) + 1) + once

    def joined(self, models: Mapping[str, Model]) -> "Composed":
        made = replace(self)
        object.__setattr__(made, "models", models)  # no key of the table, so no field
        return made

    def trains(self) -> Sequence[tuple[str, ...]]:
        return [phase.updates for phase in self.phases_]

    @property
    def has_slopes(self) -> bool:
        return any(self._is_sloped(number, phase) for number, phase in enumerate(self.phases_))

    def _is_sloped(self, number: int, phase: PhaseTable) -> bool:
        """Whether a loss of a phase has slopes in it, or a value that it is computed from."""
        at = f"system.phases[{number}]"
        body = self._body(self.models, None, _keyed_dict(phase.values, f"{at}.values"), phase.prepare)
        codes = [body.add(each.term.of, each.key).code for each in self._terms(phase, at)]
        return any("ops.gradient" in code for code in (*body.lines, *codes))

    def needs(self) -> Sequence[str]:
        return ()  # `check` says where a name stands that no model has

    @property
    def evaluates(self) -> Mapping[str, Mode | None]:  # type: ignore[override]  # known of each, not of the class
        return dict.fromkeys(self.evaluate_)

    @property
    def predicts(self) -> bool:
        return self.predict_ is not None

    def check(self, models: Mapping[str, Model]) -> Iterator[ValueError]:
        yield from self._mistakes(models, None)

    def check_data(self, models: Mapping[str, Model], fields: Mapping[str, Field]) -> Iterator[ValueError]:
        shaped = {name: _shaped(field) for name, field in fields.items()}
        said = {_identity(mistake) for mistake in self._mistakes(models, None)}
        yield from (one for one in self._mistakes(models, shaped) if _identity(one) not in said)

    def phases(self) -> Sequence[Phase]:
        return self._phases

    @cached_property
    def _phases(self) -> Sequence[Phase]:
        return tuple(self._phase(number, phase) for number, phase in enumerate(self.phases_))

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Evaluation:
        shown: Evaluation = self._evaluate(models, batch, ops)
        return shown

    def predict(self, models: Models, batch: Batch, ops: Ops) -> Predicted | None:
        predicted: Predicted = self._predict(models, batch, ops)
        return predicted

    def samples(self, models: Models, batch: Batch, ops: Ops) -> Mapping[str, Array]:
        drawn: Mapping[str, Array] = self._samples(models, batch, ops)
        return drawn

    @cached_property
    def _evaluate(self) -> Callable[..., Any]:
        body = self._body(self.models, None, {})
        shown = {name: mean(body.add(text, key)) for name, (text, key) in _keyed(self.evaluate_, "evaluate")}
        weight = "None" if self.items is None else body.add(self.items, "system.items").code
        return body.function("evaluate", f"Evaluation({_table(shown)}, {weight})", {"Evaluation": Evaluation})

    @cached_property
    def _predict(self) -> Callable[..., Any]:
        body, said = self._body(self.models, None, {}), self.predict_
        if said is None:
            return body.function("predict", "None", {})
        both = [body.add(text, "system.predict").code for text in (said.prediction, said.target)]
        return body.function("predict", f"({', '.join(both)})", {})

    @cached_property
    def _samples(self) -> Callable[..., Any]:
        body = self._body(self.models, None, {})
        drawn = {name: body.add(text, key).code for name, (text, key) in _keyed(self.samples_, "samples")}
        return body.function("samples", _table(drawn), {})

    def _phase(self, number: int, phase: PhaseTable) -> Phase:
        at = f"system.phases[{number}]"
        prepare = None
        if phase.prepare:
            body, prepared = self._prepared(phase, at, self.models, None)
            codes = {name: found.code for name, found in prepared.items()}
            prepare = body.function("prepare", f"{{**batch, {_table(codes)[1:-1]}}}", {})
        body = self._body(
            self.models, None, _keyed_dict(phase.values, f"{at}.values"), frozenset(phase.prepare)
        )
        found = {each.name: body.add(each.term.of, each.key) for each in self._terms(phase, at)}
        shown = {name: mean(read) for name, read in found.items()}
        shown |= {
            name: mean(body.add(text, key)) for name, (text, key) in _keyed(phase.logs, f"{at}.logs", "")
        }
        items = phase.items if phase.items is not None else self.items
        weight = "None" if items is None else body.add(items, f"{at}.items").code
        schedules: dict[str, Any] = {}
        body.lines += [f"t_{place} = {code}" for place, code in enumerate(shown.values())]
        shares = [
            _share(each.term, f"t_{place}", schedules) for place, each in enumerate(self._terms(phase, at))
        ]
        logged = {name: f"t_{place}" for place, name in enumerate(shown)}
        returns = f"Loss({' + '.join(shares)}, {_table(logged)}, {weight})"
        loss = body.function("loss", returns, {"Loss": Loss, **schedules})
        return Phase(phase.updates, loss, prepare, phase.repeat, phase.every)

    def _body(
        self, models: Mapping[str, Model], fields: Fields, own: Keyed, prepared: Iterable[str] = ()
    ) -> Body:
        """An empty function; a phase's own values go before those of all, what it prepares before both."""
        shared = _keyed_dict(self.values, "system.values")
        values = {name: value for name, value in {**shared, **own}.items() if name not in prepared}
        return Body(Scope(models, fields=fields), values)

    def _prepared(
        self, phase: PhaseTable, at: str, models: Mapping[str, Model], fields: Fields
    ) -> tuple[Body, dict[str, Read]]:
        """The function that replaces fields, and what it puts there."""
        body = self._body(models, fields, {})
        return body, {
            name: body.one(text, key) for name, (text, key) in _keyed(phase.prepare, f"{at}.prepare", "")
        }

    def _terms(self, phase: PhaseTable, at: str, models: Mapping[str, Model] | None = None) -> list[Weighed]:
        """The losses of a phase: its own, then those of the models that it updates."""
        found: dict[str, Weighed] = {}
        homes = [(f"{at}.losses", "", phase.losses)]
        for name in phase.updates:
            model = (self.models if models is None else models).get(name)
            homes.append((f"models.{name}.losses", f"{name}_", getattr(model, "losses", {})))
        for home, prefix, given in homes:
            for name, term in terms(given).items():
                key = f"{home}.{name}" if isinstance(given[name], str) else f"{home}.{name}.of"
                called = name
                while called in found:  # or one loss would take the other's place
                    called = f"{prefix}{called}"
                found[called] = Weighed(called, term, key)
        return list(found.values())

    def _mistakes(self, models: Mapping[str, Model], fields: Fields) -> list[ValueError]:
        """Everything wrong that can be known of these models and fields."""
        found: list[ValueError] = list(unfit_names(_keyed_dict(self.values, "system.values"), models, fields))
        bodies: list[Body] = []
        for number, phase in enumerate(self.phases_):
            found += self._phase_mistakes(phase, f"system.phases[{number}]", models, fields, bodies)
        body = self._body(models, fields, {})
        for _, (text, key) in (*_keyed(self.evaluate_, "evaluate"), *_keyed(self.samples_, "samples")):
            body.one(text, key)
        if self.items is not None:
            body.one(self.items, "system.items")
        if self.predict_ is not None:
            body.one(self.predict_.prediction, "system.predict.prediction")
            body.one(self.predict_.target, "system.predict.target")
        found += body.mistakes
        if not found and fields is not None:  # else a name that is no value may be a field
            bodies.append(body)
            found += _unused(_keyed_dict(self.values, "system.values"), bodies)
            found += self._uncalled(models, {name for each in bodies for name in each.called})
        return found

    def _phase_mistakes(
        self,
        phase: PhaseTable,
        at: str,
        models: Mapping[str, Model],
        fields: Fields,
        bodies: list[Body],
    ) -> list[ValueError]:
        """The same of one phase; its functions go to `bodies`."""
        own = _keyed_dict(phase.values, f"{at}.values")
        found: list[ValueError] = list(unfit_names(own, models, fields))
        for place, name in enumerate(phase.updates):
            if name not in models:
                found.append(unknown_model(f"{at}.updates[{place}]", name, list(models)))
            elif name in phase.updates[:place]:
                found.append(Wrong(f"{at}.updates[{place}]", f"{name} stands there twice"))
        first, prepared = self._prepared(phase, at, models, fields)
        more = {name: read.value for name, read in prepared.items() if isinstance(read.value, Shaped)}
        seen = None if fields is None else {**fields, **more}
        body = self._body(models, seen, own, frozenset(phase.prepare))
        weighed = self._terms(phase, at, models)
        if not weighed and not found:
            found.append(Wrong(at, "has no losses, and neither have the models that it updates"))
        for each in weighed:
            if each.name == "loss":
                said = '"loss" is the sum of all losses; another name would do'
                found.append(Wrong(each.key, said, is_key=True))
            if not isinstance(body.one(each.term.of, each.key).value, Shaped) and not body.mistakes:
                within = (0, len(each.term.of))
                found.append(ExpressionError(each.key, "is a number, and depends on nothing", within=within))
        reached = set(body.reached)
        taken = {"loss", *(each.name for each in weighed)}
        for name, (text, key) in _keyed(phase.logs, f"{at}.logs", ""):
            if name in taken:
                found.append(Wrong(key, "a loss is logged by this name; another would do", is_key=True))
            body.one(text, key)
        if phase.items is not None:
            body.one(phase.items, f"{at}.items")
        bodies += [first, body]
        found += [*first.mistakes, *body.mistakes]
        if not found and fields is not None:
            found += _unused(own, [first, body])
            for place, name in enumerate(phase.updates):
                if name not in reached:
                    said = f"no gradient of this phase's losses reaches {name}, so nothing trains it"
                    found.append(Wrong(f"{at}.updates[{place}]", said))
        return found

    def _uncalled(self, models: Mapping[str, Model], called: set[str]) -> Iterator[Wrong]:
        """Models that no expression calls, and losses of models that no phase updates."""
        updated = {name for phase in self.phases_ for name in phase.updates}
        for name, model in models.items():
            if name not in called and name not in updated:
                yield Wrong(f"models.{name}", "no expression calls this model", is_key=True)
            elif getattr(model, "losses", None) and name not in updated:
                yield Wrong(f"models.{name}.losses", "no phase updates this model", is_key=True)


def _texts(phase: PhaseTable) -> Iterator[str]:
    """The expressions of a phase."""
    yield from (*phase.prepare.values(), *phase.values.values(), *phase.logs.values())
    yield from (term.of for term in terms(phase.losses).values())


def mean(found: Read) -> str:
    """The code of an expression's mean over all that it gives."""
    is_scalar = (
        isinstance(found.value, Shaped) and found.value.shape == () and found.value.sort == "fractions"
    )
    return found.code if is_scalar or not isinstance(found.value, Shaped) else f"ops.mean({found.code})"


def _share(term: Term, code: str, schedules: dict[str, Any]) -> str:
    """The code of a term times its weight, which a schedule may move."""
    if term.schedule != Constant():
        name = f"schedule_{len(schedules)}"
        schedules[name] = term.schedule
        return f"{term.weight!r} * ops.factor({name}) * {code}"
    return code if term.weight == 1 else f"{term.weight!r} * {code}"


def _keyed(given: Mapping[str, str], home: str, top: str = "system.") -> list[tuple[str, tuple[str, str]]]:
    """Expressions by name, each with its key."""
    return [(name, (text, f"{top}{home}.{name}")) for name, text in given.items()]


def _keyed_dict(given: Mapping[str, str], home: str) -> Keyed:
    return dict(_keyed(given, home, ""))


def _table(codes: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{name!r}: {code}" for name, code in codes.items()) + "}"


def _shaped(field: Field) -> Shaped:
    """A field of the data as an array of a micro-batch."""
    return Shaped((Examples(), *field.shape), "fractions" if field.holds_fractions else "whole numbers")


def _unused(values: Keyed, bodies: Iterable[Body]) -> Iterator[Wrong]:
    known = {name for body in bodies for name in body.known}
    for name, (_, key) in values.items():
        if name not in known:
            yield Wrong(key, "no expression that is computed uses this value", is_key=True)


def _identity(mistake: ValueError) -> tuple[Any, ...]:
    return (getattr(mistake, "at", ""), getattr(mistake, "within", None))
