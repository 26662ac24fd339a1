"""The loop. It yields what happens; whoever wants to watch iterates."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path

from dtrain.backends.torch_schedules import Settings
from dtrain.checkpoint.write import keep, write
from dtrain.data.loader import evaluation_batches
from dtrain.engines.base import Measured, Update
from dtrain.errors import DivergedError, DtrainError, RecipeError
from dtrain.events import Evaluated, Event, Finished, Sampled, Saved, Started, Stepped
from dtrain.pictures import save_grid
from dtrain.recipe.write import to_toml
from dtrain.run import Run, agreed
from dtrain.spec.words import nearest
from dtrain.systems.base import Batch, Logs, Models, Ops, Phase, updates_before


def train(run: Run) -> Iterator[Event]:
    """Run until the recipe's last step. A step is one pass over the system's phases.

    Raises DivergedError where a measured loss is no finite number, CheckpointError where a
    checkpoint cannot be written; what was saved before stays.
    """
    phases, every = run.system.phases(), run.recipe.every
    labels = distinct(phase.label for phase in phases)
    updates = updates_before(phases, run.step)
    clock = Clock()
    measured: dict[str, Measured] = {}  # the latest update of each phase since the last log
    if run.schedules.monitors:
        run.schedules.check(evaluate(run, 1))  # not hours later, at the first evaluation
    yield Started(run.step, run.total, run.recipe.train.batch_size)
    while run.step < run.total:
        done, is_last = run.step + 1, run.step + 1 == run.total
        logs, saves = due(every.log, done, is_last), due(every.save, done, is_last)
        evaluates = run.evaluation is not None and due(every.evaluate, done, is_last)
        for label, phase in zip(labels, phases, strict=True):
            if run.step % phase.every:
                continue
            settings = {name: run.schedules.at(name, run.step) for name in phase.updates}
            for _ in range(phase.repeat):
                # One that is not of every step may be the latest when its turn to be logged comes.
                measures = logs or saves or evaluates or phase.every > 1
                update = make_update(run, phase, updates, settings, measure=measures)
                measured[label] = run.engine.update(update, run.loader.load(updates))
                updates += 1
                clock.examples += update.size
            clock.rates |= {name: each["lr"] for name, each in settings.items()}
        run.step = done
        metrics = measure(run, measured) if logs or saves or evaluates else {}
        yield Stepped(done, {**metrics, **clock.read()} if logs else {})
        if logs:
            measured.clear()

        if evaluates:
            evaluated = evaluate(run)
            if due(every.evaluate, done, is_last=False):  # or a run and a longer one would part at this step
                run.schedules.observe(evaluated)
            saves = take_best(run, evaluated) or saves
            if evaluated:
                yield Evaluated(done, evaluated)
        if samples := due(every.sample, done, is_last):
            yield from sample(run)
        if saves:
            yield Saved(done, save(run))
        if evaluates or samples or saves:
            clock.restart()
    yield Finished(run.step)


def distinct(names: Iterable[str]) -> list[str]:
    """The same names, with a number behind those that came before: two phases may train one model."""
    counts: Counter[str] = Counter()
    found = []
    for name in names:
        counts[name] += 1
        found.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return found


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
        total=run.total,
        size=size,
        micro_batches=-(-size // run.recipe.train.micro),
        settings=settings,
        measure=measure,
    )


def measure(run: Run, measured: Mapping[str, Measured]) -> dict[str, float]:
    """Losses, terms and gradient norms. Raises DivergedError where a loss or a norm is no finite number."""
    metrics: dict[str, float] = {}
    for label, update in measured.items():
        terms = {f"{label}/{name}": value for name, value in run.engine.mean(update.terms).items()}
        norms = {f"{name}/grad_norm": float(norm) for name, norm in update.norms.items()}
        # A scaled fp16 gradient may overflow: then the update was skipped, and the scale falls.
        checked = {f"{label}/loss": terms[f"{label}/loss"]} | (
            {} if run.recipe.train.precision == "fp16" else norms
        )
        for name, value in checked.items():
            if not math.isfinite(value):
                raise DivergedError(
                    f"step {run.step}: {name} is {value}; the checkpoints in {run.folder} are from before; "
                    "a lower lr or a clip may help"
                )
        metrics |= terms | norms
    return metrics


def take_best(run: Run, evaluated: Mapping[str, float]) -> bool:
    """Note an evaluation that is the best so far. Raises RecipeError if it lacks the metric of choice."""
    choice = run.recipe.checkpoint
    if choice.best is None:
        return False
    if choice.best not in evaluated:
        there = ", ".join(evaluated) or "nothing"
        near = nearest(choice.best, evaluated)
        said = f'"{choice.best}" is not evaluated; there is {there}'
        raise RecipeError("checkpoint.best", said, suggestion=near)
    value, sign = evaluated[choice.best], 1 if choice.mode == "max" else -1
    is_best = math.isfinite(value) and (run.best is None or sign * value > sign * run.best[1])
    if is_best:
        run.best = (run.step, value)
    return is_best


def evaluate(run: Run, batches: int | None = None) -> dict[str, float]:
    """The system's metrics over every evaluation example, each once, on any number of ranks.

    Or over so many of each rank's batches: enough for their names.
    """
    assert run.evaluation is not None
    terms = []
    for micro, batch in islice(evaluation_batches(run.evaluation), batches):
        key = (run.recipe.seed, "evaluate", micro.number)
        logs = run.engine.run(partial(measures, run), batch, key=key)
        terms.append((0 if micro.idle else len(micro.indices), logs))
    return {f"evaluate/{name}": value for name, value in run.engine.mean(terms).items()}


def measures(run: Run, models: Models, batch: Batch, ops: Ops) -> Logs:
    """The system's metrics of one micro-batch, and those that the recipe names."""
    logs = dict(run.system.evaluate(models, batch, ops))
    metrics = run.recipe.evaluate.metrics
    if not metrics:
        return logs
    predicted = run.system.predict(models, batch, ops)
    if predicted is None:
        raise RecipeError("evaluate.metrics", "the system has no predictions to measure", is_key=True)
    for name, metric in metrics.items():
        at = f"evaluate.metrics.{name}"
        if name in logs:
            raise RecipeError(at, "the system evaluates this itself; another name would do", is_key=True)
        logs[name] = ops.call(metric, *predicted, at=at)
    return logs


