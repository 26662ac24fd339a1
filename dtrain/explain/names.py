"""Names for what a phase computes."""

from dtrain.explain.flow import Flow


def name_values(flow: Flow) -> None:
    """Give a name of its own to each value that needs one: that is used twice, or is a term of the loss.

    Those that a variable held keep its name; of two with the same the later gets a number.
    """
    needed = flow.needed(*flow.results.values())
    uses: dict[int, int] = {}
    for value in needed:
        for item in value.inputs:
            uses[item.number] = uses.get(item.number, 0) + 1
    named_parts = {
        value.inputs[0].number
        for value in needed
        if value.kind == "part" and value.name  # a call of several values is said by their names
    }
    terms = {value.number: name for name, value in flow.results.items() if name != "loss"}
    inside = {value.number for value in (flow.needed(flow.loss) if "loss" in flow.results else ())}
    taken = {value.name for value in flow.fields.values()}
    for value in needed:
        if value.kind == "field" or value.call == "prepared":
            continue
        wanted = value.name
        if not wanted and value.number in terms and value.number in inside:
            wanted = terms[value.number]
        is_shared = uses.get(value.number, 0) > 1 and value.kind not in ("part", "weights")
        if not wanted and is_shared and value.number not in named_parts:
            wanted = f"{value.call}_out" if value.kind == "model" else value.call
        value.name = _free(wanted, taken) if wanted else ""


def _free(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    taken.add(name)
    return name
