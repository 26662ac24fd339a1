"""A system with one fault, on one rank; the recipe says what goes wrong. For test_faults.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from faulty_data import go_wrong, is_rank

from dtrain import Loss, Ops, Phase, System
from dtrain.systems.base import Array, Batch, Logs, Models

AT = 3  # the update that goes wrong, counted from 0: none of the first, which may take long

RECIPE = """\
name = "faulty"
system = {{ kind = "{module}:Faulty", fault = "{fault}", rank = {rank} }}
models = {{ left = {{ input = [4], layers = [{{ kind = "linear", out = 4 }}] }} }}
optimizers = {{ "*" = {{ kind = "sgd", lr = 0.1 }} }}
data = {{ {data} }}
train = {{ steps = 8, batch_size = 6, micro_batch_size = 2 }}
every = {{ log = 1, evaluate = {evaluate}, save = 7 }}
track = {{ kinds = ["jsonl"] }}
"""
STORED = 'kind = "arrays", path = "numbers.npz"'
FETCHED_BY_HAND = (
    'kind = "faulty_data:Numbers", fault = "{fault}", rank = {rank}, '
    'examples = {{ fields = ["x"], workers = {workers} }}'
)


def write(
    folder: Path,
    *,
    fault: str,
    rank: int,
    module: str = "faulty",
    examples: int = 18,
    workers: int | None = None,
) -> Path:
    """Write a recipe with a fault, and its numbers; with `workers`, the data has it. Return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.ones((examples, 4), np.float32)
    np.savez(folder / "numbers.npz", train_x=numbers, test_x=numbers)
    data = STORED if workers is None else FETCHED_BY_HAND.format(fault=fault, rank=rank, workers=workers)
    own = fault if workers is None else "none"
    evaluate = 6 if workers is None else 0
    text = RECIPE.format(module=module, fault=own, rank=rank, data=data, evaluate=evaluate)
    (folder / "faulty.toml").write_text(text)
    return folder / "faulty.toml"


@dataclass(frozen=True)
class Faulty(System):
    """One model of squares; the fault happens on one rank, in its micro-batch of update AT."""

    fault: str
    rank: int

    def phases(self) -> Sequence[Phase]:
        return (Phase(("left",), self.square),)

    def square(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        value = models.left(batch["x"]).square().mean()
        if is_rank(self.rank) and ops.step == AT:
            go_wrong(self.fault)
            if self.fault == "nan":
                value = value * float("nan")
        return Loss(value)

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Logs:
        if self.fault == "evaluate" and is_rank(self.rank) and ops.step >= AT:
            raise ArithmeticError("this rank cannot evaluate")
        return {"size": models.left(batch["x"]).square().mean()}

    def predict(self, models: Models, batch: Batch, ops: Ops) -> tuple[Array, Array]:
        return models.left(batch["x"]), batch["x"]
