"""Import paths: what they name, and whether that is what the place in the recipe asks for."""

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal

from dtrain.spec.trust import EVERYTHING, ImportPath, ImportPathError, Trust, parse
from dtrain.spec.words import either, nearest

Role = Literal[
    "model", "layer", "optimizer", "schedule", "system", "source", "loss", "metric", "part", "function"
]
FILE = "__dtrain_file__"  # of a module: the local file that a recipe named it by
MODULE, DATASET = "torch.nn:Module", "torch.utils.data:Dataset"
TORCHMETRIC = "torchmetrics.metric:Metric"
SCHEDULE = "torch.optim.lr_scheduler:LRScheduler"


@dataclass(frozen=True)
class Wanted:
    """What may be named for a role: subclasses, by where their base stands, and perhaps others."""

    bases: tuple[str, ...]
    functions: str = ""  # what a function must be, where one would do
    any_class: bool = False  # of a trusted recipe


MEASURE = Wanted((MODULE,), functions="a function of (prediction, target)")
WANTED: dict[Role, Wanted] = {
    "model": Wanted((MODULE,), functions="a function that returns one"),
    "layer": Wanted((MODULE,), functions="a function that returns one"),
    "optimizer": Wanted(("torch.optim:Optimizer",)),
    "schedule": Wanted((SCHEDULE,)),
    "system": Wanted(("dtrain.systems.base:System",)),
    "source": Wanted(
        ("dtrain.data.source:Source", DATASET), functions="a function that returns a dataset", any_class=True
    ),
    "loss": MEASURE,
    "metric": MEASURE,
    # An argument that is made by an import path of its own, and one that is called by what gets it.
    "part": Wanted((MODULE, SCHEDULE, DATASET), functions="a function that makes one", any_class=True),
    "function": Wanted((MODULE,), functions="any function", any_class=True),
}


def find(path: str, role: Role, trust: Trust = EVERYTHING) -> Any:
    """Import what a path names for a role.

    Raises ImportPathError, without importing anything, where the path is not on the list of `trust`; and
    after the import where it names nothing, or something that the role cannot use.
    """
    parsed = parse(path)
    if refusal := trust.refusal(parsed):
        raise ImportPathError(refusal)
    module = _import_file(parsed) if parsed.file is not None else _import(parsed, parsed.module)
    found = _walk(module, parsed)
    _check(found, parsed, role, trust)
    return found


def missing_file(path: ImportPath) -> ImportPathError | None:
    """The mistake of a path whose local file is not there."""
    if path.file is None or path.file.is_file():
        return None
    folder = path.file.parent
    beside = [file.name for file in folder.glob("*.py")] if folder.is_dir() else []
    near = nearest(path.file.name, beside)
    written = None if near is None else f"{path.text.rpartition(':')[0].removesuffix(path.file.name)}{near}"
    return ImportPathError(
        f"there is no file {path.file}", None if written is None else f"{written}:{path.name}"
    )


def written_path(cls: type) -> str:
    """How a recipe names a class: `package.module:Name`, or `/folder/file.py:Name` of a local file."""
    home = getattr(sys.modules.get(cls.__module__), FILE, cls.__module__)
    return f"{home}:{cls.__qualname__}"


def derives(found: Any, base: str) -> bool:
    """Whether something is a subclass of the class at an import path.

    A base whose module was not imported has no subclasses: so nobody waits for torch in vain.
    """
    module, _, name = base.partition(":")
    return (
        isinstance(found, type)
        and module in sys.modules
        and issubclass(found, getattr(sys.modules[module], name))
    )


def _import(path: ImportPath, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportPathError(f"cannot import {path.text!r}: {error}; is it installed?") from error
    except (Exception, SystemExit) as error:  # what is imported is not ours, and may fail in any way
        raise ImportPathError(f"cannot import {path.text!r}: {type(error).__name__}: {error}") from error


def _import_file(path: ImportPath) -> Any:
    """Import a local file as the module of its name: so data workers, which know it by that, find it too."""
    if problem := missing_file(path):
        raise problem
    assert path.file is not None
    if (folder := str(path.file.parent)) not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()
    there = sys.modules.get(path.module)
    if there is None:
        spec = importlib.util.find_spec(path.module)
        origin = None if spec is None else spec.origin
    else:
        origin = getattr(there, "__file__", None)
    if origin is None or not os.path.exists(origin) or not os.path.samefile(origin, path.file):
        raise ImportPathError(
            f"{path.text!r} cannot be imported as the module {path.module}: there is another of that name "
            f"({origin or 'built in'}); rename the file"
        )
    module = _import(path, path.module)
    setattr(module, FILE, str(path.file))
    return module


def _walk(module: Any, path: ImportPath) -> Any:
    found = module
    for part in path.name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            near = nearest(part, [name for name in dir(found) if not name.startswith("_")])
            is_plain = near is not None and "." not in path.name
            suggestion = f"{path.text.rpartition(':')[0]}:{near}" if is_plain else None
            raise ImportPathError(f"cannot import {path.text!r}: {error}", suggestion) from error
        except Exception as error:  # a module may make its attributes when they are asked for
            raise ImportPathError(f"cannot import {path.text!r}: {type(error).__name__}: {error}") from error
    return found


def _check(found: Any, path: ImportPath, role: Role, trust: Trust) -> None:
    """Raise ImportPathError unless what was found is what the role asks for."""
    wanted, is_named = WANTED[role], trust.names_whole(path)
    gathers = role == "metric" and derives(found, TORCHMETRIC)
    if role in ("loss", "metric") and isinstance(found, type) and _keeps_sums(found) and not gathers:
        would = "a function such as those of torchmetrics.functional would do"
        if role == "metric":
            would = f"a subclass of {TORCHMETRIC.replace(':', '.')}, or {would}"
        raise ImportPathError(
            f"{path.text!r} keeps sums from batch to batch (it has update and compute), and a mean of its "
            f"values would not be exact; {would}"
        )
    if isinstance(found, type):
        is_fit = any(derives(found, base) for base in wanted.bases) or (is_named and wanted.any_class)
        sort = "a class of another sort"
        if is_fit and not is_named and not trust.is_home(found.__module__, path):
            is_fit, sort = False, f"{found.__module__}'s, not {path.package}'s own"
    elif callable(found):
        is_fit, sort = bool(wanted.functions) and is_named, "a function"
        if wanted.functions and not is_named:
            raise ImportPathError(
                f"{path.text!r} is a function, and they are trusted by their full names alone: "
                f"--trust {path.text}"
            )
    else:
        is_fit, sort = False, f"of type {type(found).__name__}"
    if not is_fit:
        raise ImportPathError(f"{path.text!r} is {sort}; {_in_words(wanted, is_named)} would do")


def _keeps_sums(cls: type) -> bool:
    return all(callable(getattr(cls, name, None)) for name in ("update", "compute"))


def _in_words(wanted: Wanted, is_named: bool) -> str:
    subclasses = [f"a subclass of {base.replace(':', '.')}" for base in wanted.bases]
    return (
        either([*subclasses, *([wanted.functions] if wanted.functions and is_named else [])]) or "a function"
    )
