"""Recipes by hypothesis: each value is drawn from the type of its key, so that new kinds are drawn, too."""

import dataclasses
import os
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import reject
from hypothesis import strategies as st

from dtrain.recipe.check import MOST_WEIGHTS
from dtrain.recipe.groups import fitted
from dtrain.recipe.values import Checkpoint, Evaluate, Every, Recipe, Track, Train
from dtrain.spec.averages import AnyAverage
from dtrain.spec.blocks import LayerError, shape_after
from dtrain.spec.decode import fields_of, own_keys, split
from dtrain.spec.groups import without_patterns
from dtrain.spec.layers import Flatten, ImportedLayer, Layer, Linear
from dtrain.spec.lengths import Pace
from dtrain.spec.misfits import misfits
from dtrain.spec.models import ImportedModel, Model, ModelSpec
from dtrain.spec.optimizers import AnyOptimizer, Muon, Optimizer
from dtrain.spec.rates import Plateau
from dtrain.spec.schedules import Constant
from dtrain.spec.sequence import Embedding
from dtrain.spec.table import KINDS, AtLeastOne, Checked, Imported, Matching, OneOf, Within, freeze
from dtrain.systems.base import System

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12).filter(
    lambda text: "${" not in text and not text.startswith(("./", "../"))  # which are references and paths
)
NAMES = st.text("abcXYZ019_-äж", min_size=1, max_size=6)
LEAVES = st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | TEXT | st.datetimes()
PLAIN = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
PATHS = st.sampled_from(("torch.nn:Some", "package:Name", "package.module:Name", "a.b.c.d:function"))
ELSEWHERE = st.sampled_from((Path("/mnt/other disk/runs"), "s3://bucket/some/prefix", "gs://bucket"))
UNDRAWN = ("monitor", "losses", "weights", "weights_from")  # what must agree with other tables, or be there
METRICS = {
    "gan": ("loss", "real", "fake"),
    "classifier": ("loss", "accuracy"),
    "language_model": ("loss", "bits_per_character"),
}


@cache
def of(target: Any) -> st.SearchStrategy[Any]:
    """Values of a type."""
    inner, notes = split(target)
    for note in notes:
        if isinstance(note, OneOf):
            return family(note)
    within = next((note for note in notes if isinstance(note, Within)), Within())
    checks = [note.function for note in notes if isinstance(note, Checked)]
    found = _of_plain(inner, within, any(isinstance(note, AtLeastOne) for note in notes))
    if any(isinstance(note, Matching) for note in notes):
        found = st.from_regex(next(n.pattern for n in notes if isinstance(n, Matching)), fullmatch=True)
    for check in checks:
        found = found.filter(lambda value, check=check: _is_taken(check, value))
    return found


def _of_plain(inner: Any, within: Within, is_filled: bool) -> st.SearchStrategy[Any]:
    origin, arguments = typing.get_origin(inner), typing.get_args(inner)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(st.none() if arm is type(None) else of(arm) for arm in arguments))
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is tuple and arguments[-1:] == (...,):
        size = {"min_size": 1 if is_filled else 0, "max_size": 3}
        return st.lists(of(arguments[0]), **size, unique=_is_choice(arguments[0])).map(tuple)
    if origin is tuple:
        return st.tuples(*map(of, arguments))
    if origin is not None and issubclass(origin, Mapping):
        return st.dictionaries(NAMES, of(arguments[-1]), max_size=3).map(types.MappingProxyType)
    if dataclasses.is_dataclass(inner):
        return table(inner)
    return _of_scalar(inner, within)


def _of_scalar(inner: Any, within: Within) -> st.SearchStrategy[Any]:
    if inner is bool:
        return st.booleans()
    if inner is int:
        low = max(within.at_least, within.above + 1, -9)
        return st.integers(int(low), int(min(within.at_most, 9)))
    if inner is float:
        low, high = max(within.at_least, within.above, -1e9), min(within.at_most, within.below, 1e9)
        open_low, open_high = low == within.above, high == within.below
        return st.floats(low, high, exclude_min=open_low, exclude_max=open_high)
    if inner is str:
        return TEXT
    if inner is Path:
        return st.lists(TEXT.filter(lambda part: "\0" not in part), max_size=3).map(
            lambda parts: Path(os.path.normpath("/" + "/".join(parts).lstrip("/")))
        )
    assert inner is Any, inner
    return PLAIN.map(freeze)


