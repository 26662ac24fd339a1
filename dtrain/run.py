"""A run made ready: models, optimizers, data, engine, and the place where it is kept."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing import current_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain.backends.torch_schedules import Schedules
from dtrain.checkpoint.elsewhere import Wish, open_place
from dtrain.checkpoint.folders import Place
from dtrain.checkpoint.provenance import provenance
from dtrain.checkpoint.record import Recorder, RecordFile
from dtrain.checkpoint.upload import Mirror
from dtrain.checkpoint.write import Ranks
from dtrain.checkpoint.writer import Saves, Writer
from dtrain.data.identity import Fingerprint, fingerprint
from dtrain.data.loader import Loader
from dtrain.data.opening import open_examples
from dtrain.data.order import Order, Sweep
from dtrain.data.source import Examples
from dtrain.engines.base import Engine
from dtrain.engines.deterministic import deterministic
from dtrain.engines.together import agreed, agreed_at_last
from dtrain.errors import DataError, DtrainError, RecipeError
from dtrain.evaluation import Best, Evaluator, open_metrics
from dtrain.recipe.fit import check_fields, check_schedules, check_shares
from dtrain.recipe.metrics import best_mode
from dtrain.recipe.plan import pace_of
from dtrain.recipe.values import Recipe
from dtrain.recipe.write import encode, to_toml
from dtrain.restoring import restore
from dtrain.scale.asked import read_scale
from dtrain.scale.fit import misfits, unfit
from dtrain.scale.tables import DDP, Scale, processes
from dtrain.spec.lengths import Pace
from dtrain.spec.trust import EVERYTHING, Trust
from dtrain.systems.base import System
from dtrain.track import RunInfo, open_trackers
from dtrain.world.agreement import agree, contents, facts, shapes
from dtrain.world.launcher import contradictions
from dtrain.world.position import HANG_TIMEOUT, Position
from dtrain.world.world import World, read_world

if TYPE_CHECKING:
    from dtrain.world.lookout import Lookout

TIMEOUT = timedelta(minutes=30)  # of a collective: the last resort


@dataclass
class Run:
    """What the loop needs; a `with` resource, or closed by `close`.

    `step` counts the steps done, and `best` is what is known of the best evaluation saved so far.
    """

    recipe: Recipe
    system: System
    engine: Engine
    loader: Loader
    order: Order
    evaluation: Evaluator | None  # None where the data has no part for it
    schedules: Schedules
    place: Place
    pace: Pace  # how long it is, and what lengths in epochs come to
    where: str  # on how many processes, and under which engine
    environment: Mapping[str, Any]  # versions, device and world, for the manifest
    data: Mapping[str, Any]  # how many examples, shapes, fingerprints, and the step since when it is these
    best: Best
    lookout: "Lookout"
    writer: Saves = field(init=False)
    is_copied: bool = False  # to another place
    mirror: Mirror | None = None  # which does that, on rank 0
    recorder: Recorder = field(init=False)
    origin: Mapping[str, Any] | None = None  # the checkpoint of another run that it began from
    other_data: Mapping[str, str] = field(default_factory=dict)  # by part: what is not as in the checkpoint
    step: int = 0
    skipped: int = 0  # updates whose numbers were not finite
    skipped_in_a_row: int = 0  # of them, those since the last that was not
    resources: ExitStack = field(default_factory=ExitStack)

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return self.pace.total

    @property
    def position(self) -> Position:
        """Where this rank is, for whom it concerns when something goes wrong."""
        return self.lookout.position

    @property
    def folder(self) -> Path:
        return self.place.folder

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors."""
        own: dict[str, Any] = {"step": self.step, "total": self.total, "data": self.data}
        own |= {"best": self.best.state()}
        own |= {"schedules": self.schedules.state(), "skipped": [self.skipped, self.skipped_in_a_row]}
        return own | self.engine.scalars()

    def kept(self) -> Callable[[Sequence[int]], set[int]]:
        """Which checkpoints stay, of some steps in order: the newest, the best up to now, each so-many-th."""
        choice, best = self.recipe.checkpoint, set(self.best.steps)

        def stay(steps: Sequence[int]) -> set[int]:
            forever = {step for step in steps if choice.keep_every and step % choice.keep_every == 0}
            return {*steps[-choice.keep :]} | best | forever

        return stay

    def close(self) -> None:
        """Free the devices, leave the other processes in good order, unlock the run's folder."""
        self.resources.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *problem: Any) -> None:
        self.resources.__exit__(*problem)


