"""What all ranks of a run must have in common, compared before anything is built or trained.

Ranks with other recipes, code or data train on without an error, and to nothing.
"""

import hashlib
import json
import math
import os
import platform
import socket
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import dtrain
from dtrain.data.source import Examples
from dtrain.errors import LaunchError
from dtrain.recipe.compare import NOTHING, Difference, between
from dtrain.recipe.values import Recipe
from dtrain.recipe.write import encode
from dtrain.scale.tables import Scale
from dtrain.spec.words import written

Gather = Callable[[Any], list[Any]]  # every rank's value, by rank
PACKAGES = ("dtrain", "torch", "numpy", "accelerate", "deepspeed", "safetensors")
OWN = Path(dtrain.__file__).parent
MOST = 6  # differences that are shown
CLOSE = 1e-3  # relative; processors of several makes round differently
CODE = "code"  # the key under which modules that only one of two ranks has imported do not differ


def facts(recipe: Recipe, scale: Scale) -> dict[str, Any]:
    """What does not depend on the data: the recipe in full, the scale, versions and code."""
    return {
        "recipe": _without_folders(encode(recipe)),
        "scale": encode(scale),
        "version": versions(),
        CODE: {"dtrain": _hash_of_dtrain()} | dict(_hashes_of_modules()),
    }


def shapes(examples: Examples) -> dict[str, list[int]]:
    """The shape of each field, without the batch axis."""
    return {name: list(field.shape) for name, field in examples.fields.items()}


def contents(examples: Examples) -> dict[str, float]:
    """A sum of each field over the first, the middle and the last example: other data have others."""
    places = np.array(sorted({0, len(examples) // 2, len(examples) - 1}))
    batch = examples.fetch(places, 0)
    return {f"sum of {name} over examples {places.tolist()}": float(batch[name].sum()) for name in batch}


def agree(own: Mapping[str, Any], gather: Gather) -> None:
    """Raise LaunchError, on all ranks, where a rank's facts are not those of rank 0: with both values."""
    text = json.dumps(own, sort_keys=True, default=str)
    if len(set(gather(hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    said = gather([socket.gethostname(), json.loads(text)])
    (first_host, first), *others = said
    found: dict[tuple[Difference, ...], list[int]] = {}
    for rank, (_, table) in enumerate(others, 1):
        # What both have first: that another engine lacks options of this one says little.
        if different := tuple(sorted(_differences(first, table), key=_is_one_sided)):
            found.setdefault(different, []).append(rank)
    lines = [
        f"{_ranks(ranks, [said[rank][0] for rank in ranks])} differ{'s' * (len(ranks) == 1)} from rank 0 "
        f"(host {first_host}): {'; '.join(_described(each) for each in different[:MOST])}"
        + (f"; and {len(different) - MOST} more" if len(different) > MOST else "")
        for different, ranks in found.items()
    ]
    if lines:
        hint = "start all ranks with the same recipe, options, code and data"
        raise LaunchError("\n  ".join([*lines, hint]))


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    for each in between(first, second, ()):
        a, b = each.first, each.second
        if isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=CLOSE):
            continue
        if each.key.startswith(f"{CODE}.") and NOTHING in (a, b):
            continue
        yield Difference(each.key, _frozen(a), _frozen(b))


def _is_one_sided(each: Difference) -> bool:
    return NOTHING in (each.first, each.second)


def _described(each: Difference) -> str:
    what, _, key = each.key.partition(".")
    first, second = ("nothing" if side is NOTHING else side for side in (each.first, each.second))
    return f"{what} {key}: {second} instead of {first}"


def _frozen(value: Any) -> Any:
    return value if value is NOTHING else written(value)


def _ranks(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    names = ", ".join(dict.fromkeys(hosts))
    return f"rank{'s' * (len(ranks) > 1)} {shown} (host{'s' * (len(set(hosts)) > 1)} {names})"


def _without_folders(value: Any) -> Any:
    """A table in which of absolute paths only the name is left: machines may keep things elsewhere."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on; deepspeed is not everywhere."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@lru_cache(maxsize=1)
def _hash_of_dtrain() -> str:
    """Of all files of the package, which may be others though the version is the same."""
    digest = hashlib.sha256()
    for path in sorted(OWN.rglob("*.py")):
        digest.update(path.relative_to(OWN).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _hashes_of_modules() -> Iterator[tuple[str, str]]:
    """Of the user's own modules: all that are imported, but for the libraries and dtrain itself."""
    paths = sysconfig.get_paths()
    libraries = {Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        if libraries & set(path.parents) or OWN.resolve() in path.parents or not path.is_file():
            continue
        yield name, hashlib.sha256(path.read_bytes()).hexdigest()[:12]