def _is_choice(target: Any) -> bool:
    return typing.get_origin(split(target)[0]) is typing.Literal


def _is_taken(check: Any, value: Any) -> bool:
    try:
        check(value)
    except ValueError:
        return False
    return True


@cache
def table(cls: type) -> st.SearchStrategy[Any]:
    """Tables of a class; those whose keys do not agree are drawn again."""

    @st.composite
    def draw_table(draw: st.DrawFn) -> Any:
        for _ in range(5):
            keys = {name: draw(of(target)) for name, (target, _) in fields_of(cls).items()}
            try:
                return cls(**keys)
            except ValueError:
                continue
        reject()

    return draw_table()


def family(note: OneOf) -> st.SearchStrategy[Any]:
    """One of the kinds of a family, or something imported."""
    tables = [table(cls) for cls in note.kinds.values()]
    return st.one_of(*tables, *([imported(note.imported)] if note.imported else []))


@cache
def imported(cls: type) -> st.SearchStrategy[Any]:
    """Something given by an import path that is nowhere; it is never imported here."""
    own = own_keys(cls)
    arguments = st.dictionaries(NAMES.filter(lambda name: name not in ("kind", *own)), PLAIN, max_size=3)

    @st.composite
    def draw_imported(draw: st.DrawFn) -> Any:
        for _ in range(5):
            keys = {name: draw(of(target)) for name, (target, _) in own.items() if name not in UNDRAWN}
            try:
                return cls(path=draw(PATHS), arguments=freeze(draw(arguments)), **keys)
            except ValueError:  # keys that do not agree, as those of a table
                continue
        reject()

    return draw_imported()


@st.composite
def layers_from(draw: st.DrawFn, shape: tuple[int, ...], most: int = 5) -> tuple[Layer, ...]:
    """Layers that fit, whatever their kinds; those that do not are left out."""
    found: list[Layer] = []
    for _ in range(draw(st.integers(1, most))):
        kind = draw(st.sampled_from([*KINDS[Layer], "imported"]))
        if kind == "imported":
            layer = draw(imported(ImportedLayer))
        elif "layers" in fields_of(KINDS[Layer][kind]):
            block = KINDS[Layer][kind]
            own = {n: draw(of(t)) for n, (t, _) in fields_of(block).items() if n != "layers"}
            layer = block(**own, layers=draw(layers_from(shape, 2)))
        elif kind == "reshape":
            layer = KINDS[Layer][kind](shape=tuple(draw(st.permutations(shape))))
        else:
            layer = draw(table(KINDS[Layer][kind]))
        try:
            shape = shape_after((layer,), shape)
        except LayerError:
            continue
        found.append(layer)
    return (*found, Flatten())


@st.composite
def models_for(draw: st.DrawFn, system: Any) -> dict[str, Any]:
    """Models that a system can train, and others that are there besides."""
    shapes = st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple)
    least = 1 if isinstance(system, Imported) else 0  # a recipe has at least one model
    others = st.dictionaries(NAMES, imported(ImportedModel) | model(shapes), min_size=least, max_size=2)
    found = draw(others)
    match getattr(system, "kind", ""):
        case "gan":
            generator = draw(model(st.just((system.latent,)), begins=True))
            found["generator"] = generator
            found["discriminator"] = draw(model(st.just(generator.output), ends=1))
        case "classifier":
            found["classifier"] = draw(model(shapes, ends=draw(st.integers(1, 9))))
        case "language_model":
            size, length = draw(st.integers(1, 9)), draw(st.integers(1, 9))
            layers = (Embedding(size=size, out=draw(st.integers(1, 9))), Linear(out=size))
            found["language_model"] = ModelSpec(input=(length,), layers=layers)
        case _:
            assert isinstance(system, Imported), "say here what models this kind of system trains"
    return found