def sample(run: Run) -> Iterator[Sampled]:
    """Draw the system's samples and write each as a grid of pictures."""
    source = run.evaluation or run.loader
    _, batch = source.load(0)[0]
    samples = run.engine.run(run.system.samples, batch, key=(run.recipe.seed, "sample"))
    low, high = source.examples.range
    folder = run.folder / "samples"
    pictures = {
        name: folder / f"step-{run.step:08d}-{name}.png"
        for name, values in samples.items()
        if values.ndim in (3, 4)
    }

    def draw() -> None:
        for name, path in pictures.items() if run.engine.rank == 0 else ():
            try:
                folder.mkdir(exist_ok=True)
                save_grid(samples[name].detach().float().cpu().numpy(), path, low=low, high=high)
            except OSError as error:
                raise DtrainError(f"{path} cannot be written: {error}") from None

    agreed(run.engine, draw)
    if pictures:
        yield Sampled(run.step, pictures)


def save(run: Run) -> Path:
    """Write a checkpoint, then delete those that need not stay."""
    path = write(
        run.folder,
        step=run.step,
        engine=run.engine,
        recipe=to_toml(run.recipe),
        state=run.state(),
        environment=run.environment,
    )
    if run.engine.rank == 0:
        keep(run.folder, newest=run.recipe.checkpoint.keep, best=[run.best[0]] if run.best else [])
    return path


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
