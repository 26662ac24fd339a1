"""The cost of a step under ZeRO: dtrain against a loop as DeepSpeed's documentation has it, on two processes.

    python benchmarks/zero_cost.py

An MLP 784-1024-1024-10 at batch 128, 64 on each process, Adam, gradients clipped by their norm. Both have the
same configuration and take turns in the same two processes, on one thread each. The ratios are medians over
rounds: of wall time, and of the processor's, which says more on a machine that does other things as well.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import dtrain
from dtrain.scale.tables import Scale, ZeRO

DATA = Path(__file__).parents[1] / "recipes/data/fashion-mnist-7k.npz"
ROUNDS, STEPS, BATCH = 20, 10, 64

RECIPE = """
name = "zero-cost"
[system]
kind = "classifier"
[models.classifier]
input = [784]
layers = [
    { kind = "linear", out = 1024 },
    { kind = "activation", function = "relu" },
    { kind = "linear", out = 1024 },
    { kind = "activation", function = "relu" },
    { kind = "linear", out = 10 },
]
[optimizers.classifier]
kind = "adam"
lr = 1e-3
clip = 1.0
[data]
kind = "arrays"
path = "pictures.npz"
[train]
steps = 1_000_000
batch_size = 128
micro_batch_size = 64
[every]
log = 100
save = 0                                  # as the other loop
[track]
kinds = []
"""


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Pictures as vectors (6000, 784), from -1 to 1, and their labels."""
    with np.load(DATA) as arrays:
        image = arrays["train_image"].reshape(-1, 784).astype(np.float32) / 127.5 - 1
        return image, arrays["train_label"].astype(np.int64)


def trained_by_dtrain(folder: Path, options: ZeRO) -> Iterator[None]:
    """The whole of dtrain's loop, as `dtrain run` has it, with a log every 100 steps."""
    recipe = dtrain.load(folder / "recipe.toml")
    with dtrain.setup(recipe, runs=folder / "runs", fresh=True, scale=Scale(engine=options)) as run:
        for _ in dtrain.train(run):
            yield


def hand_written(options: ZeRO) -> Iterator[None]:
    """What DeepSpeed's documentation shows, in the process group that is open."""
    import deepspeed

    from dtrain.engines.zero.setup import configuration

    net = nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    told = configuration(options, sum(p.numel() for p in net.parameters()), on_gpu=False)
    told |= {"gradient_clipping": 1.0, "train_micro_batch_size_per_gpu": BATCH}
    told["zero_optimization"].pop("compute_grad_norm", None)
    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=told)
    data = TensorDataset(*map(torch.from_numpy, pictures()))
    loader = DataLoader(data, batch_size=BATCH, sampler=DistributedSampler(data), drop_last=True)
    loss_of = nn.CrossEntropyLoss()
    try:
        while True:
            for image, label in loader:
                loss = loss_of(engine(image), label)
                engine.backward(loss)
                engine.step()
                yield
    finally:
        engine.destroy()


def compare(folder: Path, stage: int) -> str:
    """Let both take turns, and say what a step took."""
    options = ZeRO(stage=stage)  # type: ignore[arg-type]  # one of the three
    if stage == 3:  # otherwise these parameters would all stay whole
        options = ZeRO(stage=3, persistence_threshold=10_000)
    ratios: dict[str, list[float]] = {"wall": [], "processor": []}
    times: list[float] = []
    with closing(trained_by_dtrain(folder, options)) as own:
        next(own)  # opens the process group
        with closing(hand_written(options)) as other:
            for number in range(ROUNDS + 2):
                ours, theirs = timed(own), timed(other)
                if number >= 2:  # the first two warm up
                    times.append(ours[0])
                    for of, one, two in zip(ratios.values(), ours, theirs, strict=True):
                        of.append(one / two)
    said = ", ".join(
        f"{name} {median(of):.3f} ({min(of):.2f} to {max(of):.2f})" for name, of in ratios.items()
    )
    return f"ZeRO-{stage}: {median(times):6.1f} ms a step; over the hand-written one: {said}"


def timed(loop: Iterator[None]) -> tuple[float, float]:
    """Milliseconds of a step, by the wall and of this process."""
    begin, own = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        next(loop)
    return (time.perf_counter() - begin) / STEPS * 1e3, (time.process_time() - own) / STEPS * 1e3


def rank(folder: Path) -> None:
    """One of the processes."""
    for stage in (1, 2, 3):
        said = compare(folder, stage)
        if os.environ["RANK"] == "0":
            print(said, flush=True)
    from dtrain.world.processes import leave

    leave(0)


def main() -> int:
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        image, label = pictures()
        np.savez(folder / "pictures.npz", train_image=image, train_label=label)
        (folder / "recipe.toml").write_text(RECIPE)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        ours = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        ours |= {"CUDA_VISIBLE_DEVICES": "", "LOCAL_WORLD_SIZE": "2"}
        print(
            f"{ROUNDS} rounds of {STEPS} steps each, in turn; torch {torch.__version__}, 1 thread a process"
        )
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, path],
                env={**os.environ, **ours, "RANK": str(number), "LOCAL_RANK": str(number)},
            )
            for number in range(2)
        ]
        return max(process.wait() for process in ranks)


if __name__ == "__main__":
    sys.exit(main() if len(sys.argv) == 1 else rank(Path(sys.argv[1])))
