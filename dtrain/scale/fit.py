"""What a launch asks for and a recipe cannot give: found before torch is imported, as far as can be told."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from dtrain.errors import RecipeError
from dtrain.scale.tables import DDP, FSDP, Activations, Parallel, Patterns, Scale, ZeRO, matches
from dtrain.spec.blocks import Block
from dtrain.spec.models import Model, ModelSpec
from dtrain.spec.optimizers import ELEMENTWISE, FORMS, ImportedOptimizer
from dtrain.spec.sequence import Attention
from dtrain.spec.words import dotted, nearest

if TYPE_CHECKING:  # it takes NumPy, which would keep a process from tying itself to its launcher
    from dtrain.recipe.values import Recipe


def unfit(scale: Scale, recipe: "Recipe") -> Iterator[RecipeError]:
    """Every mistake, under its key in the launch's file."""
    for name, optimizer in recipe.optimizers.items():
        if not isinstance(optimizer, FORMS[scale.optimizer]):
            said = f"{dotted(('optimizers', name))} is {optimizer.kind or 'imported'}, which has no such form"
            yield RecipeError("optimizer", f'{said}; "auto" would do')
    is_flat = not any(imports(model) or has_blocks(model) for model in recipe.models.values())
    if is_flat and scale.compile is not None and scale.compile.what == "blocks":
        said = "no model is made of repeated blocks, as transformers are"
        yield RecipeError("compile.what", f'{said}; "losses" would do')
    if is_flat and scale.activation_checkpointing == Activations():
        said = "no model has repeated layers that are made of several"
        said = f'{said}; say which: layers = ["3", "generator/4.*"]'
        yield RecipeError("activation_checkpointing", said, is_key=True)
    if scale.activation_checkpointing is not None:
        yield from _unknown(
            scale.activation_checkpointing.layers, recipe.models, "activation_checkpointing.layers"
        )
    if isinstance(scale.engine, FSDP):
        yield from _unknown(scale.engine.blocks, recipe.models, "engine.blocks")
    if scale.compile is not None and recipe.train.lanes is not None:
        said = "chooses kernels by the batches that a process has met, and train.lanes promises the same bits"
        yield RecipeError("compile", f"{said} on any number of them; leave out one of the two", is_key=True)
    if scale.compile is not None and scale.compile.mode != "default" and recipe.train.deterministic:
        said = "takes the kernels that were the quickest, which train.deterministic excludes"
        yield RecipeError("compile.mode", f'{said}; "default" would do')
    is_half = isinstance(scale.engine, FSDP) and scale.engine.half_parameters
    if is_half and recipe.train.precision != "bf16":
        said = f'is for train.precision = "bf16", and the recipe says "{recipe.train.precision}"'
        yield RecipeError("engine.half_parameters", said)
    elif is_half and recipe.system.has_slopes:
        said = "FSDP has no slope of a slope (a gradient penalty, R1) through weights in bf16"
        yield RecipeError("engine.half_parameters", f"{said}; without it this would do", is_key=True)


def misfits(recipe: "Recipe", engine: Parallel) -> Iterator[RecipeError]:
    """What a recipe asks for and an engine cannot do."""
    if recipe.train.lanes is not None and not isinstance(engine, DDP):
        said = f"adds up gradients that are whole on every process, and {engine.kind} keeps parts of them"
        yield RecipeError("train.lanes", f"{said}; launch/ddp.yaml would do, or leave it out", is_key=True)
    elif recipe.train.lanes is not None and engine != DDP():
        said = "adds up gradients itself, and the options of the launch's engine have no say in it"
        yield RecipeError("train.lanes", f"{said}; leave them out, or it", is_key=True)
    for name, optimizer in recipe.optimizers.items():
        is_known = not isinstance(optimizer, ImportedOptimizer)
        if is_known and not isinstance(optimizer, ELEMENTWISE) and not isinstance(engine, DDP):
            said = f"{optimizer.kind} may go by the shapes of weights, and {engine.kind} cuts them"
            place = dotted(("optimizers", name, "kind"))
            yield RecipeError(place, f"{said}; adamw would do, or launch/ddp.yaml")
    for name, model in recipe.models.items():
        if model.precision is not None and isinstance(engine, FSDP | ZeRO) and engine.half_parameters:
            said = "engine.half_parameters of the launch turns weights into bf16; without it this would do"
            yield RecipeError(f"{dotted(('models', name))}.precision", said, is_key=True)
    if isinstance(engine, ZeRO) and recipe.train.precision == "fp64":
        said = "fp64 is more than DeepSpeed keeps of weights, which is fp32"
        yield RecipeError("train.precision", f"{said}; launch/ddp.yaml would do, or fp32")
    if isinstance(engine, ZeRO) and engine.half_parameters and recipe.train.precision != "bf16":
        said = f"{recipe.train.precision} is not what engine.half_parameters of the launch is for"
        yield RecipeError("train.precision", f"{said}; without it this would do, or bf16")


def _unknown(patterns: Patterns | None, models: Mapping[str, Model], key: str) -> Iterator[RecipeError]:
    """Patterns that name no layer. Of what is inside an import only a run can tell."""
    names = {
        name: {part for row in spec.walk() for part in _parts(row.name)}
        for name, spec in models.items()
        if isinstance(spec, ModelSpec)
    }
    for number, pattern in enumerate(patterns or ()):
        asked = [
            name for name in models if "/" not in pattern or fnmatchcase(name, pattern.partition("/")[0])
        ]
        above = pattern.rpartition(".")[0]  # a layer may hold modules, which are none of a recipe
        is_there = any(
            matches(each, name, layer)
            for name in asked
            for layer in names.get(name, ())
            for each in (pattern, above)
        )
        if is_there or any(imports(models[name]) for name in asked):
            continue
        there = [f"{name}/{layer}" for name in names for layer in sorted(names[name], key=_in_order)]
        outermost = [name for name in there if "." not in name]
        said = f"there is no such layer; the outermost are {', '.join(outermost[:40])}"
        yield RecipeError(f"{key}[{number}]", said, suggestion=nearest(pattern, there))


def imports(model: Model) -> bool:
    """Whether a model has layers of which only a run can tell."""
    return not isinstance(model, ModelSpec) or model.imports_layers


def has_blocks(model: Model) -> bool:
    """Whether a model has layers made of several modules, which `engines.blocks` counts as repeated.

    Attention is two: its projection is a module of its own.
    """
    return isinstance(model, ModelSpec) and any(
        isinstance(row.layer, Block | Attention) for row in model.walk()
    )


def _parts(name: str) -> Iterator[str]:
    """`4`, `4.layers` and `4.layers.0` of `4.layers.0`."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        yield ".".join(parts[:length])


def _in_order(name: str) -> list[tuple[bool, int, str]]:
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
