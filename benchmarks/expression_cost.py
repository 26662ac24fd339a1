"""The cost of an expression: a composed system against the same losses in Python.

    python benchmarks/expression_cost.py

An MLP 784-64-10 at batch 32 on pictures in memory, in both cases with dtrain's whole loop, so that a step is
about half a millisecond. The two take turns of some steps each in one process, on one thread; times are those
of the processor, so that other work on the machine counts less, and the ratio is the median over the turns.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from step_cost import RECIPE, pictures

import dtrain
from dtrain import Loss, Phase, System

TURNS, STEPS = 150, 60
BY_HAND = f'kind = "{Path(__file__).resolve()}:ByHand"'
COMPOSED = """kind = "composed"
values.logits = "classifier(image)"
[[system.phases]]
updates = ["classifier"]
losses.right = "cross_entropy(logits, label)"
losses.small = { of = "logits**2", weight = 1e-3 }
logs.accuracy = "argmax(logits) == label"
"""


@dataclass(frozen=True)
class ByHand(System):
    """What the expressions say, in Python."""

    def phases(self):
        return (Phase(("classifier",), self.loss),)

    def loss(self, models, batch, ops):
        logits = models.classifier(batch["image"])
        right, small = ops.cross_entropy(logits, batch["label"]), (logits**2).mean()
        accuracy = (logits.argmax(-1) == batch["label"]).to(logits.dtype).mean()
        return Loss(right + 1e-3 * small, {"right": right, "small": small, "accuracy": accuracy})


def training(folder: Path, name: str, system: str) -> Iterator[None]:
    """A step of a run each time."""
    text = RECIPE.replace('kind = "classifier"\n', system + "\n", 1)
    (folder / f"{name}.toml").write_text(text.replace("step-cost", name))
    with dtrain.setup(dtrain.load(folder / f"{name}.toml"), runs=folder / "runs") as run:
        for _ in dtrain.train(run):
            yield


def main() -> None:
    import numpy as np

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, label = pictures()
        np.savez(folder / "pictures.npz", train_image=image, train_label=label)
        loops = {
            "composed": training(folder, "composed", COMPOSED),
            "Python": training(folder, "python", BY_HAND),
        }
        times: dict[str, list[float]] = {name: [] for name in loops}
        for turn in range(TURNS + 5):
            for each in sorted(loops, reverse=turn % 2 == 0):
                begin = time.process_time()
                for _ in range(STEPS):
                    next(loops[each])
                times[each].append((time.process_time() - begin) / STEPS * 1e6)
        for loop in loops.values():
            loop.close()
    composed, by_hand = (found[5:] for found in times.values())  # the first turns warm up
    ratio = median(a / b for a, b in zip(composed, by_hand, strict=True))
    print(f"{TURNS} turns of {STEPS} steps each; torch {torch.__version__}, 1 thread")
    print(f"composed {median(composed):.0f} us a step, Python {median(by_hand):.0f} us, ratio {ratio:.3f}")


if __name__ == "__main__":
    sys.exit(main())
