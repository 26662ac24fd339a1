"""Import paths, `package.module:Name`: what they name, and whether a recipe may reach it."""

import importlib
from collections.abc import Sequence
from typing import Any


class ImportPathError(ValueError):
    """An import path names nothing, or something that may not be reached."""


def find(path: str, base: type | None = None, packages: Sequence[str] | None = None) -> Any:
    """Import what a path names.

    `base`: the class that it must derive from. `packages`: the only packages it may come from, as
    for a recipe that came with a checkpoint; then functions are refused too, whatever the package.
    """
    module, _, name = path.partition(":")
    if packages is not None and module.split(".")[0] not in packages:
        allowed = ", ".join(packages)
        raise ImportPathError(f"{path!r} is not in a trusted package ({allowed}); trust it by name if you do")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, RuntimeError, ValueError) as error:
        # RuntimeError: a torchvision that does not belong to this torch raises it at import.
        raise ImportPathError(f"cannot import {path!r}: {error}") from None
    if not callable(found):
        raise ImportPathError(f"{path!r} is not a class or a function")
    is_fit = isinstance(found, type) and (base is None or issubclass(found, base))
    if not is_fit and (packages is not None or (base is not None and isinstance(found, type))):
        raise ImportPathError(f"{path!r} is not a {base.__name__ if base else 'class'}")
    return found
