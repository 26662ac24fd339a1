"""The commands by name, and how a command ends."""

import os
import sys

import click
import typer

from dtrain.cli.check import check
from dtrain.cli.run import run
from dtrain.cli.show import show
from dtrain.errors import DtrainError

MISTAKE, INTERRUPTED = 2, 130

app = typer.Typer(
    help="Train systems of several models from one TOML recipe, on one device or many.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (run, check, show):
    app.command()(command)


def main(arguments: list[str]) -> int:
    """Carry out a command and return its exit status: 2 for a user's mistake, which is said in words.

    Where torch was used the process ends here: the interpreter's own end can abort under gloo's threads.
    """
    code = carry_out(arguments)
    if "torch" in sys.modules:
        from dtrain.engines.processes import leave

        leave(code)
    return code


def carry_out(arguments: list[str]) -> int:
    """Call the command and turn what it raises into words and an exit status."""
    try:
        return int(app(arguments, prog_name="dtrain", standalone_mode=False) or 0)
    except DtrainError as error:
        complain(str(error))
        return MISTAKE
    except click.ClickException as error:
        complain(f"{error.format_message()}; dtrain --help says what there is")
        return MISTAKE
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted; the same command carries on from the newest checkpoint")
        return INTERRUPTED


def complain(message: str) -> None:
    """Say a mistake on stderr, once for each machine: all of its ranks have found the same."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"dtrain: {message}", file=sys.stderr, flush=True)
