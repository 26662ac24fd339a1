"""Commented recipes to start from."""

import json
from collections.abc import Mapping
from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"


def starts() -> Mapping[str, str]:
    """What there is to start from: each name, with what it is in a line."""
    found = {}
    for path in sorted(TEMPLATES.glob("*.toml")):
        found[path.stem] = path.read_text(encoding="utf-8").splitlines()[1].lstrip("# ")
    return found


def start(template: str, name: str, data: str, *, are_images: bool) -> str:
    """The text of a recipe called `name`, on a file of arrays or a folder of pictures."""
    text = (TEMPLATES / f"{template}.toml").read_text(encoding="utf-8")
    source = TEMPLATES / "data" / ("images.toml" if are_images else "arrays.toml")
    table = source.read_text(encoding="utf-8").rstrip()
    path = json.dumps(data, ensure_ascii=False)  # a string of JSON is one of TOML, too
    return text.replace("@name@", name).replace("@data@", table.replace("@path@", path))