def setup(
    recipe: Recipe,
    *,
    runs: str | Path = "runs",
    fresh: bool = False,
    once: bool = False,
    resume: str | Path | None = None,
    accept_data: bool = False,
    verify: bool = False,
    copies: bool = True,
    world: World | None = None,
    scale: Scale | None = None,
    trust: Trust = EVERYTHING,
    hang_timeout: float = HANG_TIMEOUT,
) -> Run:
    """Make a run ready: carry on the newest one of this recipe that was cut off, or begin a new one.

    `fresh` begins anew; `once` does not where a run of this recipe has finished; `resume` names a run or a
    checkpoint to start from, or one at a URL; `accept_data` goes on though the data is not what the
    checkpoint was trained on; with `verify` the hashes of all its tensors are checked, however large it is;
    without `copies` the recipe's `checkpoint.path` is left alone; `scale` says how models are kept among the
    processes, as the launcher does where it is left out; `trust` says what may be imported; a rank that does
    not move for `hang_timeout` seconds, while others wait for it, ends them all. Raises DtrainError for a
    world or settings other than those that a launcher was asked for, data or a checkpoint that cannot be
    read, or that does not fit the recipe.
    """
    # What multiprocessing itself goes by where a script is imported a second time, by a process it started.
    if getattr(current_process(), "_inheriting", False):
        raise DtrainError(
            "a data worker imported this script and came upon dtrain.setup again; put the script's work "
            'under `if __name__ == "__main__":`, or set workers = 0'
        )
    if world is None:
        world = read_world(os.environ)
        clips = {name: optimizer.clip for name, optimizer in recipe.optimizers.items()}
        for mistake in contradictions(recipe.train, clips, world.size, world.asked):
            raise mistake
    scale = read_scale(os.environ, None) if scale is None else scale
    for mistake in (*unfit(scale, recipe), *misfits(recipe, scale.engine)):
        raise mistake
    with ExitStack() as stack:
        if recipe.train.deterministic:
            stack.enter_context(deterministic())
        # A checkpoint that is named has all weights, and what models began with may be gone.
        built = recipe if resume is None else recipe.without_beginnings()
        engine, lookout = stack.enter_context(open_engine(built, world, scale, trust, hang_timeout))
        lookout.position.long("opening the data")
        # One process of each machine first: a dataset that downloads itself does so once.
        opened = agreed(engine, lambda: _open_data(recipe, trust) if world.local_rank == 0 else None)
        examples, evaluation = agreed(engine, lambda: opened or _open_data(recipe, trust))
        data = {"examples": len(examples), "fields": shapes(examples)}
        if engine.world > 1:
            agree({"data": data | agreed(engine, lambda: contents(examples))}, engine.gather)
        lookout.position.long("taking fingerprints of the data")
        taken = agreed(engine, lambda: _fingerprints(examples, evaluation) if engine.rank == 0 else None)
        system = recipe.system
        assert isinstance(system, System)
        order = Order(len(examples), recipe.train.batch_size, recipe.train.micro, recipe.seed)
        check_shares(recipe, len(examples), engine.world)
        pace = pace_of(recipe.train, system, len(examples))
        assert pace is not None
        check_schedules(recipe, pace)
        run = Run(
            recipe=recipe,
            system=system,
            engine=engine,
            loader=stack.enter_context(Loader(examples, order, engine.rank, engine.world)),
            order=order,
            evaluation=None
            if evaluation is None
            else stack.enter_context(evaluator(recipe, evaluation, engine, trust, lookout.position)),
            schedules=agreed(engine, lambda: Schedules(recipe.optimizers, pace, trust=trust)),
            place=Place(Path(), None),
            pace=pace,
            where=processes(scale.engine, engine.world),
            environment=provenance(engine, scale),
            best=Best(
                recipe.checkpoint.best, best_mode(recipe), recipe.train.patience, recipe.checkpoint.keep_best
            ),
            lookout=lookout,
            data=data | {"fingerprints": engine.share(taken), "since": 0},
        )
        wish = Wish(
            Path(runs), recipe.name, to_toml(recipe), run.total, fresh=fresh, once=once, resume=resume
        )
        _choose(run, wish, recipe.checkpoint.path if copies else None, stack)
        if (checkpoint := run.place.checkpoint) is not None:
            run.position.long("restoring the checkpoint")
            share = world.local_rank, world.local_size
            agreed(
                engine,
                lambda: restore(run, checkpoint, accept_data=accept_data, verify=verify, share=share),
            )
        _begin_copy(run)
        run.recorder = stack.enter_context(_open_recorder(run))  # in which the writer's thread writes, too
        run.writer = writer = stack.enter_context(_open_writer(run))
        if run.mirror is not None:  # what an earlier life could not send
            writer.start(partial(run.mirror.update, run.kept()))
        run.resources = stack.pop_all()
    return run


@contextmanager
def watch(run: Run) -> Iterator[Any]:
    """Open the recipe's trackers and yield the one observer that tells them all; rank 0 alone has any."""
    track = run.recipe.track
    info = RunInfo(run.folder, run.place.id, run.recipe.name, track.project, encode(run.recipe), run.where)
    with open_trackers(track.kinds if run.engine.rank == 0 else (), info, run.step) as observe:
        yield observe


