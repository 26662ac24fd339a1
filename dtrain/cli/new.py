"""dtrain new: a commented recipe to start from."""

import os
import re
from pathlib import Path

import click

from dtrain.cli.schema import FILE
from dtrain.errors import DtrainError

NOWHERE = "data/pictures.npz"  # what the recipe says where nobody said where the data lies


@click.command()
@click.argument("name")
@click.option("--from", "template", metavar="START", is_flag=False, flag_value="", help="What to start from.")
@click.option("--data", type=click.Path(path_type=Path), help="A file of arrays, or a folder of pictures.")
def new(name: str, template: str | None, data: Path | None) -> None:
    """Write NAME.toml, a commented recipe to start from.

    Without --from, or with one that there is not, it lists what there is. The schema with which editors
    complete and check recipes is written beside it.
    """
    from dtrain.recipe.schema import schema_text
    from dtrain.recipe.starting import start

    known = _known(template)
    path = Path(f"{name.removesuffix('.toml')}.toml")
    _check_name(path)
    where = NOWHERE if data is None else _from(path.parent, data)
    text = start(known, path.stem, where, are_images=data is not None and data.is_dir())
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise DtrainError(f"{path} is there already; another name would do") from None
    except OSError as error:
        raise DtrainError(f"{path} cannot be written: {error.strerror}") from None
    beside = path.with_name(FILE)
    if not beside.exists():
        beside.write_text(schema_text(), encoding="utf-8")
    click.echo(f"wrote  {path}")
    if data is None:
        click.echo(f"then   set data.path in it, which is {NOWHERE!r} now")
    click.echo(f"then   dtrain check {path}\nthen   dtrain run {path}")


def _known(template: str | None) -> str:
    """The name of a template. Raises DtrainError with all of them if there is none of that name."""
    from dtrain.recipe.starting import starts
    from dtrain.spec.words import nearest

    there = starts()
    if template is not None and template in there:
        return template
    near = nearest(template, there) if template else None
    hint = "" if near is None else f'; did you mean "{near}"?'
    said = f'there is no "{template}" to start from{hint}' if template else "--from says what to start from"
    lines = [f"  {name:<12}{about}" for name, about in there.items()]
    raise DtrainError("\n".join([said, *lines]))


def _check_name(path: Path) -> None:
    from dtrain.spec.decode import split
    from dtrain.spec.table import Name

    (rule,) = split(Name)[1]
    if not re.fullmatch(rule.pattern, path.stem):
        raise DtrainError(f'"{path.stem}" cannot be the name of a recipe; {rule.words} would do')


def _from(folder: Path, data: Path) -> str:
    """The data's path as a recipe in a folder writes it. Raises DtrainError if it is not there or no data."""
    from dtrain.recipe.texts import near_path

    if not data.exists():
        near = near_path(data, str(data))
        raise DtrainError(f"{data} does not exist" + ("" if near is None else f'; did you mean "{near}"?'))
    if data.is_file() and data.suffix not in (".npz", ".safetensors"):
        raise DtrainError(f"{data} is no data; an .npz or .safetensors file or a folder of pictures would do")
    return data.as_posix() if data.is_absolute() else Path(os.path.relpath(data, folder)).as_posix()