@st.composite
def model(
    draw: st.DrawFn,
    shapes: st.SearchStrategy[tuple[int, ...]],
    *,
    begins: bool = False,
    ends: int | None = None,
) -> ModelSpec:
    """A model whose layers fit; it begins, or ends with so many outputs, with what can be trained."""
    shape = draw(shapes)
    before = (Linear(out=draw(st.integers(1, 9))),) if begins else ()
    layers = draw(layers_from(shape_after(before, shape)))
    made = ModelSpec(input=shape, layers=(*before, *layers, *((Linear(out=ends),) if ends else ())))
    if made.parameter_count() > MOST_WEIGHTS:
        reject()
    return made


@st.composite
def optimizer(draw: st.DrawFn, model: Model, metrics: list[str], steps: int | None) -> Optimizer:
    """Any optimizer that fits a model, and whose schedule a run of so many steps with these metrics."""
    found: Optimizer = draw(of(AnyOptimizer))
    schedule = found.schedule
    if isinstance(schedule, Plateau) and metrics:
        schedule = dataclasses.replace(schedule, monitor=draw(st.sampled_from(metrics)))
    elif isinstance(schedule, Plateau) or (steps and any(misfits(schedule, Pace(steps, None, 1, int)))):
        schedule = Constant()
    found = dataclasses.replace(found, schedule=schedule)
    if isinstance(found, Muon):  # has settings that do nothing where there are no matrices
        return without_patterns(found)
    groups = tuple(dataclasses.replace(group, match="*") for group in found.groups[:1])
    return fitted(dataclasses.replace(found, groups=groups), model)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Whole recipes without a mistake."""
    kinds = [table(KINDS[System][name]) for name in METRICS]  # shipped recipes have the others
    system = draw(st.one_of(*kinds, imported(Imported)))
    models = draw(models_for(system))
    is_known = isinstance(system, System)
    trained = [name for phase in system.phases() for name in phase.updates] if is_known else list(models)
    micro = draw(st.integers(1, 8))
    train = draw(table(Train).filter(lambda train: train.steps is None or train.steps > 0))
    steps = draw(st.integers(10, 99)) if train.steps else None
    count = draw(st.integers(1, 4))
    lanes = None if train.lanes is None else min(train.lanes, count)
    batches = {"batch_size": micro * count, "micro_batch_size": micro, "steps": steps, "lanes": lanes}
    if train.precision not in ("bf16", "fp16"):  # nothing is in half, of which a model could be left out
        models = {name: dataclasses.replace(each, precision=None) for name, each in models.items()}
    every = draw(table(Every))
    evaluate = draw(table(Evaluate)) if getattr(system, "kind", "") == "classifier" else Evaluate()
    names = [*METRICS.get(getattr(system, "kind", ""), ("any",)), *evaluate.metrics]
    metrics = [f"evaluate/{name}" for name in names]
    best = draw(st.none() | st.sampled_from(metrics))
    checkpoint = draw(table(Checkpoint))
    among_best: dict[str, Any] = {"best": best, "mode": checkpoint.mode or "min"}
    if best is None:
        among_best = {"best": None, "mode": None, "keep_best": 1}
    patience = train.patience if best is not None and every.evaluate else None
    return Recipe(
        name=draw(of(fields_of(Recipe)["name"][0])),
        seed=draw(st.integers(0, 2**63 - 1)),
        hyperparameters=freeze(draw(st.dictionaries(TEXT, PLAIN, max_size=3))),
        system=system,
        models=types.MappingProxyType(models),
        optimizers=types.MappingProxyType(
            {
                name: draw(optimizer(models[name], metrics if every.evaluate else [], steps))
                for name in dict.fromkeys(trained)
            }
        ),
        data=draw(of(fields_of(Recipe)["data"][0])),
        train=dataclasses.replace(train, **batches, patience=patience),
        averages=types.MappingProxyType({n: draw(of(AnyAverage)) for n in trained if draw(st.booleans())}),
        every=every,
        evaluate=evaluate,
        checkpoint=dataclasses.replace(checkpoint, path=draw(st.none() | ELSEWHERE), **among_best),
        track=draw(table(Track)),
    )
