"""What a launch says of how to run: never what is learned, and never the numbers beyond their rounding.

Nothing here imports torch: a launch that asks for what is not there is refused before that.
"""

from dataclasses import field
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from dtrain.spec.optimizers import Form
from dtrain.spec.table import Above0, AtLeastOne, Natural, OneOf, Positive, Table, Within, Wrong, kind, table

Patterns = Annotated[tuple[str, ...], AtLeastOne()]


@table
class Parallel(Table):
    """How a model is kept among the ranks."""


@kind(Parallel, "ddp")
class DDP(Parallel):
    """Whole on every rank: DistributedDataParallel; of one process, nothing at all."""

    # megabytes of gradients that go over the ranks at once, while the backward goes on: small ones start
    # sooner, large ones are fewer; one that is larger than the model waits for the end of the backward
    bucket_mb: Above0 = 25.0
    # let gradients lie in the buckets themselves: saves the memory of all gradients once, and a copy of them;
    # the bits stay
    gradient_as_bucket_view: bool = False
    # send gradients in half precision ("bf16" between GPUs alone), which rounds them; or as products of two
    # thin matrices, which approximates them by a fraction ("powersgd": Vogels et al. 2019, arXiv:1905.13727)
    compression: Literal["none", "fp16", "bf16", "powersgd"] = "none"
    powersgd_rank: Positive = 1  # of these matrices; of compression = "powersgd" alone
    # updates of a model whose gradients go whole before "powersgd" begins; once more after a resume, as no
    # checkpoint holds what it puts off: with it a resume gives other numbers
    powersgd_after: Annotated[int, Within(at_least=2)] = 1_000

    def __post_init__(self) -> None:
        for key in ("powersgd_rank", "powersgd_after"):
            if getattr(self, key) != getattr(DDP, key) and self.compression != "powersgd":
                raise Wrong(key, f'is of compression = "powersgd" alone, not of "{self.compression}"')


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
    # blocks that are gathered ahead of their turn, beyond the one that torch gathers ahead in a backward:
    # hides the network behind what is computed; each takes the memory of a block
    prefetch: Natural = 0
    # gather weights in bf16, where the recipe says bf16: half of them to send and to keep; what a block
    # computes in fp32 otherwise, as layer normalisation, is then rounded, too: numbers differ by bf16's noise
    half_parameters: bool = False


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
        for key in _OF_STAGE_3:
            if getattr(self, key) != getattr(ZeRO, key) and self.stage != 3:
                raise Wrong(key, f"is of stage 3 alone, which keeps weights in parts, not of {self.stage}")
        if self.allgather_bucket_size != ZeRO.allgather_bucket_size and self.stage == 3:
            said = "is of the stages 1 and 2; stage 3 gathers layer by layer"
            raise Wrong("allgather_bucket_size", f"{said}, for which prefetch_bucket_size would do")
        if self.allgather_bucket_size % 2:
            raise Wrong("allgather_bucket_size", "DeepSpeed takes even numbers alone")
        if not self.pin_memory and not (self.offload_optimizer or self.offload_parameters):
            said = "is of what is offloaded; offload_optimizer = true would do, or leave it out"
            raise Wrong("pin_memory", said)
        if self.half_parameters and self.stage == 1:
            raise Wrong(
                "half_parameters", "is for the stages 2 and 3; stage 1 would add up gradients in bf16"
            )


_OF_STAGE_3 = ("persistence_threshold", "prefetch_bucket_size", "max_live_parameters", "max_reuse_distance")


@table
class Compile(Table):
    """torch.compile: kernels made for the models at hand; some seconds to minutes at the start of a run.

    Sums are rounded in another order, so numbers differ in their last digits; what is drawn stays the same.
    Phases with a slope inside their losses (gradient penalty, R1) stay as they are: torch cannot take the
    slope of what it compiled.
    """

    # "losses": the whole of each phase's loss; of "ddp" alone. "blocks": each of a model's repeated blocks by
    # itself, alike ones together: quicker to compile, and on every engine
    what: Literal["losses", "blocks"]
    backend: str = "inductor"  # of torch.compile; "inductor" needs a C++ compiler on a CPU, Triton on a GPU
    # "max-autotune-no-cudagraphs" tries more kernels: slower to start, and at times faster afterwards
    mode: Literal["default", "max-autotune-no-cudagraphs"] = "default"
    # whether one compilation serves batches of any size; left out: where a second size is met, as an epoch's
    # last batch may have, it is compiled once more, for all sizes
    dynamic: bool | None = None


@table
class Activations(Table):
    """Activation checkpointing: a layer's forward is computed anew in the backward, instead of being kept.

    Saves the memory of what is inside these layers, and costs their forwards once more: up to a third of an
    update's time. The bits stay: dropout draws the same again, and statistics are noted once. Source: Chen et
    al. 2016 (arXiv:1604.06174).
    """

    # names of layers such as "3.*", in all models, or in one: "generator/3.*"; if left out, the items of
    # lists of layers that are made of several, as the blocks of a transformer are
    layers: Patterns | None = None


@table
class Scale(Table):
    """How to run."""

    # how models are kept among processes; left out: as `accelerate launch` says, else "ddp"
    engine: Annotated[Parallel, OneOf(Parallel, imported=None)] = field(default_factory=DDP)
    # how optimizers step: "fused", one kernel for all parameters, the fastest (of sgd, adam and adamw);
    # "foreach", an operation at a time for all parameters, which takes memory for a copy of them; "plain",
    # parameter by parameter; "auto": fused where there is such, else as torch chooses
    optimizer: Form = "auto"
    compile: Compile | None = None  # left out: nothing is compiled
    activation_checkpointing: Activations | None = None  # left out: all activations are kept

    def __post_init__(self) -> None:
        if self.compile is None or self.compile.what != "losses":
            return
        if not isinstance(self.engine, DDP):
            said = f'whole losses are compiled under engine.kind = "ddp" alone, not "{self.engine.kind}"'
            raise Wrong("compile.what", f'{said}; "blocks" would do')
        if self.activation_checkpointing is not None:
            said = "what is compiled as a whole computes no layer anew, as activation_checkpointing asks"
            raise Wrong("compile.what", f'{said}; "blocks" would do')


def title(engine: Parallel) -> str:
    """What an engine is called where people read of it."""
    if isinstance(engine, ZeRO):
        return f"ZeRO {engine.stage}"
    return "FSDP2" if isinstance(engine, FSDP) else "DDP"


def processes(engine: Parallel, size: int) -> str:
    """On how many processes a run is, and under which engine, in words."""
    if size == 1 and isinstance(engine, DDP):
        return "one process"
    return f"{size} process{'es' * (size > 1)} under {title(engine)}"


def matches(pattern: str, model: str, layer: str) -> bool:
    """Whether a pattern such as `3.*` or `generator/3.*` names a layer; `*` stands for one part of a name."""
    of_model, _, of_layer = pattern.rpartition("/")
    parts, names = of_layer.split("."), layer.split(".")
    is_alike = len(parts) == len(names) and all(map(fnmatchcase, names, parts))
    return is_alike and fnmatchcase(model, of_model or "*")
