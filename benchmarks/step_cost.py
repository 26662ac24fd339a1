"""The cost of a step: dtrain against a hand-written PyTorch loop and Accelerate's documented one.

    python benchmarks/step_cost.py

The model is an MLP 784-64-10 at batch 32 on pictures in memory, where a step is about half a millisecond,
so that what a framework adds shows. The loops take turns in one process, on one thread; the ratios are of
medians.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dtrain

DATA = Path(__file__).parents[1] / "recipes/data/fashion-mnist-7k.npz"
ROUNDS, STEPS = 15, 400

RECIPE = """
name = "step-cost"
[system]
kind = "classifier"
[models.classifier]
input = [784]
layers = [
    { kind = "linear", out = 64 },
    { kind = "activation", function = "relu" },
    { kind = "linear", out = 10 },
]
[optimizers.classifier]
kind = "adam"
lr = 1e-3
[data]
kind = "arrays"
path = "pictures.npz"
[train]
steps = 1_000_000
batch_size = 32
[every]
log = 100
save = 0                                  # as the other loops
[track]
kinds = []
"""


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Pictures as vectors (6000, 784), from -1 to 1, and their labels."""
    with np.load(DATA) as arrays:
        image = arrays["train_image"].reshape(-1, 784).astype(np.float32) / 127.5 - 1
        return image, arrays["train_label"].astype(np.int64)


def tensors() -> TensorDataset:
    return TensorDataset(*map(torch.from_numpy, pictures()))


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def hand_written() -> Iterator[None]:
    """What a PyTorch tutorial shows."""
    net, loss_of = model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = DataLoader(tensors(), batch_size=32, shuffle=True)
    while True:
        for image, label in loader:
            optimizer.zero_grad()
            loss = loss_of(net(image), label)
            loss.backward()
            optimizer.step()
            yield


def accelerated() -> Iterator[None]:
    """What Accelerate's quick tour shows."""
    accelerator, loss_of = Accelerator(cpu=True), nn.CrossEntropyLoss()
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = DataLoader(tensors(), batch_size=32, shuffle=True)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    while True:
        for image, label in loader:
            optimizer.zero_grad()
            loss = loss_of(net(image), label)
            accelerator.backward(loss)
            optimizer.step()
            yield


def trained_by_dtrain(folder: Path) -> Iterator[None]:
    """The whole of dtrain's loop, as `dtrain run` has it, with a log every 100 steps."""
    image, label = pictures()
    np.savez(folder / "pictures.npz", train_image=image, train_label=label)
    (folder / "recipe.toml").write_text(RECIPE)
    with dtrain.setup(dtrain.load(folder / "recipe.toml"), runs=folder / "runs") as run:
        for _ in dtrain.train(run):
            yield


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loops = {
            "dtrain": trained_by_dtrain(Path(folder)),
            "hand-written, DataLoader": hand_written(),
            "Accelerate, documented": accelerated(),
        }
        times: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(ROUNDS + 1):
            for name, loop in loops.items():
                begin = time.perf_counter()
                for _ in range(STEPS):
                    next(loop)
                times[name].append((time.perf_counter() - begin) / STEPS * 1e6)
        for loop in loops.values():
            loop.close()
    middle = {name: median(found[1:]) for name, found in times.items()}  # the first round warms up
    print(f"{ROUNDS} rounds of {STEPS} steps each, in turn; torch {torch.__version__}, 1 thread")
    print(f"{'':28}{'us a step':>10}{'min':>8}{'max':>8}{'dtrain / it':>14}")
    for name, found in times.items():
        ratio = middle["dtrain"] / middle[name]
        print(f"{name:28}{middle[name]:10.0f}{min(found[1:]):8.0f}{max(found[1:]):8.0f}{ratio:14.2f}")


if __name__ == "__main__":
    sys.exit(main())
