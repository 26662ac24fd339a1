"""Where copies of runs may lie: in folders, or at URLs."""

import os
import re
import sys
from collections.abc import Collection
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from dtrain.errors import CheckpointError

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
PASSWORD = re.compile(r"[a-z0-9+.-]+://[^/@]*:[^/@]*@")
LOCAL = ("file", "local")  # whose URLs are folders


def address(given: str | Path) -> Path | str:
    """The folder, or the URL, that is meant. Of a URL that became a `Path` the slashes are mended.

    Raises CheckpointError of a URL with parts (`..`) that would lead out of a folder of that name here.
    """
    found = URL.fullmatch(os.fspath(given))
    if found is None:
        return Path(given)
    scheme, rest = found[1].lower(), found[2].rstrip("/")
    if scheme in LOCAL:
        return Path("/", rest)
    if {".", ".."} & {*rest.split("/")}:
        raise CheckpointError(f"{scheme}://{rest} has parts that lead elsewhere; one without would do")
    return f"{scheme}://{rest}"


def for_copies(given: Path) -> Path | str:
    """The same of where a recipe says that copies go. Raises ValueError where it should not say so."""
    try:
        where = address(given)
    except CheckpointError as error:
        raise ValueError(str(error)) from None
    if "::" in str(where):
        raise ValueError(f"{where} is a chain of URLs; a single one would do")
    if isinstance(where, str) and PASSWORD.match(where):
        said = "found a password, which every checkpoint would have; what fsspec reads from"
        raise ValueError(f"{said} ~/.config/fsspec/ or the environment would do")
    return where


def unfit_for_copies(where: Path | str) -> tuple[str, Collection[str]]:
    """Why nothing can be copied there, as a look tells, and which schemes there are; "" if it can be."""
    if isinstance(where, str):
        scheme, known = where.partition(":")[0], schemes()
        return ("", ()) if scheme in known else (f"fsspec knows of no {scheme}://", known)
    above = next(path for path in (where, *where.parents) if os.path.exists(path))
    return ("" if above.is_dir() else f"{above} is no folder; one would do, or a URL"), ()


def schemes() -> Collection[str]:
    """Those of the URLs that fsspec and its plugins open.

    Read from the one file that lists them, as to import fsspec takes longer than all else of `dtrain check`.
    """
    from importlib.metadata import entry_points  # which takes its time, too

    listed = sys.modules.get("fsspec.registry") or _registry()
    return {*listed.known_implementations, *listed.registry, *entry_points(group="fsspec.specs").names}


def _registry() -> Any:
    package = find_spec("fsspec")
    assert package is not None  # torch asks for it
    assert package.origin is not None
    spec = spec_from_file_location("fsspec_registry", Path(package.origin).with_name("registry.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
