"""The recipe: everything that a run's result depends on, as one frozen value."""

from typing import Annotated, Any, Literal

from pydantic import Field

from dtrain.data.source import Source
from dtrain.spec.models import Model, decode_model
from dtrain.spec.optimizers import AnyOptimizer
from dtrain.spec.table import Decoded, Fraction, Frozen, Imported, Natural, OneOf, Positive, Table, table
from dtrain.systems.base import AnySystem

AnySource = Annotated[Source | Imported, OneOf(Source)]
AnyModel = Annotated[Model, Decoded(decode_model)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Precision = Literal["fp32", "fp64", "bf16", "fp16"]


@table
class Train(Table):
    """How long, how much at a time, how precisely."""

    steps: Positive | None = None  # or epochs
    epochs: Positive | None = None  # passes over the training examples
    batch_size: Positive  # examples of one update, over all devices
    micro_batch_size: Positive | None = (
        None  # examples in one forward of one device; the whole batch if left out
    )
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either `steps` or `epochs`")

    @property
    def micro(self) -> int:
        """Examples in one forward of one device."""
        return self.micro_batch_size or self.batch_size


@table
class Average(Table):
    """An exponential moving average of a model's weights; it is what is evaluated and sampled."""

    decay: Fraction  # share of the average that stays at each update


@table
class Every(Table):
    """Periods in steps; 0 means never. The last step is always evaluated, sampled and saved."""

    log: Natural = 20
    sample: Natural = 0
    evaluate: Natural = 0
    save: Natural = 500


@table
class Evaluate(Table):
    """What evaluation reads, where it is not the test part of `[data]`."""

    data: AnySource | None = None


@table
class Checkpoint(Table):
    """Which checkpoints stay."""

    keep: Positive = 3  # the newest ones
    best: str | None = None  # and the best by this metric, such as "evaluate/accuracy"
    mode: Literal["max", "min"] = "max"  # which value of `best` is best


@table
class Track(Table):
    """Who watches a run."""

    kinds: tuple[Literal["console", "jsonl", "wandb"], ...] = ("console", "jsonl", "wandb")  # each once
    project: str = "dtrain"  # in W&B

    def __post_init__(self) -> None:
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("`kinds` names a tracker twice")


@table
class Recipe(Table):
    """One training run, whole: what is trained, on what, how. See DESIGN for each table."""

    name: Name
    seed: Natural = 0
    hyperparameters: Frozen[Any] = Field(default_factory=dict)
    system: AnySystem
    models: Frozen[AnyModel]
    optimizers: Frozen[AnyOptimizer]  # under the model's name; "*" serves all that have none
    data: AnySource
    train: Train
    averages: Frozen[Average] = Field(default_factory=dict)
    every: Every = Every()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    track: Track = Track()
