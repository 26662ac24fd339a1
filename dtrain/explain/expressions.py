"""Values as text: `made = detach(generator(normal(32, 16)))`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from dtrain.explain.flow import Value
from dtrain.explain.record import Called

# How tightly operators bind, from the loosest; a name or a call binds tightest.
LOOSEST, COMPARE, ADD, MULTIPLY, NEGATE, POWER, TIGHTEST = range(7)
OPERATORS = {
    "add": (" + ", ADD),
    "sub": (" - ", ADD),
    "mul": (" * ", MULTIPLY),
    "div": (" / ", MULTIPLY),
    "truediv": (" / ", MULTIPLY),
    "floordiv": (" // ", MULTIPLY),
    "mod": (" % ", MULTIPLY),
    "matmul": (" @ ", MULTIPLY),
    "pow": ("**", POWER),
    "eq": (" == ", COMPARE),
    "ne": (" != ", COMPARE),
    "lt": (" < ", COMPARE),
    "le": (" <= ", COMPARE),
    "gt": (" > ", COMPARE),
    "ge": (" >= ", COMPARE),
    "and": (" & ", COMPARE),
    "or": (" | ", COMPARE),
}
REVERSED = {"rsub": "sub", "radd": "add", "rmul": "mul", "rdiv": "div", "rtruediv": "div", "rpow": "pow"}
IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "ipow": "pow"}
UNSEEN = {"to", "float", "double", "half", "type", "type_as", "contiguous", "clone", "int", "long"}  # casts
SYMBOLS = {"logical_not": "not ", "invert": "not ", "neg": "-"}
LONGEST = 4  # arrays and numbers of a list that are shown

Refer = Callable[[Value], str | None]  # the name under which a value was said already; None to write it out


def expression(value: Value, refer: Refer) -> str:
    """What a value is made of, in terms of those that have been said."""
    return _made(value, refer)[0]


def _made(value: Value, refer: Refer) -> tuple[str, int]:
    """An expression, and how tightly its outermost operator binds."""
    call = REVERSED.get(value.call) or IN_PLACE.get(value.call) or value.call
    items = value.arguments[::-1] if value.call in REVERSED else value.arguments
    if value.kind in ("field", "constant", "weights") and not value.arguments:
        return value.name or value.call, TIGHTEST
    if value.call == "prepared":
        return _argument_made(items[0], refer)
    if value.kind == "part" or call == "getitem":
        of, place = value.arguments
        inside = ", ".join(_index(item, refer) for item in (place if isinstance(place, tuple) else (place,)))
        return f"{_argument(of, refer, TIGHTEST)}[{inside}]", TIGHTEST
    if call in UNSEEN and items and isinstance(items[0], Value):
        return _argument_made(items[0], refer)
    if call in SYMBOLS and len(items) == 1:
        return SYMBOLS[call] + _argument(items[0], refer, NEGATE), NEGATE
    if call in OPERATORS and len(items) == 2:
        return _operated(call, items, refer)
    shown = [_argument(item, refer, LOOSEST) for item in items if _is_worth_a_word(item)]
    shown += [
        f"{key}={_argument(item, refer, LOOSEST)}"
        for key, item in value.options.items()
        if _is_worth_a_word(item)
    ]
    given = {item.number for item in replace(value, reads=()).inputs}
    besides = [_argument(item, refer, LOOSEST) for item in value.reads if item.number not in given]
    using = f"; uses {', '.join(besides)}" if besides else ""
    return f"{call}({', '.join(shown)}{using})", TIGHTEST


def _operated(call: str, items: tuple[Any, ...], refer: Refer) -> tuple[str, int]:
    sign, binds = OPERATORS[call]
    left, right = items
    if call == "add" and 0 in [item for item in items if not isinstance(item, Value)]:  # where `sum` begins
        return _argument_made(left if isinstance(left, Value) else right, refer)
    is_commutative = call in ("add", "mul")
    if call == "mul" and isinstance(left, Value) and not isinstance(right, Value):
        left, right = right, left  # 10 * penalty
    chains = binds in (COMPARE, POWER)  # a < b < c and a**b**c mean something else
    first = _argument(left, refer, binds + chains)
    return first + sign + _argument(right, refer, binds + (not is_commutative)), binds


def _argument(item: Any, refer: Refer, at_least: int) -> str:
    text, binds = _argument_made(item, refer)
    return text if binds >= at_least else f"({text})"


def _argument_made(item: Any, refer: Refer) -> tuple[str, int]:
    if isinstance(item, Value):
        name = refer(item)
        return (name, TIGHTEST) if name is not None else _made(item, refer)
    if isinstance(item, Called):
        return item.text, TIGHTEST
    if isinstance(item, Mapping):
        return f"{{{', '.join(item)}}}", TIGHTEST
    if isinstance(item, tuple):
        shown = [_argument(inner, refer, LOOSEST) for inner in item[:LONGEST]]
        return f"[{', '.join([*shown, '...'] if len(item) > LONGEST else shown)}]", TIGHTEST
    if isinstance(item, float):
        return f"{item:g}", TIGHTEST if item >= 0 else NEGATE
    return str(item), TIGHTEST if not isinstance(item, int) or item >= 0 else NEGATE


def _index(item: Any, refer: Refer) -> str:
    if isinstance(item, slice):
        ends = ["" if end is None else _argument(end, refer, LOOSEST) for end in (item.start, item.stop)]
        step = "" if item.step is None else f":{_argument(item.step, refer, LOOSEST)}"
        return ":".join(ends) + step
    return "..." if item is Ellipsis else _argument(item, refer, LOOSEST)


def _is_worth_a_word(item: Any) -> bool:
    """Whether an argument is no mere matter of storage."""
    return not isinstance(item, torch.dtype | torch.device | torch.layout) and item is not None
