"""Trains a checkpoint's recipe again and compares all bits on the way with what its run has recorded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dtrain.checkpoint.read import Checkpoint, checkpoints_in, step_of
from dtrain.checkpoint.record import Noted, Record, Recorder, read_record
from dtrain.checkpoint.snapshot import Snapshot
from dtrain.checkpoint.tensor_files import bytes_of
from dtrain.checkpoint.write import Content
from dtrain.engines.base import Engine
from dtrain.events import Stepped
from dtrain.format.checkpoints import glance_at, read_recipe
from dtrain.format.files import RECIPE, hash_of
from dtrain.format.lines import whole_lines
from dtrain.loop import LOOK, refresh, train
from dtrain.run import Run

Hashes = Mapping[str, str]  # by part and name: "models/generator/3.weight"


@dataclass(frozen=True)
class Claim:
    """What is known of the run that a checkpoint came from, and will be held against a second training."""

    checkpoint: Checkpoint
    saved: Mapping[int, Hashes]  # of all tensors, by step
    record: Record | None  # of a checkpoint that lies in its run's folder
    altered: Mapping[int, tuple[str, ...]]  # by step what is no longer as the run recorded it when it saved
    metrics: Mapping[int, Mapping[str, float]]  # logged by step: finer than checkpoints, where digests lack
    recipe: str  # the run's; "" of a checkpoint that lies elsewhere

    @cached_property
    def has_digests(self) -> bool:
        """Whether the state after each step is known, and not that of checkpoints alone."""
        return self.record is not None and next(self.record.digests(), None) is not None

    @property
    def lives(self) -> list[tuple[int, Mapping[str, Any]]]:
        """From which step on the run was where, the last time that it was there."""
        return [] if self.record is None else list(self.record.lives)


@dataclass(frozen=True)
class Compared:
    """One comparison with what was recorded of the state after `step`."""

    step: int
    by: Literal["hashes", "digests", "metrics"]
    count: int  # of tensors, or of metrics
    differing: tuple[str, ...] = ()  # names of those that differ, first the models that a step updates first
    equal_until: int = 0  # the last step before, at which all was the same


def claim_of(checkpoint: Checkpoint) -> Claim:
    """What a checkpoint's run has left: record, metrics, other checkpoints.

    Raises DtrainError if they cannot be read.
    """
    own = {checkpoint.step: dict(checkpoint.manifest["tensors"])}
    if checkpoint.path.parent.name != "checkpoints":
        return Claim(checkpoint, own, None, {}, {}, "")
    run = checkpoint.path.parent.parent
    record = read_record(run)
    found = {step_of(path): dict(glance_at(path).manifest["tensors"]) for path in checkpoints_in(run)}
    altered = {
        step: names
        for step, hashes in {**found, **own}.items()
        if step in record.saved and (names := differing(record.saved[step], hashes))
    }
    saved = {**record.saved, **found, **own}
    recipe = read_recipe(run) if (run / RECIPE).is_file() else ""
    return Claim(checkpoint, saved, record, altered, _logged(run / "metrics.jsonl"), recipe)


def _logged(path: Path) -> dict[int, dict[str, float]]:
    """What was logged of each step, without what is the machine's."""
    found: dict[int, dict[str, float]] = {}
    for _, line in whole_lines(path) if path.is_file() else ():
        own = {name: value for name, value in line.items() if isinstance(value, float) and "/" in name}
        found.setdefault(line["step"], {}).update(own)
    return found


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str, ...]:
    """The names under which two tables do not have the same, in their order."""
    return tuple(name for name in dict.fromkeys([*first, *second]) if first.get(name) != second.get(name))


def reproduce(run: Run, claim: Claim, until: int) -> Iterator[Compared]:
    """Train until a step, and compare on the way; it ends with the first comparison that shows a difference.

    Every rank yields the same. Nothing is saved.
    """
    comparison = Comparison(claim) if run.engine.rank == 0 else None
    run.recorder = Recorder(run.engine, comparison, every_step=claim.has_digests)
    run.writer = Unwritten()
    equal_until = run.step
    for event in train(run):
        if not isinstance(event, Stepped):
            continue
        step, ends = event.step, event.step == until
        is_saved = step in claim.saved
        if claim.has_digests and (ends or is_saved or step % LOOK == 0):
            run.recorder.flush()
            found = run.engine.share(None if comparison is None else comparison.found)
            if found is not None:
                at, names, count, before = found
                yield Compared(at, "digests", count, in_turn(run, names), equal_until=before)
                return
        is_compared = is_saved or claim.has_digests
        if not is_compared and (names := _otherwise_logged(event, claim)):
            yield Compared(step, "metrics", len(event.metrics), names, equal_until=equal_until)
            return
        if is_saved:
            refresh(run)
            names = differing(own := hashes_of(run.engine), claim.saved[step])
            yield Compared(step, "hashes", len(own), in_turn(run, names), equal_until=equal_until)
            if names:
                return
        if is_saved or event.metrics:
            equal_until = step
        if ends:
            return


def in_turn(run: Run, names: Sequence[str]) -> tuple[str, ...]:
    """Names of tensors in the order in which a step updates their models: what differs first comes first."""
    models = dict.fromkeys(name for phase in run.system.phases() for name in phase.updates)
    turns = {model: turn for turn, model in enumerate(models)}
    return tuple(sorted(names, key=lambda name: turns.get(name.split("/")[1], -1)))


def _otherwise_logged(event: Stepped, claim: Claim) -> tuple[str, ...]:
    """Metrics of a step that are not as the run logged them; nothing where it has logged none."""
    logged = claim.metrics.get(event.step, {})
    return tuple(name for name, value in event.metrics.items() if name in logged and logged[name] != value)


class Comparison:
    """Holds the digests of a run's steps against those that it recorded, both in order."""

    def __init__(self, claim: Claim):
        self._recorded = iter(()) if claim.record is None else claim.record.digests()
        self._next = next(self._recorded, None)
        self._same_at = 0  # the last step that was compared
        self.found: tuple[int, tuple[str, ...], int, int] | None = None  # step, names, of how many, same at

    def noted(self, noted: Noted) -> None:
        """Compare a step; one of which nothing was recorded is left out."""
        while self._next is not None and self._next.step < noted.step:
            self._next = next(self._recorded, None)
        if self.found is not None or self._next is None or self._next.step != noted.step:
            return
        if names := differing(noted.digests, self._next.digests):
            self.found = noted.step, names, len(noted.digests), self._same_at
        self._same_at = noted.step

    def saved(self, step: int, checkpoint: Path) -> None:
        """Nothing is saved."""


class Unwritten:
    """In place of a run's writer: nobody needs the checkpoints of a second training."""

    def begin(self, engine: Engine, content: Content, then: Any) -> None:
        """Write nothing."""

    def is_idle(self, seconds: float) -> bool:
        """Nothing ever is."""
        return True

    def finished(self, *, waits: bool) -> None:
        """Nothing became whole."""


def hashes_of(engine: Engine) -> dict[str, str]:
    """The hashes of all tensors, as a manifest has them. Collective: each rank takes its share."""
    snapshot = Snapshot()
    shards = snapshot.take(engine, shard_bytes=1 << 62)
    snapshot.wait()
    own = {
        f"{shard.part}/{name}": hash_of(bytes_of(snapshot[shard.part, name]))
        for shard in shards
        if shard.rank == engine.rank
        for name in shard.names
    }
    gathered = {name: digest for each in engine.gather(own) for name, digest in each.items()}
    order = [f"{part}/{name}" for part, name, _ in engine.sizes()]
    return {name: gathered[name] for name in order}
