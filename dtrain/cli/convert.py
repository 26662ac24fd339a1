"""dtrain convert: a model's weights as files for others."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from dtrain.cli.arguments import trust as trust_option
from dtrain.errors import DtrainError

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
SHARD_BYTES = 4 * 10**9


def size_of(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Bytes of a size such as 4GB or 500MB."""
    if text is None:
        return None
    found = SIZE.fullmatch(text.upper())
    size = 0 if found is None else int(float(found[1]) * UNITS[found[2]])
    if size < 1:
        raise click.BadParameter(f"{text!r} is not a size; 4GB, 500MB or a number of bytes would do")
    return size


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--model", metavar="NAME", help="Which model, where there are several.")
@click.option("--best", is_flag=True, help="Of a run, the best checkpoint instead of the newest.")
@click.option("--no-averages", is_flag=True, help="The model's own weights, not those of its average.")
@click.option("--dtype", type=click.Choice(["fp64", "fp32", "bf16", "fp16"]), help="Of all that are floats.")
@click.option(
    "--shard-bytes",
    metavar="SIZE",
    callback=size_of,
    help="Of each file in a folder: 500MB. [default: 4GB]",
)
@click.option(
    "--to", "library", type=click.Choice(["transformers", "diffusers"]), help="A folder for from_pretrained."
)
@click.option("--force", is_flag=True, help="Replace what was written there before.")
@trust_option
def convert(
    checkpoint: Path,
    out: Path,
    model: str | None,
    best: bool,
    no_averages: bool,
    dtype: Any,
    shard_bytes: int | None,
    library: Any,
    force: bool,
    trust: Sequence[str],
) -> None:
    """Write a model's weights, of a checkpoint or the newest one of a run, as files that others open.

    OUT is one file, if its name ends in .safetensors, or else a folder of files with an index, as Hugging
    Face's tools have them. Names are those in the model: 3.weight. With --to a model of transformers or
    diffusers is built (imported from what --trust names) and saved with its configuration. OUT appears whole
    or not at all.
    """
    from dtrain.checkpoint.convert import appearing, is_file, weights_of, write_file, write_shards
    from dtrain.cli.tables import bytes_text
    from dtrain.cli.trust import trust_of
    from dtrain.format.checkpoints import glance_at
    from dtrain.format.runs import checkpoint_at
    from dtrain.spec.words import in_line

    if is_file(out) and (library is not None or shard_bytes is not None):
        said = "--to" if library is not None else "--shard-bytes"
        raise DtrainError(
            f"{said} is for a folder, and {out} is a file; a name without .safetensors would do"
        )
    opened = glance_at(checkpoint_at(checkpoint, best=best))
    if opened.path.resolve() in (out.resolve(), *out.resolve().parents):
        raise DtrainError(f"{out} would lie in the checkpoint itself; another place would do")
    weights = weights_of(opened, model, averages=not no_averages, dtype=dtype)
    with appearing(out, force=force) as place:
        if is_file(out):
            write_file(weights, place, weights.planned())
        else:
            place.mkdir()
            if library is None:
                write_shards(weights, place, shard_bytes or SHARD_BYTES)
            else:
                from dtrain.checkpoint.pretrained import write_pretrained

                trusted = trust_of(True, trust)
                most = shard_bytes or SHARD_BYTES
                write_pretrained(opened, weights, place, library=library, shard_bytes=most, trust=trusted)
    of = "the average of " * (weights.source["weights"] == "average")
    size = bytes_text(sum(each.size for each in weights.planned()))
    click.echo(f"wrote {in_line(out)}: {of}{in_line(weights.model)} at step {opened.step:,}, {size}")
