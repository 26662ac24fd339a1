"""How each op of expressions is called, as `dtrain.systems.ops` declares it."""

import inspect
import typing
from collections.abc import Iterator, Mapping
from functools import cache

from dtrain.systems.ops import Ops

NOT_SAID = ("factor", "call")  # ops that only systems in Python have a use for


def ops_by_name() -> Mapping[str, inspect.Signature]:
    """The ops of expressions, with their parameters but for `self`."""
    return _ops()


@cache
def _ops() -> Mapping[str, inspect.Signature]:
    found = {}
    for name, function in vars(Ops).items():
        if inspect.isfunction(function) and not name.startswith("_") and name not in NOT_SAID:
            signature = inspect.signature(function)
            hints = typing.get_type_hints(function)
            kept = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()
                    if p.name != "self"]  # fmt: skip
            found[name] = signature.replace(parameters=kept)
    return found


def usage(name: str) -> str:
    """The arguments of an op as one would write them."""
    return ", ".join(_parameters(ops_by_name()[name]))


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            yield f"{parameter.name}..."
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY or parameter.default is not parameter.empty:
            default = "..." if parameter.default is parameter.empty else repr(parameter.default)
            yield f"{parameter.name}={default}"
        else:
            yield parameter.name
