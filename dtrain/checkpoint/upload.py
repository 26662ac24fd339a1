"""The copy of a run elsewhere, kept the same as the run: what is missing there is sent, the manifest last."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from dtrain.checkpoint.read import checkpoints_in, step_of
from dtrain.errors import CheckpointError
from dtrain.format.files import MANIFEST, ORIGIN, PARTIAL, RECIPE, RECORD, UNSENT, write_synced
from dtrain.format.metrics import METRICS
from dtrain.format.remote import place, steps_in
from dtrain.format.stores import Store


class Mirror:
    """Copies one run; one thread at a time. `check` raises CheckpointError if the copy is another's now."""

    def __init__(self, store: Store, run: Path, check: Callable[[], None]):
        self._store, self._run, self._check = store, run, check
        self._same: set[int] = set()  # steps whose checkpoints are known to be the same here and there
        self._whole: dict[int, bool] = {}  # of other steps there: whether they have a manifest

    @property
    def where(self) -> str:
        """The address of the copy."""
        return self._store.at(self._run.name)

    def begin(self) -> None:
        """Send what it began from, and the recipe, by which it is found; a failure is told at once."""
        for name in (ORIGIN, RECIPE):
            own, there = self._run / name, f"{self._run.name}/{name}"
            if own.exists() and self._store.read(there) != own.read_bytes():
                self._store.send(own, there)

    def owe(self) -> None:
        """Note in the run's folder that something is to be sent, until it has been."""
        try:
            write_synced(self._run / UNSENT, b"")
        except OSError as error:
            raise CheckpointError(f"{self._run / UNSENT} cannot be written: {error}") from None

    def update(self, kept: Callable[[Sequence[int]], set[int]]) -> None:
        """Send what is missing there, then delete there what need not stay by `kept`, of steps in order.

        What is there of later steps than here is left alone, as this run has not come so far. Raises
        CheckpointError if the place does not answer for a minute or refuses; what is there stays whole.
        """
        try:
            self._update(kept)
            (self._run / UNSENT).unlink(missing_ok=True)
        except OSError as error:  # of the files here
            raise CheckpointError(f"{self._run} cannot be copied to {self.where}: {error}") from None

    def _update(self, kept: Callable[[Sequence[int]], set[int]]) -> None:
        here = checkpoints_in(self._run)
        there = steps_in(self._store, self._run.name)
        missing = [path for path in here if not self._is_there(path, there)]
        if missing:
            for name in (METRICS, RECORD):
                self._send_as_it_is(name)
        for path in missing:
            self._check()
            self._store.send_checkpoint(path, place(self._run.name, step_of(path)))
            self._same.add(step_of(path))
        if here:
            self._sweep(there, here, kept)

    def _is_there(self, checkpoint: Path, there: Sequence[int]) -> bool:
        step = step_of(checkpoint)
        if step not in there:
            self._same.discard(step)
        elif step not in self._same:
            manifest = self._store.read(f"{place(self._run.name, step)}/{MANIFEST}")
            if manifest == (checkpoint / MANIFEST).read_bytes():
                self._same.add(step)
        return step in self._same

    def _sweep(
        self, there: Sequence[int], here: Sequence[Path], kept: Callable[[Sequence[int]], set[int]]
    ) -> None:
        own = {step_of(path) for path in here}
        others = [step for step in there if step not in own and step < max(own)]
        whole = [step for step in others if self._is_whole(step)]
        stay = kept(sorted({*own, *whole}))
        for step in others:
            if step not in stay or step not in whole:
                self._check()
                self._store.remove(place(self._run.name, step))
                self._whole.pop(step, None)
                self._same.discard(step)

    def _is_whole(self, step: int) -> bool:
        if step not in self._whole:
            is_own = step in self._same  # it was sent, and needed to stay there, but not here
            self._whole[step] = is_own or MANIFEST in self._store.entries(place(self._run.name, step))
        return self._whole[step]

    def _send_as_it_is(self, name: str) -> None:
        """Send a file as it is now: the run goes on writing it."""
        if not (self._run / name).exists():
            return
        copy = self._run / PARTIAL / name
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(self._run / name, copy)
        self._store.send(copy, f"{self._run.name}/{name}")
        copy.unlink()
