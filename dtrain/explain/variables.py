"""What the author of a system calls the arrays in it."""

from collections.abc import Iterator
from types import FrameType
from typing import Any

SILENT = ("torch", "dtrain.explain", "dtrain.backends", "dtrain.systems.base")  # modules of others


def variables(frame: FrameType) -> Iterator[tuple[str, Any]]:
    """The variables of a function, and what stands in dictionaries that are variables, such as its terms.

    Of a function that was made of expressions in a recipe, the values that the recipe names.
    """
    if frame.f_globals.get("__name__", "").startswith(SILENT):
        return
    is_recipe = frame.f_code.co_filename.startswith("<recipe:")
    held = dict(frame.f_locals)
    for table in frame.f_locals.values():
        if type(table) is dict:
            held |= {key: item for key, item in table.items() if isinstance(key, str)}
    for name, item in held.items():
        said = name.removeprefix("v_") if is_recipe else name
        is_own = name.startswith("v_") if is_recipe else not name.startswith("_")
        if is_own and said.isidentifier():
            yield said, item
