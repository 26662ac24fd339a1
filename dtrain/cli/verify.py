"""dtrain verify: whether checkpoints are what they say."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import click

from dtrain.cli.ending import MISTAKE

if TYPE_CHECKING:
    from dtrain.checkpoint.verify import Report

SHOWN = 100  # problems of a checkpoint that are printed; --json has all
LARGE = 1 << 28  # bytes after which progress is shown
SECONDS = 0.2  # between two looks of it


@click.command()
@click.argument("path", metavar="CHECKPOINT|RUN|FOLDER", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print all that was found as JSON.")
def verify(path: Path, as_json: bool) -> int:
    """Check every byte of a checkpoint, of each of a run, or of each of all runs in a folder; at a URL, too.

    Files and tensors are compared with the hashes in the manifest, tensors with the recipe's models,
    optimizers and averages. Nothing is imported or carried out. Ends with 0 if all is whole, and else with 2
    and every problem there is.
    """
    from dtrain.checkpoint.verify import verify as check

    reports = []
    for where, checkpoint in checkpoints_of(path):
        with Progress(checkpoint.name) as progress:
            reports.append(called(where, check(checkpoint, progress.advance)))
        if not as_json:
            click.echo("\n".join(lines(reports[-1])))
    if as_json:
        click.echo(json.dumps([table(report) for report in reports], indent=2))
    elif len(reports) > 1:
        whole = sum(report.is_whole for report in reports)
        click.echo(f"{whole} of {len(reports)} checkpoints are whole")
    return 0 if all(report.is_whole for report in reports) else MISTAKE


def checkpoints_of(path: Path) -> Iterator[tuple[Path | str, Path]]:
    """The checkpoint that a path names, or all of a run, or of the runs in a folder: where, and its files.

    Of a URL these are copies. Raises CheckpointError if there is none, or one cannot be fetched.
    """
    from dtrain.format.addresses import address
    from dtrain.format.checkpoints import checkpoints_in, is_checkpoint
    from dtrain.format.runs import none_at, runs_in

    where = address(path)
    if isinstance(where, str):
        from dtrain.format.remote import each_fetched

        yield from each_fetched(where)
        return
    path = where
    if is_checkpoint(path):
        inside = [path]
    else:
        runs = [path] if checkpoints_in(path) else reversed(runs_in(path))
        inside = [checkpoint for run in runs for checkpoint in checkpoints_in(run)]
    if not inside:
        raise none_at(path)
    yield from zip(inside, inside, strict=True)


def called(where: Path | str, report: "Report") -> "Report":
    """A report that names where the checkpoint lies, instead of a copy of it."""
    own, named = str(report.path), str(where)
    problems = (each._replace(message=each.message.replace(own, named)) for each in report.problems)
    remarks = (each.replace(own, named) for each in report.remarks)
    return replace(report, path=where, problems=tuple(problems), remarks=tuple(remarks))


def lines(report: "Report") -> Iterator[str]:
    """What is printed of a checkpoint: every problem, what else there is to say, and how it stands."""
    from dtrain.cli.tables import bytes_text
    from dtrain.spec.words import visible

    for problem in report.problems[:SHOWN]:
        yield visible(problem.message).replace("\n", "\\n")
    if len(report.problems) > SHOWN:
        yield f"and {len(report.problems) - SHOWN:,} more, which --json has"
    for remark in report.remarks[:SHOWN]:
        yield f"note: {visible(remark)}"
    count = len(report.problems)
    state = "whole" if report.is_whole else f"damaged ({count:,} problem{'s' * (count > 1)})"
    looked = f"{report.files} files, {report.tensors:,} tensors, {bytes_text(report.size)}"
    yield f"{report.path}  {state}: {looked} in {report.seconds:.1f} s"


def table(report: "Report") -> dict[str, object]:
    """The same as JSON has it."""
    return {
        "checkpoint": str(report.path),
        "whole": report.is_whole,
        "problems": [problem._asdict() for problem in report.problems],
        "remarks": list(report.remarks),
        "files": report.files,
        "tensors": report.tensors,
        "bytes": report.size,
        "seconds": round(report.seconds, 3),
    }


class Progress:
    """How much was read, and how fast, on a terminal's last line; a `with` resource."""

    def __init__(self, name: str):
        self.name = name
        self.read, self.shown = 0, 0.0
        self.started = time.monotonic()
        self.is_seen = sys.stderr.isatty()
        self._lock = Lock()

    def advance(self, count: int) -> None:
        """So many more bytes were read, by whatever thread."""
        with self._lock:
            self.read += count
            now = time.monotonic()
            if self.is_seen and self.read > LARGE and now - self.shown > SECONDS:
                self.shown = now
                speed = self.read / (now - self.started) / 1e9
                sys.stderr.write(f"\r{self.name}  {self.read / 1e9:.1f} GB read, {speed:.1f} GB/s \x1b[K")
                sys.stderr.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
