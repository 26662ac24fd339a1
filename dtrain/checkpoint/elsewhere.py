"""Which run is carried on where runs are copied elsewhere: one whose folder here is gone is brought back."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dtrain.checkpoint.folders import Place, choose, recipe_of
from dtrain.checkpoint.lease import HeldError, hold
from dtrain.checkpoint.read import checkpoints_in, step_of
from dtrain.checkpoint.upload import Mirror
from dtrain.errors import CheckpointError, RecipeError
from dtrain.format.addresses import address
from dtrain.format.files import MANIFEST, ORIGIN, RECIPE, STATE, folder_name, parse
from dtrain.format.locks import try_lock
from dtrain.format.remote import bring_run, fetched, place, whole_steps
from dtrain.format.runs import ended
from dtrain.format.stores import Store
from dtrain.format.urls import open_store

FETCHED = ".fetched"  # in the folder of runs: checkpoints at URLs that others began with


@dataclass(frozen=True)
class Wish:
    """What is asked for: a run of this recipe, or of the checkpoint to `resume`."""

    runs: Path
    name: str
    recipe: str  # resolved
    last_step: int
    fresh: bool = False
    once: bool = False
    resume: str | Path | None = None

    @property
    def home(self) -> Path:
        """The folder of the runs of this name."""
        return self.runs / self.name


@contextmanager
def open_place(wish: Wish, elsewhere: Path | str | None) -> Iterator[tuple[Place, Mirror | None]]:
    """The run to carry on, or a new one, locked, and its copy `elsewhere`, which no other process works on.

    Raises CheckpointError if a place cannot be read or written, or `resume` names no checkpoint or a run that
    is being worked on; RecipeError if runs would be copied onto themselves.
    """
    with ExitStack() as stack:
        resume = None if wish.resume is None else address(wish.resume)
        if isinstance(resume, str):
            resume = _resumed(resume, wish)
        store = None if elsewhere is None else _open_copies(elsewhere, wish)
        held: Held | None = None
        if store is not None and resume is None and not wish.fresh:
            held = _bring_back(store, wish, stack)
        chosen, lock = choose(
            wish.runs,
            name=wish.name,
            recipe=wish.recipe,
            last_step=wish.last_step,
            fresh=wish.fresh,
            once=wish.once,
            resume=resume,
        )
        stack.enter_context(lock)
        if store is None:
            yield chosen, None
            return
        if held is None or held.run != chosen.id:
            held = Held(chosen.id, stack.enter_context(hold(store, chosen.folder)))
        yield chosen, Mirror(store, chosen.folder, held.check)


@dataclass(frozen=True)
class Held:
    """A run whose copy this process holds; `check` raises CheckpointError if it does no more."""

    run: str
    check: Callable[[], None]


def _open_copies(elsewhere: Path | str, wish: Wish) -> Store:
    where = elsewhere / wish.name if isinstance(elsewhere, Path) else f"{elsewhere}/{wish.name}"
    if isinstance(where, Path) and where.resolve() == wish.home.resolve():
        said = f"{elsewhere} is the folder of runs itself; another would do, or none"
        raise RecipeError("checkpoint.path", said)
    return open_store(where)


def _bring_back(store: Store, wish: Wish, stack: ExitStack) -> Held | None:
    """Copy here the newest run that can be carried on, where it has come further there than here.

    Runs are looked at as those here are: the newest of this recipe that nobody works on. It stays held.
    """
    own = [run.name for run in wish.home.glob("[!.]*") if recipe_of(run) == wish.recipe]
    for name in sorted(store.entries(""), reverse=True):
        if own and name < max(own):
            return None
        if (store.read(f"{name}/{RECIPE}") or b"") != wish.recipe.encode():
            continue
        run, steps = wish.home / name, whole_steps(store, name)
        here = [step_of(path) for path in checkpoints_in(run)]
        began_elsewhere = name not in own and not steps and ORIGIN in store.entries(name)
        if not began_elsewhere and (not steps or (here and here[-1] >= steps[-1])):
            if name in own:
                return None
            continue
        if run.exists():
            if (found := try_lock(run)) is None:
                continue
            found.close()
        if steps and not wish.once and _is_over(store, name, steps[-1], wish.last_step):
            return None
        try:
            held = Held(name, stack.enter_context(hold(store, run)))
        except HeldError:
            continue
        _bring(store, name, run)
        return held
    return None


def _is_over(store: Store, run: str, newest: int, last_step: int) -> bool:
    """Whether a run has ended, at its last step or because it no longer became better."""
    file = f"{place(run, newest)}/{STATE}"
    state = parse(store.read(file) or b"", Path(store.at(file)))
    return newest >= last_step or ended(state) == "stopped early"


def _bring(store: Store, name: str, run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{run} cannot be made: {error}") from None
    if (found := try_lock(run)) is None:
        raise HeldError(f"{run} is being worked on by another process")
    with found:
        bring_run(store, name, run, best=True)


def _resumed(url: str, wish: Wish) -> Path:
    """The checkpoint here that is to be resumed of a run or checkpoint at a URL.

    Of a run of this recipe the newest one is brought into the folder of that run, which is then carried on.
    """
    if MANIFEST not in open_store(url).entries(""):
        store = open_store(url)
        if not (steps := whole_steps(store, "")):
            raise CheckpointError(f"{url} is neither a checkpoint nor a run that has one")
        run, name = url, folder_name(steps[-1])
    elif url.split("/")[-2] == "checkpoints":
        run, _, name = url.rsplit("/", 2)
        store = open_store(run)
        steps = whole_steps(store, "")
    else:
        return fetched(url, cache=wish.runs / FETCHED)
    if name == folder_name(steps[-1]) and store.read(RECIPE) == wish.recipe.encode():
        folder = wish.home / run.rpartition("/")[2]
        _bring(store, "", folder)
        return (folder / "checkpoints" / name).absolute()
    return fetched(f"{run}/checkpoints/{name}", cache=wish.runs / FETCHED)
