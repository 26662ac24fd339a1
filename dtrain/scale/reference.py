"""The generated parts of docs/scale.md, made of the types that scale files are read by.

`python -m dtrain.scale.reference docs/scale.md` writes them anew, each between its two marks.
"""

import sys
from pathlib import Path

from dtrain.recipe.descriptions import paragraphs, source
from dtrain.recipe.reference import family, renewed, rows
from dtrain.scale.tables import Activations, Compile, Parallel, Scale


def parts() -> dict[str, str]:
    """Every generated part by name, in Markdown."""
    return {
        "scale": rows(Scale),
        "engines": "\n".join(family(Parallel)),
        "compile": section(Compile),
        "activations": section(Activations),
    }


def section(cls: type) -> str:
    """What a table says of itself, and its keys."""
    said = [*paragraphs(cls), *([f"Source: {source(cls)}"] if source(cls) else [])]
    return "\n\n".join([*said, rows(cls)])


def main(arguments: list[str]) -> None:
    """Write the generated parts of a file anew."""
    (path,) = map(Path, arguments)
    path.write_text(renewed(path.read_text(encoding="utf-8"), parts()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