@contextmanager
def open_engine(
    recipe: Recipe, world: World, scale: Scale, trust: Trust, hang_timeout: float
) -> "Iterator[tuple[Engine, Lookout]]":
    """The engine of a world, with the recipe's models, optimizers and averages, and the ranks' lookout."""
    # Only now, as torch and Accelerate take seconds to import.
    from dtrain.engines.engine import TorchEngine
    from dtrain.engines.holding import hold
    from dtrain.world.exchange import gather_json
    from dtrain.world.lookout import Lookout
    from dtrain.world.processes import join

    lookout = Lookout(Position(), hang_timeout)
    with join(world, TIMEOUT, lookout, grouped=not isinstance(scale.engine, DDP)) as accelerator:
        if world.size > 1:
            agree(facts(recipe, scale), lambda value: gather_json(value, accelerator))
        lookout.position.long("building the models")
        engine = TorchEngine(
            accelerator,
            hold(scale.engine, accelerator, lanes=recipe.train.lanes, local_size=world.local_size),
            models=recipe.models,
            optimizers=recipe.optimizers,
            averages=recipe.averages,
            precision=recipe.train.precision,
            seed=recipe.seed,
            scale=scale,
            skips=recipe.train.on_nonfinite == "skip",
            trust=trust,
        )
        try:
            yield engine, lookout
        finally:
            engine.close()


def _open_data(recipe: Recipe, trust: Trust) -> tuple[Examples, Examples | None]:
    examples = open_examples(recipe.data, "train", recipe.seed, trust)
    check_fields(recipe, examples.fields)
    source = recipe.evaluate.data or recipe.data
    try:
        evaluation = open_examples(source, "evaluate", recipe.seed, trust)
        check_fields(recipe, evaluation.fields)
        return examples, evaluation
    except (DataError, RecipeError):
        asked_for = recipe.evaluate.data, recipe.checkpoint.best, recipe.evaluate.metrics or None
        if recipe.every.evaluate or any(wish is not None for wish in asked_for):
            raise
        return examples, None


def _fingerprints(examples: Examples, evaluation: Examples | None) -> dict[str, Fingerprint]:
    """Of each part that there is."""
    parts = {"train": examples} | ({} if evaluation is None else {"evaluate": evaluation})
    return {part: fingerprint(of_part) for part, of_part in parts.items()}


@contextmanager
def evaluator(
    recipe: Recipe, examples: Examples, engine: Engine, trust: Trust, position: Position
) -> Iterator[Evaluator]:
    """What evaluates on these examples; raises RecipeError or CheckpointError if a metric cannot be had."""
    system = recipe.system
    assert isinstance(system, System)
    metrics = agreed(
        engine, lambda: open_metrics(recipe.evaluate.metrics, examples.range, engine.gather_arrays, trust)
    )
    sweep = Sweep(len(examples), recipe.train.micro)
    with Loader(examples, sweep, engine.rank, engine.world) as loader:
        yield Evaluator(engine, system, loader, metrics, recipe.seed, position)


def _choose(run: Run, wish: Wish, elsewhere: Path | str | None, stack: ExitStack) -> None:
    """Give every rank rank 0's choice of a run; rank 0 holds its lock, and that of its copy elsewhere."""
    run.is_copied = elsewhere is not None

    def choice() -> list[str | None]:
        if run.engine.rank != 0:
            return []
        place, run.mirror = stack.enter_context(open_place(wish, elsewhere))
        return [str(path) if path else None for path in (place.folder, place.checkpoint)]

    looking = partial(run.position.long, "looking for a run to carry on")
    looking()
    folder, checkpoint = run.engine.share(agreed_at_last(run.engine, choice, looking))
    run.place = Place(Path(folder), checkpoint and Path(checkpoint))


def _begin_copy(run: Run) -> None:
    """Let the run be found elsewhere, where it is copied: not before it is ready, as it may be refused."""

    def begin() -> None:
        if run.mirror is not None:
            run.mirror.begin()

    if run.is_copied:
        agreed_at_last(run.engine, begin, partial(run.position.long, "beginning the copy of the run"))


def _open_writer(run: Run) -> Writer:
    from dtrain.world.exchange import open_gather

    ranks = Ranks(run.engine.rank, open_gather(run.engine.world, TIMEOUT))
    return Writer(run.folder, ranks, run.recipe.checkpoint.shard_bytes)


@contextmanager
def _open_recorder(run: Run) -> Iterator[Recorder]:
    """The record of the run, in a file of rank 0's."""
    life = {"environment": run.environment, "data": run.data, "origin": run.origin}
    with ExitStack() as stack:
        file = None
        if run.engine.rank == 0:
            file = stack.enter_context(RecordFile(run.folder, run.step, life))
        yield Recorder(run.engine, file, every_step=run.recipe.train.deterministic)
