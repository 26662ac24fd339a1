"""Arguments that several commands share."""

from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from dtrain.world.position import HANG_TIMEOUT

F = TypeVar("F", bound=Callable[..., Any])

recipe = click.argument("recipe", type=click.Path(path_type=Path))
overrides = click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
set_files = click.option(
    "--set-file",
    "set_files",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A TOML file whose values take the place of the recipe's.",
)
untrusted = click.option(
    "--untrusted",
    is_flag=True,
    help="The recipe is a stranger's: import torch's and dtrain's own classes alone.",
)
trust = click.option(
    "--trust",
    metavar="PACKAGE",
    multiple=True,
    help="Let a stranger's recipe import classes of this package, too.",
)
scale = click.option(
    "--scale",
    "scale_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A TOML file that says how to run: which engine, and what makes it faster or smaller.",
)
hang_timeout = click.option(
    "--hang-timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=1),
    default=HANG_TIMEOUT,
    show_default=True,
    help="End all ranks when one does not move for so long while others wait for it, and say which.",
)


def a_recipe(command: F) -> F:
    """A command of one recipe: what names it, what takes the place of its values, what it may import."""
    return reduce(lambda inner, add: add(inner), (trust, untrusted, set_files, overrides, recipe), command)


def said_again(
    recipe: Path, overrides: Sequence[str], set_files: Sequence[Path], untrusted: bool, trust: Sequence[str]
) -> list[str]:
    """The words that say the same again, in a command of one recipe."""
    return [
        str(recipe),
        *overrides,
        *(part for file in set_files for part in ("--set-file", str(file))),
        *(["--untrusted"] if untrusted else []),
        *(part for package in trust for part in ("--trust", package)),
    ]
