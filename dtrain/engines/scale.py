"""What a launch says of how to run: never what is learned, and never the numbers beyond their rounding.

Nothing here imports torch: a launch that asks for what is not there is refused before that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dtrain.errors import LaunchError, RecipeError
from dtrain.recipe.document import Document, Said, Sayings
from dtrain.recipe.locate import located
from dtrain.recipe.texts import open_text, parse
from dtrain.spec.decode import decode
from dtrain.spec.table import AtLeastOne, Natural, OneOf, Positive, Table, Wrong, kind, table
from dtrain.spec.words import dotted

if TYPE_CHECKING:  # it takes NumPy, which would keep this process from tying itself to its launcher
    from dtrain.recipe.values import Recipe

Patterns = Annotated[tuple[str, ...], AtLeastOne()]


@table
class Parallel(Table):
    """How a model is kept among the ranks."""


@kind(Parallel, "ddp")
class DDP(Parallel):
    """Whole on every rank: DistributedDataParallel; alone, nothing at all."""


@kind(Parallel, "fsdp")
class FSDP(Parallel):
    """In parts: torch's fully_shard, its second version."""

    reshard: bool = True  # let a block go after its forward, and gather it again for its backward
    offload: bool = False  # keep parts, gradients and optimizer state in the memory of the CPU
    # names of layers that are gathered by themselves, such as "3.*"; if left out, large ones and those that
    # are made of several
    blocks: Patterns | None = None
    # gradients over micro-batches: in parts, at a reduction for each, or whole, at one for all
    accumulate: Literal["parts", "whole"] = "parts"


@kind(Parallel, "zero")
class ZeRO(Parallel):
    """In parts: DeepSpeed's ZeRO, whose words these are. Sizes are counted in numbers, not in bytes."""

    stage: Literal[1, 2, 3]  # optimizer state; gradients, too; weights, too
    offload_optimizer: bool = False  # keep optimizer state in the memory of the CPU; from stage 2
    offload_parameters: bool = False  # and weights; of stage 3
    pin_memory: bool = True  # of what is offloaded from a GPU: faster, but that memory is never swapped out
    # keep a second set of weights in bf16 to compute with, where the recipe says bf16; from stage 2
    half_parameters: bool = False
    reduce_bucket_size: Positive = 50_000_000  # gradients that go over the ranks together
    allgather_bucket_size: Positive = 500_000_000  # weights that do, of stages 1 and 2
    overlap_comm: bool = True  # let gradients go over while the backward goes on; takes a second bucket
    persistence_threshold: Natural = 100_000  # smaller parameters stay whole, of stage 3
    prefetch_bucket_size: Natural = 50_000_000  # weights gathered ahead, of stage 3
    max_live_parameters: Positive = 1_000_000_000  # weights that may be whole at a time, of stage 3
    max_reuse_distance: Natural = (
        0  # let weights stay whole if they are used again within so many, of stage 3
    )

    def __post_init__(self) -> None:
        if self.offload_optimizer and self.stage == 1:
            raise Wrong("offload_optimizer", "is for the stages 2 and 3")
        if self.offload_parameters and self.stage != 3:
            raise Wrong("offload_parameters", "is for stage 3, which alone keeps weights in parts")
        if self.half_parameters and self.stage == 1:
            raise Wrong(
                "half_parameters", "is for the stages 2 and 3; stage 1 would add up gradients in bf16"
            )


@table
class Scale(Table):
    """How to run."""

    engine: Annotated[Parallel, OneOf(Parallel, imported=None)] = field(default_factory=DDP)


def read_scale(environment: Mapping[str, str], path: Path | None) -> Scale:
    """What `accelerate launch` left in the environment says, and a file; raises where they contradict.

    Raises RecipeErrors with the mistakes of the file, each at its line, and LaunchError for an engine that
    dtrain lacks.
    """
    asked = engine_asked(environment)
    if path is None:
        return Scale() if asked is None else Scale(engine=asked)
    text = open_text(path)
    document = Document(parse(text), Sayings({(): Said(text, ())}))
    scale, errors = decode(Scale, document.table)
    if errors:
        raise located(document, errors)
    found: Scale = scale
    if "engine" not in document.table and asked is not None:
        return Scale(**{**vars(found), "engine": asked})
    if asked is not None and type(asked) is not type(found.engine):
        raise LaunchError(
            f"{path} says engine.kind = {found.engine.kind!r}, but `accelerate launch` asks for "
            f"{asked.kind!r}; say it in one place"
        )
    return found


def misfits(recipe: "Recipe", engine: Parallel) -> Iterator[RecipeError]:
    """What a recipe asks for and an engine cannot do."""
    if recipe.train.lanes is not None and not isinstance(engine, DDP):
        said = f"adds up gradients that are whole on every process, and {engine.kind} keeps parts of them"
        yield RecipeError("train.lanes", f"{said}; launch/ddp.yaml would do, or leave it out", is_key=True)
    for name, model in recipe.models.items():
        if model.precision is not None and isinstance(engine, ZeRO) and engine.half_parameters:
            said = "engine.half_parameters of the launch turns weights into bf16; without it this would do"
            yield RecipeError(f"{dotted(('models', name))}.precision", said, is_key=True)
    if isinstance(engine, ZeRO) and recipe.train.precision == "fp64":
        said = "fp64 is more than DeepSpeed keeps of weights, which is fp32"
        yield RecipeError("train.precision", f"{said}; launch/ddp.yaml would do, or fp32")
    if isinstance(engine, ZeRO) and engine.half_parameters and recipe.train.precision != "bf16":
        said = f"{recipe.train.precision} is not what engine.half_parameters of the launch is for"
        yield RecipeError("train.precision", f"{said}; without it this would do, or bf16")


def engine_asked(environment: Mapping[str, str]) -> Parallel | None:
    """The engine that Accelerate's file or options ask for; None where they ask for none."""
    for variable, name in _OTHERS.items():
        if _is_true(environment, variable):
            raise LaunchError(
                f"the launcher asks for {name} ({variable}={environment[variable]}), for which dtrain has no "
                "engine; launch/ddp.yaml, fsdp.yaml and zero1.yaml to zero3.yaml would do"
            )
    if _is_true(environment, "ACCELERATE_USE_FSDP"):
        if environment.get("FSDP_VERSION") != "2":
            raise LaunchError("the launcher asks for the first version of FSDP; fsdp_version: 2 would do")
        return FSDP(
            reshard=environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in ("true", "full_shard"),
            offload=_is_true(environment, "FSDP_OFFLOAD_PARAMS"),
        )
    if _is_true(environment, "ACCELERATE_USE_DEEPSPEED"):
        stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        if stage not in ("1", "2", "3"):
            raise LaunchError(
                f"the launcher asks for ZeRO stage {stage}; 1, 2 or 3 would do, or launch/ddp.yaml"
            )
        try:
            return ZeRO(
                stage=int(stage),  # type: ignore[arg-type]  # it is one of the three
                offload_optimizer=_is_on_cpu(environment, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"),
                offload_parameters=_is_on_cpu(environment, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"),
            )
        except Wrong as error:
            raise LaunchError(f"the launcher asks for ZeRO stage {stage}: {error.at} {error}") from None
    return None


_OTHERS = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "Accelerate's parallelism_config",
}


def _is_true(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").lower() in ("1", "true", "yes")


def _is_on_cpu(environment: Mapping[str, str], variable: str) -> bool:
    device = environment.get(variable, "none").lower()
    if device not in ("none", "cpu"):
        raise LaunchError(f"{variable} is {device}; dtrain offloads to the memory of the CPU: cpu, or none")
    return device == "cpu"
