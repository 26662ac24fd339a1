"""The loop. It yields what happens; whoever wants to watch iterates."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from dtrain.backends.torch_schedules import Settings
from dtrain.checkpoint.write import Content, keep
from dtrain.diverged import check, count, turn_of
from dtrain.engines.base import Measured, Update
from dtrain.engines.together import agreed, wait_for_all
from dtrain.evaluation import evaluate
from dtrain.events import Asked, Evaluated, Event, Finished, Saved, Started, Stepped, Stopped
from dtrain.format.files import canonical
from dtrain.recipe.write import to_toml
from dtrain.run import Run
from dtrain.sampling import sample
from dtrain.spec.averages import StochasticAverage
from dtrain.stopping import nobody
from dtrain.systems.base import Phase, distinct, updates_before

LOOK = 100  # steps, after which at the latest it is looked whether all numbers are finite


def train(run: Run, stopping: Callable[[], Asked | None] = nobody) -> Iterator[Event]:
    """Run until the recipe's last step. A step is one pass over the system's phases.

    `stopping` is asked after each step, and says the same on all ranks: what asks to save and end early, a
    signal or the time; None to go on. Raises DivergedError where a loss or a gradient is not finite, naming
    the first step at which it was so, CheckpointError where a checkpoint cannot be written; what was saved
    before stays. RankError where one rank failed, or some: all of them end, and what failed has been printed.
    """
    try:
        for event in events(run, stopping):
            run.position.at("telling trackers, or in the script's own code", is_long=True)
            yield event
    except Exception as error:
        run.lookout.failed(error)  # before all is closed, which may take its time
        raise


def events(run: Run, stopping: Callable[[], Asked | None]) -> Iterator[Event]:
    """The loop itself."""
    phases, every = run.system.phases(), run.recipe.every
    labels = distinct(phase.label for phase in phases)
    updates = updates_before(phases, run.step)
    clock = Clock()
    measured: dict[str, Measured] = {}  # the latest update of each phase since the last log
    usual: set[tuple[str, int]] = set()  # phases, with sizes, that were computed before
    if run.evaluation is not None:  # what is wrong with metrics is said now, not hours later
        names = evaluate(run.evaluation, batches=1)
        run.schedules.check(names)
        run.best.check(names)
    yield Started(run.step, run.total, run.recipe.train.batch_size)
    while run.step < run.total and not run.best.is_stale:
        done, is_last = run.step + 1, run.step + 1 == run.total
        logs, saves = due(every.log, done, is_last), due(every.save, done, is_last)
        evaluates = run.evaluation is not None and due(every.evaluate, done, is_last)
        samples = due(every.sample, done, is_last)
        for label, phase in zip(labels, phases, strict=True):
            if run.step % phase.every:
                continue
            settings = {name: run.schedules.at(name, run.step) for name in phase.updates}
            for _ in range(phase.repeat):
                # One that is not of every step may be the latest when its turn to be logged comes.
                update = make_update(run, phase, updates, settings, measure=logs or phase.every > 1)
                is_first = (label, update.size) not in usual
                run.position.load(run.step, updates, label, phase.updates, is_first=is_first)
                batches = run.loader.load(updates)
                run.position.train("forward and backward", is_first=is_first)
                measured[label] = run.engine.update(update, batches)
                usual.add((label, update.size))
                count(run, measured[label])
                updates += 1
                clock.examples += update.size
            clock.rates |= {name: each["lr"] for name, each in settings.items()}
        run.engine.stepped(run.step)
        run.step = done
        run.recorder.note(done)
        asked = None if is_last else stopping()
        saves = saves or asked is not None
        if logs or evaluates or samples or saves or done % LOOK == 0:
            check(run, weights=saves)
            run.recorder.flush()
        yield Stepped(done, {**measure(run, measured), **clock.read()} if logs else {})
        yield from saved(run, waits=False)
        if logs:
            measured.clear()

        if evaluates or samples:
            refresh(run)
        if evaluates and run.evaluation is not None:
            evaluated = evaluate(run.evaluation)
            # Of the one that only the end brings nothing may depend: a longer run has none at this step.
            is_regular = due(every.evaluate, done, is_last=False)
            if is_regular:
                run.schedules.observe(evaluated)
            is_best = run.best.observe(done, evaluated, waits=is_regular)
            if evaluated:
                yield Evaluated(done, evaluated)
            is_last = is_last or run.best.is_stale
            samples = samples or is_last
            if (is_best or is_last) and not saves:
                check(run, weights=True)
                saves = True
        if samples:
            yield from sample(run)
        if saves:
            refresh(run)
            yield from saved(run, waits=True)  # of two at once the second waits
            begin_save(run)
            if asked is not None and not is_last:
                for event in saved(run, waits=True):
                    yield event
                    yield Stopped(done, event.path, asked)
                return
        if evaluates or samples or saves:
            clock.restart()
    yield from saved(run, waits=True)
    yield Finished(run.step, run.skipped, run.best.why_stale)


def due(period: int, step: int, is_last: bool) -> bool:
    """Whether something that happens every `period` steps (0: never but at the end) happens after `step`."""
    return is_last or (period > 0 and step % period == 0)


def make_update(
    run: Run, phase: Phase, number: int, settings: Mapping[str, Settings], *, measure: bool
) -> Update:
    """What all ranks know of the update with this number."""
    size = run.order.size(number)
    return Update(
        phase=phase,
        key=(run.recipe.seed, "update", number),
        step=run.step,
        pace=run.pace,
        size=size,
        micro_batches=-(-size // run.recipe.train.micro),
        settings=settings,
        measure=measure,
    )


def refresh(run: Run) -> None:
    """Take anew, where its weights are others by now, the statistics of an average's batch normalisations.

    From training batches, the first of the run: so they are the same at whatever step somebody asks.
    """
    phases = run.system.phases()
    for name in run.engine.stale():
        spec = run.recipe.averages[name]
        assert isinstance(spec, StochasticAverage)
        turns = ((number, turn_of(phases, number).phase) for number in itertools.count())
        own = ((number, phase) for number, phase in turns if name in phase.updates)
        made = (
            (make_update(run, phase, number, {}, measure=False), run.loader.load(number))
            for number, phase in itertools.islice(own, spec.batches or run.order.updates_per_epoch)
        )
        run.engine.take_statistics(name, made)


def measure(run: Run, measured: Mapping[str, Measured]) -> dict[str, float]:
    """Losses, terms and gradient norms, and how many updates were skipped if any may be."""
    metrics: dict[str, float] = {}
    for label, update in measured.items():
        terms = {f"{label}/{name}": value for name, value in run.engine.mean(update.terms).items()}
        norms = {f"{name}/grad_norm": float(norm) for name, norm in update.norms.items()}
        metrics |= terms | norms
    return metrics | ({"skipped": run.skipped} if run.recipe.train.on_nonfinite == "skip" else {})


def begin_save(run: Run) -> None:
    """Copy the state; it is written while the loop goes on. Then those are deleted that need not stay."""
    run.position.long("copying the state for a checkpoint")
    content = Content(run.step, to_toml(run.recipe), canonical(run.state()), run.environment, run.origin)
    kept = run.kept()
    if run.mirror is not None:
        run.mirror.owe()

    def then(checkpoint: Path) -> None:
        run.recorder.saved(content.step, checkpoint)  # before it is copied, which may fail
        if run.engine.rank == 0:
            keep(run.folder, kept)
        if run.mirror is not None:
            run.mirror.update(kept)

    run.writer.begin(run.engine, content, then)


def saved(run: Run, *, waits: bool) -> Iterator[Saved]:
    """The checkpoint that has become whole, if any. Raises CheckpointError if it cannot be written."""
    writing = partial(run.position.long, "writing a checkpoint")
    if waits:
        writing()
    if waits and run.is_copied:  # which may take rank 0 its time
        wait_for_all(run.engine, run.writer.is_idle, writing)
        found = agreed(run.engine, partial(run.writer.finished, waits=True))
    else:
        found = run.writer.finished(waits=waits)
    if found is not None:
        yield Saved(*found)


class Clock:
    """Examples a second since the last look, and the learning rates of the step."""

    def __init__(self) -> None:
        self.rates: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Begin to count again: what was not training does not count."""
        self.examples, self.since = 0, time.perf_counter()

    def read(self) -> dict[str, float]:
        """`model/lr` and `examples_per_second`, and begin to count again."""
        speed = self.examples / max(time.perf_counter() - self.since, 1e-9)
        self.restart()
        return {f"{name}/lr": rate for name, rate in self.rates.items()} | {"examples_per_second": speed}
