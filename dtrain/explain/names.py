"""Names for what a phase computes."""

from collections import Counter

from dtrain.explain.flow import Flow, Value

DEEPEST = 24  # calls and operators inside of each other


def name_values(flow: Flow) -> None:
    """Name the values that need it: results, what variables held, what is used twice, or is too deep to read.

    Of two with the same name the later gets a number.
    """
    needed = flow.needed(*flow.results.values(), *filter(None, [flow.weight]))
    _name_results(flow, needed)
    uses = Counter(item.number for value in needed for item in value.inputs)
    depths: dict[int, int] = {}  # of the expression that says a value, as deep as it has no names
    said_by_parts = {value.inputs[0].number for value in needed if value.kind == "part" and value.name}
    taken = {value.name for value in flow.fields.values()}
    for value in needed:
        if value.kind == "field" or value.call == "prepared":
            continue
        depths[value.number] = 1 + max((depths.get(item.number, 0) for item in value.inputs), default=0)
        is_shared = uses[value.number] > 1 and _is_long(value)
        is_deep = depths[value.number] > DEEPEST and value.kind not in ("part", "weights")
        if not value.name and (is_shared or is_deep) and value.number not in said_by_parts:
            value.name = f"{value.call}_out" if value.kind == "model" else "value"
        if value.name:
            value.name = _free(value.name, taken)
            depths[value.number] = 0


def _is_long(value: Value) -> bool:
    """Whether it takes more than a word to say what a value is made of."""
    if value.kind in ("model", "noise", "stop"):
        return True
    has_steps = any(item.kind == "function" and not item.name for item in value.inputs)
    return value.kind == "function" and (has_steps or bool(value.models) or value.shape is None)


def _name_results(flow: Flow, needed: list[Value]) -> None:
    """Name what is computed on the way to the loss by its term, and what is prepared by its field alone.

    Where another value goes by the name already, a term is `real_loss`, and a metric keeps its own.
    """
    named = {value.name: value for value in needed if value.name}
    for value in needed:
        if value.call == "prepared" and value.inputs[0].kind == "function":
            value.inputs[0].name = ""
    inside = flow.needed(flow.loss) if flow.trained else needed
    for name, value in reversed(list(flow.results.items())):  # the loss comes first, and has the last word
        if value.kind == "function" and value in inside:
            is_free = named.get(name, value) is value
            value.name = name if is_free else f"{name}_loss" if flow.trained else value.name


def _free(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    taken.add(name)
    return name
