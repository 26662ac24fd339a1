"""The memory of each process: a model of 100 million parameters whole (DDP), and in parts (FSDP2, ZeRO-3).

    python benchmarks/memory.py

Peaks of resident memory while the model is built, and while it is trained for a few steps, beyond what the
process has after its imports; on the CPU, over gloo. Adam trains a transformer of 8 blocks in fp32.
"""

import argparse
import ctypes
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import dtrain
from dtrain.scale.tables import DDP, FSDP, Parallel, Scale, ZeRO

ENGINES: dict[str, Parallel] = {
    "ddp": DDP(gradient_as_bucket_view=True),
    "fsdp": FSDP(),
    "zero3": ZeRO(stage=3, reduce_bucket_size=5_000_000, prefetch_bucket_size=5_000_000),
}
WORLDS = (1, 2, 4)
STEPS = 2

RECIPE = """
name = "memory"
[system]
kind = "language_model"
[models.language_model]
input = [4]
layers = [
    { kind = "embedding", size = 256, out = 1024 },
    { kind = "repeat", times = 8, layers = [
        { kind = "residual", layers = [{ kind = "layer_norm" }, { kind = "attention", heads = 16 }] },
        { kind = "residual", layers = [
            { kind = "layer_norm" },
            { kind = "linear", out = 4096 },
            { kind = "activation", function = "gelu" },
            { kind = "linear", out = 1024 },
        ] },
    ] },
    { kind = "linear", out = 256 },
]
[optimizers.language_model]
kind = "adam"
lr = 1e-4
[data]
kind = "text"
path = "text.txt"
length = 4
[train]
steps = 1_000
batch_size = 4
micro_batch_size = 1
[every]
log = 100
save = 0
[track]
kinds = []
"""


def resident(key: str) -> int:
    """Bytes of memory that this process has (`VmRSS`), or had at most (`VmHWM`) since `forget`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def forget() -> None:
    """Give back what is free, and count the peak anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(folder: Path, engine: str) -> None:
    """One process of several: its peaks in a file."""
    import dtrain.engines.engine
    import dtrain.engines.sharded

    if engine.startswith("zero"):
        import deepspeed  # noqa: F401  # its imports are no memory of a model's
    torch.set_num_threads(1)
    forget()
    before = resident("VmRSS")
    scale = Scale(engine=ENGINES[engine])
    with dtrain.setup(dtrain.load(folder / "recipe.toml"), runs=folder / "runs", scale=scale) as run:
        built = resident("VmHWM") - before
        forget()
        steps = (event for event in dtrain.train(run) if type(event).__name__ == "Stepped")
        for _ in range(STEPS):
            next(steps)
        trained = resident("VmHWM") - before
        peaks = run.engine.gather([built, trained])
        if run.engine.rank == 0:
            (folder / "peaks.json").write_text(
                json.dumps([max(column) for column in zip(*peaks, strict=True)])
            )
        os._exit(0)  # no checkpoint, and nothing to be put away in order


def peaks_of(engine: str, processes: int, folder: Path) -> tuple[int, int]:
    """The largest peaks of any process, while building and training."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    world |= {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back, whatever was freed before
    command = [sys.executable, __file__, "--engine", engine, "--folder", str(folder)]
    ranks = [
        subprocess.Popen(command, env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise SystemExit(f"{engine} on {processes} failed")
    built, trained = json.loads((folder / "peaks.json").read_text())
    return built, trained


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=ENGINES)  # this one alone
    parser.add_argument("--folder", type=Path)  # of a process of several
    asked = parser.parse_args()
    if asked.folder is not None:
        measure(asked.folder, asked.engine)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "text.txt").write_text("It is a truth universally acknowledged. " * 100)
        (folder / "recipe.toml").write_text(RECIPE)
        size = dtrain.load(folder / "recipe.toml").models["language_model"].parameter_count()
        bytes_of = f"{size / 1e6:.1f} million parameters in fp32: {4 * size / 2**20:.0f} MiB"
        print(f"{bytes_of}; torch {torch.__version__}")
        print(f"{'MiB of a process':16}{'processes':>10}{'building':>10}{'training':>10}")
        for engine in [asked.engine] if asked.engine else ENGINES:
            for processes in WORLDS:
                built, trained = peaks_of(engine, processes, folder)
                print(f"{engine:16}{processes:10}{built / 2**20:10.0f}{trained / 2**20:10.0f}", flush=True)


if __name__ == "__main__":
    main()
