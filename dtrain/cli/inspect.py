"""dtrain inspect: what a checkpoint holds."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--best", is_flag=True, help="Of a run, the best checkpoint instead of the newest.")
@click.option("--tensors", is_flag=True, help="Print every tensor, too.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def inspect(checkpoint: Path, best: bool, tensors: bool, as_json: bool) -> None:
    """Print what a checkpoint holds, or the newest one of a run, and where it was made.

    All is read from its manifest and headers: nothing that it names is imported, no tensor's hash checked.
    """
    from dtrain.cli.contents import contents, lines
    from dtrain.cli.tables import finite
    from dtrain.format.runs import checkpoint_at

    found = contents(checkpoint_at(checkpoint, best=best), with_tensors=tensors)
    click.echo(json.dumps(finite(found), indent=2, allow_nan=False) if as_json else "\n".join(lines(found)))
