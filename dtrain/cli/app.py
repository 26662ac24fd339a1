"""The commands by name, and how a command ends."""

import os
import sys
import traceback

import click

from dtrain.cli.check import check
from dtrain.cli.convert import convert
from dtrain.cli.diff import diff
from dtrain.cli.ending import DEFECT, INTERRUPTED, complain, refuse
from dtrain.cli.evaluate import evaluate
from dtrain.cli.explain import explain
from dtrain.cli.inspect import inspect
from dtrain.cli.launch import launch
from dtrain.cli.mistakes import as_text
from dtrain.cli.new import new
from dtrain.cli.reproduce import reproduce
from dtrain.cli.run import run
from dtrain.cli.runs import runs
from dtrain.cli.schema import schema
from dtrain.cli.show import show
from dtrain.cli.sweep import sweep
from dtrain.cli.verify import verify
from dtrain.errors import DtrainError, RankError, RecipeError, RecipeErrors


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def app() -> None:
    """Train systems of several models from one TOML recipe, on one device or many."""


for command in (
    run,
    runs,
    sweep,
    launch,
    evaluate,
    verify,
    reproduce,
    inspect,
    convert,
    check,
    explain,
    show,
    diff,
    new,
    schema,
):
    app.add_command(command)


def main(arguments: list[str]) -> int:
    """Carry out a command and return its exit status: 2 for a user's mistake, which is said in words.

    Where torch was used the process ends here: the interpreter's own end can abort under gloo's threads.
    """
    if "--untrusted" not in arguments:
        sys.path.append(os.getcwd())  # where a recipe's own classes are found, as with `python -m dtrain`
    code = carry_out(arguments)
    if "torch" in sys.modules:
        from dtrain.world.processes import leave

        leave(code)
    return code


def carry_out(arguments: list[str]) -> int:
    """Call the command and turn what it raises into words and an exit status."""
    try:
        return int(app(arguments or ["--help"], prog_name="dtrain", standalone_mode=False) or 0)
    except RecipeErrors as mistakes:
        return refuse(as_text(mistakes, with_lines=sys.stderr.isatty()), name="")
    except RecipeError as error:
        return refuse(as_text(RecipeErrors([error], "dtrain"), with_lines=sys.stderr.isatty()), name="")
    except RankError as error:  # it was told by the rank that failed
        return error.status
    except DtrainError as error:
        return refuse(str(error), is_shared=error.is_shared)
    except click.UsageError as error:
        said = error.format_message()
        command = "dtrain" if error.ctx is None else error.ctx.command_path
        return refuse(
            said if said.endswith("?") else f"{said.rstrip('.')}; {command} --help says what there is"
        )
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted; the same command carries on from the newest checkpoint, if there is one")
        return INTERRUPTED
    except Exception:  # ours to mend; the other ranks wait until this one has ended
        traceback.print_exc()
        return DEFECT
