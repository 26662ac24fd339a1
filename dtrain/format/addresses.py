"""Where copies of runs may lie: in folders, or at URLs."""

import os
import re
from pathlib import Path

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
