"""How a map-style dataset of PyTorch's kind, given by its import path, is read.

[data]
kind = "torchvision.datasets:CIFAR10"     # any class or function that returns a dataset
root = "data"                             # its own arguments
download = true

[data.examples]                           # how its items become examples
fields = ["image", "label"]
train = { train = true }                  # arguments of one part alone
evaluate = { train = false }
"""

from dataclasses import field
from typing import Annotated, Any

from dtrain.data.values import Channels, Range
from dtrain.spec.table import Checked, Frozen, Natural, Table, table


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names):
        raise ValueError("needs at least one name, and each only once")
    return names


@table
class Reading(Table):
    """The table `[data.examples]` beside a dataset's own arguments.

    Items are tables by field, tuples in the order of `fields`, or single values (then `fields`
    has one name). Arrays, tensors and PIL pictures become arrays as they do for `arrays`.
    """

    # names of an item's parts, in order
    fields: Annotated[tuple[str, ...], Checked(_distinct)] = ("image", "label")
    channels: Channels = "last"  # where uint8 (H, W, C) or (C, H, W) arrays keep their channels
    range: Range = (-1.0, 1.0)  # what black and white become
    workers: Natural = 2  # processes that read ahead; 0 reads in the trainer itself
    train: Frozen[Any] = field(default_factory=dict)  # more arguments for the dataset of this part
    evaluate: Frozen[Any] | None = None  # the same; left out: there are none for evaluation
