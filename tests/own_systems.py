"""A system of a user's own with all that is hard to follow, and what is to be said of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dtrain import Loss, Ops, Phase, System
from dtrain.systems.base import Batch, Logs, Models

LAYERS = "layers = [{ kind = 'linear', out = 6 }]"
TABLE = f"""\
name = "own"
system = {{ kind = "own_systems:Own" }}
models = {{ first = {{ input = [6], {LAYERS} }}, second = {{ input = [6], {LAYERS} }},
    teacher = {{ input = [6], {LAYERS} }}, idle = {{ input = [6], {LAYERS} }} }}
optimizers = {{ "*" = {{ kind = "sgd", lr = 0.1 }} }}
data = {{ kind = "arrays", path = "numbers.npz" }}
train = {{ steps = 4, batch_size = 4 }}
"""


SAID = (
    "mean, spread = chunk(first(x), 2, 1)                      (4, 3) each",
    "code = mean + exp(spread) * normal(4, 3)                  (4, 3)",
    "goal = softmax(teacher(x), -1)                            (4, 6)",
    "nearness = sum((cat([code, code], 1) - goal)**2) / count  ()",
    "loss = nearness + 0.1 * mean(mean**2)",
    "a mean over count items, and weighted by them",
    "on every 3rd step, 2 updates, each on 4 fresh examples",
    "gradients stop at: made = second(x); none reaches second this way",
    "warning: no gradient of this loss reaches second, so nothing trains it here",
    "warning: idle is part of no loss and no evaluation",
)


def describe_own(folder: Path) -> Path:
    """Write the recipe and its numbers; return its path."""
    np.savez(folder / "numbers.npz", x=np.ones((8, 6), np.float32))
    (folder / "own.toml").write_text(TABLE)
    return folder / "own.toml"


@dataclass(frozen=True)
class Own(System):
    """Two phases; the second trains nothing, by mistake."""

    fails: bool = False

    def phases(self) -> Sequence[Phase]:
        return Phase(("first",), self.imitate), Phase(("second",), self.forget, repeat=2, every=3)

    def imitate(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        x = batch["nothing" if self.fails else "x"]
        mean, spread = models.first(x).chunk(2, 1)
        code = mean + spread.exp() * ops.normal(len(x), 3)
        goal = models.teacher(x).softmax(-1)
        count = (x[:, 0] > 0).sum()
        if count.item() < 0:  # looks at a value
            raise ValueError("negative")
        nearness = ((torch.cat([code, code], 1) - goal) ** 2).sum() / count
        return Loss(nearness + 0.1 * (mean**2).mean(), {"nearness": nearness}, weight=count)

    def forget(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        with torch.no_grad():
            made = models.second(batch["x"])
        return Loss(made.mean())

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Logs:
        return {}


LINEAR = "{ input = [6], layers = [{ kind = 'linear', out = 6 }] }"
CYCLE = f"""\
name = "cycle"
system = {{ kind = "own_systems:Cycle" }}
models = {{ to_a = {LINEAR}, to_b = {LINEAR}, judge_a = {LINEAR}, judge_b = {LINEAR} }}
optimizers = {{ "*" = {{ kind = "adam", lr = 0.1 }} }}
data = {{ kind = "arrays", path = "numbers.npz" }}
train = {{ steps = 4, batch_size = 4 }}
"""


def describe_cycle(folder: Path) -> Path:
    """Write a recipe of four models and its numbers; return its path."""
    np.savez(folder / "numbers.npz", a=np.ones((8, 6), np.float32), b=np.ones((8, 6), np.float32))
    (folder / "cycle.toml").write_text(CYCLE)
    return folder / "cycle.toml"


@dataclass(frozen=True)
class Cycle(System):
    """Two models that translate, there and back again, and two that judge them."""

    def phases(self) -> Sequence[Phase]:
        return Phase(("to_a", "to_b"), self.translate), Phase(("judge_a", "judge_b"), self.judge)

    def translate(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        a, b = batch["a"], batch["b"]
        made_a, made_b = models.to_a(b), models.to_b(a)
        terms = {
            "judged": ops.softplus(-models.judge_a(made_a)).mean()
            + ops.softplus(-models.judge_b(made_b)).mean(),
            "cycle": ops.l1(models.to_a(made_b), a) + ops.l1(models.to_b(made_a), b),
            "identity": ops.l1(models.to_a(a), a) + ops.l1(models.to_b(b), b),
        }
        return Loss(terms["judged"] + 10 * terms["cycle"] + 5 * terms["identity"], terms)

    def judge(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        made_a, made_b = ops.detach(models.to_a(batch["b"])), ops.detach(models.to_b(batch["a"]))
        real_a, real_b = models.judge_a(batch["a"]), models.judge_b(batch["b"])
        real = ops.softplus(-real_a).mean() + ops.softplus(-real_b).mean()
        fake = ops.softplus(models.judge_a(made_a)).mean() + ops.softplus(models.judge_b(made_b)).mean()
        return Loss(real + fake, {"real": real, "fake": fake})
