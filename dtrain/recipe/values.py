"""The recipe: everything that a run's result depends on, as one frozen value."""

from dataclasses import field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from dtrain.data.source import Source
from dtrain.format.addresses import for_copies
from dtrain.spec.averages import AnyAverage
from dtrain.spec.metrics import Metric
from dtrain.spec.models import AnyModel, without_beginning
from dtrain.spec.optimizers import AnyOptimizer
from dtrain.spec.sweep import Sweep
from dtrain.spec.table import (
    Checked,
    Frozen,
    Imported,
    Name,
    Natural,
    OneOf,
    Positive,
    Table,
    Wrong,
    empty,
    table,
)
from dtrain.systems.base import AnySystem

AnySource = Annotated[Source | Imported, OneOf(Source)]
AnyMetric = Annotated[Metric | Imported, OneOf(Metric)]
Elsewhere = Annotated[Path, Checked(for_copies)]  # which makes a string of one that is a URL
Precision = Literal["fp32", "tf32", "fp64", "bf16", "fp16"]


@table
class Train(Table):
    """How long, how much at a time, how precisely."""

    steps: Positive | None = None  # of the whole run; or else epochs
    epochs: Positive | None = None  # passes over the training examples
    batch_size: Positive  # examples of one update, over all devices
    micro_batch_size: Positive | None = None  # examples in one forward; the whole batch if left out
    # of the arithmetic; weights stay in fp32, or in fp64. tf32, of GPUs alone, rounds what is multiplied in
    # matrix products and convolutions
    precision: Precision = "fp32"
    # sums of gradients that gradients of micro-batches are added up in, each by itself: then any number of
    # processes that divides it gives the same bits; sums go by the number of processes if left out
    lanes: Positive | None = None
    # kernels that give the same bits each time, or a mistake that names what has none; and a record of every
    # step, by which `dtrain reproduce` finds the first that differs
    deterministic: bool = False
    # where a loss or a gradient is not finite: stop, or skip the update
    on_nonfinite: Literal["stop", "skip"] = "stop"
    patience: Positive | None = None  # ends after so many evaluations without a better `checkpoint.best`

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise Wrong("steps" if self.steps is None else "epochs", "give either `steps` or `epochs`")

    @property
    def micro(self) -> int:
        """Examples in one forward of one device."""
        return self.micro_batch_size or self.batch_size


@table
class Every(Table):
    """Periods in steps; 0 means never. The last step is always evaluated, sampled and saved."""

    log: Natural = 20  # losses and speed
    sample: Natural = 0  # pictures; 0: at the end alone
    evaluate: Natural = 0  # 0: at the end alone
    save: Natural = 500  # 0: at the end alone, so a run that is cut off begins anew


@table
class Evaluate(Table):
    """What evaluation reads, and what it measures besides the system's own metrics."""

    data: AnySource | None = None  # where it is not the test part of `[data]`
    metrics: Frozen[AnyMetric] = field(default_factory=empty)  # of predictions and targets, by name


@table
class Checkpoint(Table):
    """How checkpoints are kept, and which of them stay."""

    # a folder or a URL, such as "s3://bucket/runs", to which they are copied, as well; to nowhere if left out
    path: Elsewhere | None = None
    keep: Positive = 3  # the newest ones
    # and, of all that are saved, those whose step is a multiple of this, for ever; 0: none
    keep_every: Natural = 0
    # and the best by this metric, such as "evaluate/accuracy"; an evaluation with a new best is saved
    best: str | None = None
    keep_best: Positive = 1  # how many of the best by `best`
    # which value of `best` is best; to be said where neither its kind nor the system does
    mode: Literal["max", "min"] | None = None
    shard_bytes: Positive = 4_000_000_000  # of a file at most, unless a single tensor is larger
    # whether hashes of all tensors are checked when one is read; of at most 1 GB they always are
    verify: bool = False


@table
class Track(Table):
    """Who watches a run."""

    kinds: tuple[Literal["console", "jsonl", "wandb"], ...] = ("console", "jsonl", "wandb")  # each once
    project: str = "dtrain"  # in W&B

    def __post_init__(self) -> None:
        if len(set(self.kinds)) < len(self.kinds):
            raise Wrong("kinds", "names a tracker twice")


@table
class Recipe(Table):
    """One training run, whole: what is trained, on what, how."""

    name: Name  # runs lie in runs/NAME
    seed: Natural = 0  # of first weights, order, noise: all that is random
    hyperparameters: Frozen[Any] = field(default_factory=empty)  # named values, for references
    system: AnySystem  # what is trained, down which losses
    models: Frozen[AnyModel]  # by name, as the system calls them
    optimizers: Frozen[AnyOptimizer]  # under the model's name; "*" serves all that have none
    data: AnySource  # where examples come from
    train: Train  # how long and how much at a time
    averages: Frozen[AnyAverage] = field(default_factory=empty)  # by model
    every: Every = Every()  # periods
    evaluate: Evaluate = Evaluate()  # other data and metrics of evaluation
    checkpoint: Checkpoint = Checkpoint()  # how they are kept, and which stay
    track: Track = Track()  # who watches the run
    sweep: Sweep | None = None  # trials with other values, for `dtrain sweep`; no run depends on it

    def without_beginnings(self) -> "Recipe":
        """The same where all weights are given anyway, as by a checkpoint: no model begins with others."""
        models = {name: without_beginning(model) for name, model in self.models.items()}
        return replace(self, models=MappingProxyType(models))
