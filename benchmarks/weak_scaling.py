"""The cost of a step on several processes: dtrain against DistributedDataParallel in a hand-written loop.

    python benchmarks/weak_scaling.py --processes 2 --engine ddp

Both train one model on the same pictures with the same optimizer, in the same processes over gloo, on one
thread each; they take turns, so that noise is shared, and the ratio is the median of those of the rounds. On
a machine that does other work, too, look at the time of the processor, in which there is no waiting.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import dtrain
from dtrain.scale.tables import DDP, FSDP, Parallel, Scale, ZeRO

Times = dict[str, list[list[float]]]  # of each loop and round: milliseconds of a step, by clock and processor
DATA = Path(__file__).parents[1] / "recipes/data/fashion-mnist-7k.npz"
BATCH = 64  # of each process
ENGINES: dict[str, Parallel] = {
    "ddp": DDP(),
    "fsdp": FSDP(),
    "zero1": ZeRO(stage=1),
    "zero2": ZeRO(stage=2),
    "zero3": ZeRO(stage=3),
}

RECIPE = """
name = "weak-scaling"
[system]
kind = "classifier"
[models.classifier]
input = [1, 28, 28]
layers = [
    { kind = "conv", out = 32, kernel = 3, padding = 1 },
    { kind = "activation", function = "relu" },
    { kind = "pool", mode = "max" },
    { kind = "conv", out = 64, kernel = 3, padding = 1 },
    { kind = "activation", function = "relu" },
    { kind = "pool", mode = "max" },
    { kind = "flatten" },
    { kind = "linear", out = 128 },
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
batch_size = BATCH
micro_batch_size = MICRO
[every]
log = 100
save = 0                                  # as the other loop
[track]
kinds = []
"""


def model() -> nn.Module:
    """The recipe's, by hand: 421,642 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Pictures (6000, 1, 28, 28), from -1 to 1, and their labels."""
    with np.load(DATA) as arrays:
        image = arrays["train_image"].reshape(-1, 1, 28, 28).astype(np.float32) / 127.5 - 1
        return image, arrays["train_label"].astype(np.int64)


def hand_written() -> Iterator[None]:
    """What PyTorch's tutorial of DistributedDataParallel shows, with the fused optimizer that dtrain uses."""
    net, loss_of = DistributedDataParallel(model()), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    data = TensorDataset(*map(torch.from_numpy, pictures()))
    sampler: DistributedSampler[TensorDataset] = DistributedSampler(data)
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler, drop_last=True)
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        for image, label in loader:
            optimizer.zero_grad()
            loss = loss_of(net(image), label)
            loss.backward()
            optimizer.step()
            yield
        epoch += 1


def trained_by_dtrain(folder: Path, engine: Parallel) -> Iterator[None]:
    """The whole of dtrain's loop, as `dtrain run` has it, with a log every 100 steps."""
    with dtrain.setup(
        dtrain.load(folder / "recipe.toml"), runs=folder / "runs", scale=Scale(engine=engine)
    ) as run:
        for _ in dtrain.train(run):
            yield


def measure(folder: Path, engine: str, rounds: int, steps: int) -> None:
    """One process of several: both loops in turn, as all of them do; the first prints."""
    torch.set_num_threads(1)
    loops = {"dtrain": trained_by_dtrain(folder, ENGINES[engine])}
    next(loops["dtrain"])  # joins the other processes
    loops["hand-written"] = hand_written()
    times: Times = {name: [] for name in loops}
    for turn in range(rounds + 1):
        order = list(loops.items())
        for name, loop in order if turn % 2 else reversed(order):
            distributed.barrier()
            begin = time.perf_counter(), time.process_time()
            for _ in range(steps):
                next(loop)
            now = time.perf_counter(), time.process_time()
            times[name].append([(end - start) / steps * 1e3 for start, end in zip(begin, now, strict=True)])
    loops.pop("hand-written").close()  # DDP must end before the process group does
    rank = distributed.get_rank()
    if rank == 0:
        report(engine, times, rounds, steps)
    loops["dtrain"].close()


def report(engine: str, times: Times, rounds: int, steps: int) -> None:
    """Print times and their ratio; the first round warms up."""
    print(
        f"{distributed.get_world_size()} processes, {rounds} rounds of {steps} steps each, in turn; ", end=""
    )
    print(f"{engine}, gloo, torch {torch.__version__}, 1 thread")
    for number, what in enumerate(("by the clock", "of the processor")):
        print(f"{what:20}{'ms a step':>10}{'min':>8}{'max':>8}")
        found = {name: [each[number] for each in rows[1:]] for name, rows in times.items()}
        for name, own in found.items():
            print(f"  {name:18}{median(own):10.2f}{min(own):8.2f}{max(own):8.2f}")
        ratios = [own / other for own, other in zip(*found.values(), strict=True)]
        said = f"{median(ratios):.3f} (rounds {min(ratios):.3f} to {max(ratios):.3f})"
        print(f"  dtrain / hand-written: {said}", flush=True)


def start(processes: int, arguments: list[str], folder: Path) -> int:
    """Start the processes as torchrun would, and wait for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, __file__, *arguments, "--folder", str(folder)]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    return max(abs(rank.wait()) for rank in ranks)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--engine", choices=ENGINES, default="ddp")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--folder", type=Path)  # of a process of several
    asked = parser.parse_args()
    if asked.folder is not None:
        measure(asked.folder, asked.engine, asked.rounds, asked.steps)
        return 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        image, label = pictures()
        np.savez(folder / "pictures.npz", train_image=image, train_label=label)
        recipe = RECIPE.replace("= BATCH", f"= {BATCH * asked.processes}").replace("MICRO", str(BATCH))
        (folder / "recipe.toml").write_text(recipe)
        return start(asked.processes, sys.argv[1:], folder)


if __name__ == "__main__":
    sys.exit(main())
