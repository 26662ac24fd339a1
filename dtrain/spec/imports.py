"""Import paths, `package.module:Name`: what they name, and whether a recipe may reach it."""

import importlib
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

OWN = (
    "dtrain",
    "torch",
)  # of these, a recipe from elsewhere reaches nothing but classes of the kind it needs


class ImportPathError(ValueError):
    """An import path names nothing, or something that may not be reached."""


def find(path: str, base: type | None = None, trust: Sequence[str] | None = None) -> Any:
    """Import what a path names: a class that derives from `base`, or a function.

    `trust` is for a recipe that came from elsewhere, as with a checkpoint: it names the packages that may
    be imported from besides torch and dtrain. None trusts the recipe. Raises ImportPathError.
    """
    module, _, name = path.partition(":")
    package = module.partition(".")[0]
    if trust is not None and package not in (*OWN, *trust):
        raise ImportPathError(f"{path!r} is not in a trusted package; trust {package!r} by name if you do")
    part = ""
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise ImportPathError(f"cannot import {path!r}: {error}; is it installed?") from error
    except AttributeError as error:
        near = get_close_matches(part, dir(found), n=1) if name else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ImportPathError(f"cannot import {path!r}: {error}{hint}") from error
    except Exception as error:  # what is imported is not ours, and may fail in any way
        raise ImportPathError(f"cannot import {path!r}: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ImportPathError(f"{path!r} is not a class or a function")
    is_fit = isinstance(found, type) and (base is None or issubclass(found, base))
    is_stranger = trust is not None and package not in trust
    if not is_fit and (is_stranger or isinstance(found, type)):
        raise ImportPathError(f"{path!r} is not a {base.__name__ if base else 'class'}")
    return found
