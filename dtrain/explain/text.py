"""What a system does in every step, as text."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap

from dtrain.explain.expressions import expression
from dtrain.explain.flow import Flow, Value, summands
from dtrain.recipe.values import Recipe
from dtrain.spec.models import weights_of
from dtrain.systems.base import Phase, System

WIDTH = 110
MOST = 16  # summands of a loss that are told one by one


def explanation(
    recipe: Recipe, flows: Sequence[Flow], evaluation: Flow | None, optimizers: Mapping[str, str]
) -> str:
    """The phases of a step, in order, and the evaluation; `optimizers` says those of the models in words."""
    assert isinstance(recipe.system, System)
    phases = recipe.system.phases()
    parts = [heading(recipe, phases, flows, evaluation)]
    for number, (phase, flow) in enumerate(zip(phases, flows, strict=True), 1):
        parts.append([*title(number, phase, recipe, optimizers), *_indented(phase_lines(flow))])
    if evaluation is not None:
        lines = [evaluation_title(recipe, evaluation), *evaluation_lines(evaluation)]
        if recipe.evaluate.metrics:
            lines.append(f"and, of predictions and targets: {and_join(recipe.evaluate.metrics)}")
        parts.append(["evaluation", *_indented(iter(lines))])
    return "\n\n".join("\n".join(line.rstrip() for line in part) for part in parts)


def heading(
    recipe: Recipe, phases: Sequence[Phase], flows: Sequence[Flow], evaluation: Flow | None
) -> list[str]:
    """What the whole is, and which models nobody calls."""
    count = f"{len(phases)} phases, in this order" if len(phases) > 1 else "one phase"
    lines = [
        f"{recipe.name}: {and_join(recipe.models)}",
        f"each step: {count}; shapes are those of a micro-batch of {recipe.train.micro}",
    ]
    for name, model in recipe.models.items():
        if (source := model.weights_from) is not None:
            lines.append(f"{name} begins with the weights of {source.model} in {source.path}")
        if (file := weights_of(model)) is not None:
            lines.append(f"{name} begins with weights of {file.path}")
    called = {name for flow in (*flows, *filter(None, [evaluation])) for name in flow.called()}
    idle = [name for name in recipe.models if name not in called]
    if idle:
        lines.append(f"warning: {and_join(idle)} is part of no loss and no evaluation")
    return lines


def title(number: int, phase: Phase, recipe: Recipe, optimizers: Mapping[str, str]) -> list[str]:
    """What a phase trains, with what, how often."""
    lines = [f"{number}. train {and_join(phase.updates)}"]
    size = recipe.train.batch_size
    often = f"{phase.repeat} updates, each on {size} fresh examples" if phase.repeat > 1 else ""
    when = f"on every {ordinal(phase.every)} step" if phase.every > 1 else ""
    lines += [f"   {', '.join(filter(None, [when, often or f'1 update on {size} fresh examples']))}"]
    return lines + [f"   trained: {name} ({optimizers[name]})" for name in phase.updates]


def phase_lines(flow: Flow) -> Iterator[str]:
    """What a phase computes, in order, and how far its gradients go."""
    for name in flow.frozen():
        yield f"frozen:  {name}" + " (gradients pass through it)" * (name in flow.through())
    said = Said(flow)
    before = flow.needed(*(value for value in flow.needed(*flow.results.values()) if value.is_prepared))
    if before:
        yield "prepare, with everything frozen:"
        yield from _indented(said.lines(before))
        yield "loss, of what prepare gave:"
    yield from _indented(said.lines([value for value in flow.needed(flow.loss) if value not in before]))
    yield from _wrapped("loss = ", said.made(flow.loss))
    yield from _indented(reach_lines(flow, said))
    beside = [
        (name, value)
        for name, value in flow.results.items()
        if name != "loss" and value not in flow.needed(flow.loss)
    ]
    if beside:
        logged = ", ".join(f"{name} = {said.made(value)}" for name, value in beside)
        yield from _wrapped("logged beside it: ", logged)
    if flow.weight is not None:
        yield f"a mean over {said.written(flow.weight)} items, and weighted by them"
    yield from stop_lines(flow, said)
    yield from warnings(flow)


class Said:
    """Which values of a flow have a line of their own; the others stand inside of expressions."""

    def __init__(self, flow: Flow):
        self.results = [flow.loss] if flow.trained else list(flow.results.values())
        shown = flow.needed(*self.results)
        self.own = {value.number for value in shown if value.name}
        self.parts: dict[int, list[Value]] = {}  # of calls that give several values, those that are named
        for value in shown:
            if value.kind == "part" and value.name:
                self.parts.setdefault(value.inputs[0].number, []).append(value)
        self.parts = {number: parts for number, parts in self.parts.items() if len(parts) > 1}

    def lines(self, values: Sequence[Value]) -> Iterator[str]:
        """A line for each of these values that has one, with its shape."""
        rows = [(self.left(value), self.right(value)) for value in values if self.has_line(value)]
        yield from _columns(rows)

    def has_line(self, value: Value) -> bool:
        """Fields, and what has a name and is no result; parts have the line of the call that gave them."""
        if value in self.results and value.kind == "function":
            return False
        is_one_of_several = value.kind == "part" and value.inputs[0].number in self.parts
        return value.number in self.parts or (bool(self.name(value)) and not is_one_of_several)

    def left(self, value: Value) -> str:
        """`mean, spread = chunk(encoder(image), 2)`."""
        if value.kind == "field":
            return value.name
        names = [part.name for part in self.parts.get(value.number, ())] or [value.name]
        return f"{', '.join(names)} = {self.made(value)}"

    def right(self, value: Value) -> str:
        """The shape; that of every part."""
        if value.number in self.parts:
            shapes = dict.fromkeys(map(shape_text, self.parts[value.number]))
            return ", ".join(shapes) + " each" * (len(shapes) == 1)
        return shape_text(value) + " from the data" * (value.kind == "field")

    def made(self, value: Value) -> str:
        """What a value is made of."""
        return expression(value, self.name)

    def written(self, value: Value) -> str:
        """A value by its name, or what it is made of."""
        return self.name(value) or self.made(value)

    def name(self, value: Value) -> str | None:
        """Its name if it has a line."""
        return value.name if value.number in self.own else None


def reach_lines(flow: Flow, said: Said) -> Iterator[str]:
    """What each summand of the loss trains."""
    parts = list({value.number: value for value in summands(flow.loss)}.values())
    whole = flow.reach[flow.loss.number].models
    if not 1 < len(parts) <= MOST:
        yield f"its gradient reaches {and_join(whole)}" if whole else ""
        return
    rows = []
    for value in parts:
        models = flow.reach[value.number].models
        rows.append((said.written(value), f"reaches {and_join(models)}" if models else "trains nothing"))
    yield from _columns(rows)


def stop_lines(flow: Flow, said: Said) -> Iterator[str]:
    """Where gradients stop on their way back from the loss."""
    for value, kept in flow.stops():
        if value.is_prepared:  # all of it is frozen, and its heading says so
            continue
        at = f"{value.name} = {said.made(value)}" if value.number in said.own else said.made(value)
        behind = {name for item in (*kept, value) for part in flow.needed(item) for name in part.models}
        trained = [name for name in flow.trained if name in behind]
        if trained:
            so = f"none reaches {and_join(trained)} this way"
        else:
            so = "none would come, as nothing before it is trained here"
        yield from _wrapped("gradients stop at: ", f"{at}; {so}")


def warnings(flow: Flow) -> Iterator[str]:
    """What a user should know: models that are to be trained, and are not."""
    reach = flow.reach[flow.loss.number]
    for name in flow.trained:
        if name not in reach.models:
            yield f"warning: no gradient of this loss reaches {name}, so nothing trains it here"


def evaluation_title(recipe: Recipe, flow: Flow) -> str:
    """When the evaluation takes place, and with what weights."""
    every = recipe.every.evaluate
    when = f"every {every} steps" if every else "at the end alone"
    averaged = [name for name in flow.averaged if name in flow.called()]
    place = f", with moving averages in place of {and_join(averaged)}" if averaged else ""
    return f"{when}, without gradients{place}"


def evaluation_lines(flow: Flow) -> Iterator[str]:
    """What the evaluation computes."""
    said = Said(flow)
    yield from said.lines(flow.needed(*flow.results.values()))
    for name, value in flow.results.items():
        is_named_so = value.name == name or value.kind == "function"
        yield from _wrapped(f"{name} = ", said.made(value) if is_named_so else said.written(value))


def shape_text(value: Value) -> str:
    """(32, 1, 28, 28); `()` is one number."""
    if value.shape is None:
        return ""
    return "(" + ", ".join(map(str, value.shape)) + ")"


def and_join(names: Sequence[str] | Mapping[str, object]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def ordinal(number: int) -> str:
    """2nd, 3rd, 11th."""
    ends = {1: "st", 2: "nd", 3: "rd"}
    return f"{number}{ends.get(number % 10, 'th') if number % 100 not in (11, 12, 13) else 'th'}"


def _columns(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Two columns; what is too long for the first pushes the second aside."""
    width = max((len(left) for left, _ in rows if len(left) <= WIDTH - 40), default=0)
    yield from (f"{left:<{width}}  {right}" for left, right in rows)


def _indented(lines: Iterator[str]) -> Iterator[str]:
    yield from (f"   {line}" for line in lines if line)


def _wrapped(start: str, text: str) -> Iterator[str]:
    yield from wrap(start + text, WIDTH - 6, subsequent_indent=" " * len(start), break_long_words=False)
