"""Where copies of runs may lie: in folders, or at URLs."""

import os
import re
from pathlib import Path

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
LOCAL = ("file", "local")  # whose URLs are folders


def address(given: str | Path) -> Path | str:
    """The folder, or the URL, that is meant. Of a URL that became a `Path` the slashes are mended."""
    found = URL.fullmatch(os.fspath(given))
    if found is None:
        return Path(given)
    scheme, rest = found[1].lower(), found[2].rstrip("/")
    return Path("/", rest) if scheme in LOCAL else f"{scheme}://{rest}"
