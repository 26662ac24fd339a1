"""Checkpoints: how long the loop is held, how long until the disk has them, how long they take to load.

    python benchmarks/checkpoint.py            # 10 and 100 million parameters with Adam; 500 as an argument

Side by side in one process, on one thread, in a drawn order, each with the disk at rest: dtrain, and what
else saves the same model and optimizer: torch.save, torch.distributed.checkpoint and its async_save,
Accelerate's save_state, and Lightning's Fabric where it is installed. A memcpy of the state into buffers
that are there, and safetensors' own save_file with fsync, are what no saving can be quicker than. Times are
medians; dtrain's first save, which allocates its buffers, is told by itself.
"""

import gc
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as dcp

import dtrain
from dtrain.checkpoint.read import all_tensors, open_checkpoint
from dtrain.checkpoint.write import Content
from dtrain.format.files import canonical
from dtrain.recipe.write import to_toml
from dtrain.run import Run

ROUNDS = {10: 9, 100: 5, 500: 3}  # by millions of parameters
SIDE = 1024

RECIPE = """
name = "checkpoint-cost"
[system]
kind = "classifier"
[models.classifier]
input = [1024]
layers = [ {{ kind = "repeat", times = {times}, layers = [ {{ kind = "linear", out = 1024 }} ] }} ]
[optimizers.classifier]
kind = "adam"
lr = 1e-3
[data]
kind = "arrays"
path = "data.npz"
[train]
steps = 1_000_000
batch_size = 2
[every]
save = 0
[track]
kinds = []
"""


@contextmanager
def trained(millions: int, folder: Path) -> Iterator[Run]:
    """A run after its first step, whose optimizer has all of its state."""
    times = round(millions * 1e6 / (SIDE * SIDE + SIDE))
    (folder / "recipe.toml").write_text(RECIPE.format(times=times))
    image = np.random.default_rng(0).standard_normal((4, SIDE)).astype(np.float32)
    np.savez(folder / "data.npz", image=image, label=np.arange(4))
    with dtrain.setup(dtrain.load(folder / "recipe.toml"), runs=folder / "runs") as run:
        for event in dtrain.train(run):
            if event.step == 1:
                break
        yield run


def synced(path: Path) -> None:
    """Wait until every file under a path is on the disk."""
    for file in [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def begin(run: Run, path: Path) -> Callable[[], float]:
    """Hold the loop for as long as dtrain does, as loop.begin_save; what waits for the moment it was whole.

    The checkpoint is moved to `path`, from where it will be deleted.
    """
    content = Content(run.step, to_toml(run.recipe), canonical(run.state()), run.environment, None)
    whole: list[float] = []
    run.writer.begin(run.engine, content, lambda _: whole.append(time.perf_counter()))

    def wait() -> float:
        run.writer.finished(waits=True)[1].rename(path)
        return whole[0]

    return wait


Save = Callable[[Path], Callable[[], float] | None]  # what waits for the rest, where something is left


def ways(run: Run) -> dict[str, Save]:
    """The ways to save, each called with a folder that it may make."""
    module = run.engine.held["classifier"].module
    optimizer = run.engine.held["classifier"].optimizer.optimizer
    flat = {f"{part}/{name}": tensor for part, name, tensor in run.engine.tensors()}
    kept = {name: run.writer._snapshot[tuple(name.split("/", 1))] for name in flat}  # dtrain's own buffers
    accelerator = Accelerator(cpu=True)

    def memcpy(path: Path) -> None:
        for name, tensor in flat.items():
            kept[name].copy_(tensor)

    def safetensors(path: Path) -> None:
        path.mkdir()
        save_file(flat, path / "all.safetensors")
        synced(path)

    def torch_save(path: Path) -> None:
        path.mkdir()
        torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, path / "all.pt")
        synced(path)

    def distributed_save(path: Path) -> None:
        dcp.save(dict(flat), checkpoint_id=str(path))
        synced(path)

    def distributed_async(path: Path) -> Callable[[], float]:
        future = dcp.async_save(dict(flat), checkpoint_id=str(path))
        return lambda: (future.result(), synced(path), time.perf_counter())[2]

    prepared = accelerator.prepare(module, optimizer)

    def accelerate(path: Path) -> None:
        assert prepared
        accelerator.save_state(str(path))
        synced(path)

    found: dict[str, Save] = {
        "memcpy": memcpy,
        "safetensors + fsync": safetensors,
        "dtrain": partial(begin, run),
        "torch.save": torch_save,
        "DCP": distributed_save,
        "DCP async": distributed_async,
        "Accelerate": accelerate,
    }
    try:
        from lightning.fabric import Fabric
    except ImportError:
        print("Lightning is not installed: left out")
        return found
    fabric = Fabric(accelerator="cpu", devices=1)

    def lightning(path: Path) -> None:
        fabric.save(path / "all.ckpt", {"model": module, "optimizer": optimizer})
        synced(path)

    return {**found, "Lightning": lightning}


def rest(size: int) -> None:
    """Let the disk come to rest: who writes after another would wait for it, or find its bursts used up."""
    os.sync()
    time.sleep(size / 1e9)


def timed(save: Save, path: Path, size: int) -> tuple[float, float]:
    """Seconds that the caller is held, and until all `size` bytes are on the disk.

    Memory is used and freed before: a virtual machine may have to ask its host for what is free.
    """
    bytearray(b"x") * min(2 * size, psutil.virtual_memory().available // 2)
    since = time.perf_counter()
    waits = save(path)
    held = time.perf_counter() - since
    total = held if waits is None else waits() - since
    shutil.rmtree(path, ignore_errors=True)
    return held, total


def loads(run: Run, folder: Path, rounds: int) -> tuple[float, float, float]:
    """Seconds to load: load_file and a copy; dtrain, sizes and headers checked; and all hashes, too."""
    path = folder / "saved"
    begin(run, path)()
    own = {part: {} for part in ("models", "optimizers", "averages")}
    for part, name, tensor in run.engine.tensors():
        own[part][name] = tensor

    def plain() -> None:
        for part, named in own.items():
            if named:
                for name, tensor in load_file(next(path.glob(f"{part}-*.safetensors"))).items():
                    named[name].copy_(tensor)

    def restore(hashes: bool) -> None:
        checkpoint = open_checkpoint(path, hashes=hashes)
        for part, named in all_tensors(checkpoint).items():
            for name, tensor in named.items():
                own[part][name].copy_(tensor)

    found: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        for times, load in zip(found, (plain, lambda: restore(False), lambda: restore(True)), strict=True):
            since = time.perf_counter()
            load()
            times.append(time.perf_counter() - since)
    return median(found[0]), median(found[1]), median(found[2])


def measure(millions: int, folder: Path) -> None:
    with trained(millions, folder) as run:
        size = 12_000_000 * millions
        first = timed(partial(begin, run), folder / "saved", size)
        named = ways(run)
        if psutil.virtual_memory().available < 2 * size:  # its copy, and what the disk has not taken yet
            print("DCP async is left out: too little memory")
            del named["DCP async"]
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in named}
        names, order = list(named), random.Random(0)
        for _ in range(ROUNDS.get(millions, 3)):
            for name in order.sample(names, len(names)):
                gc.collect()
                rest(size)
                times[name].append(timed(named[name], folder / "saved", size))
        held = {name: median(held for held, _ in found) for name, found in times.items()}
        durable = {name: median(total for _, total in found) for name, found in times.items()}
        print(f"\n{millions} million parameters with Adam, {12 * millions / 1000:.2f} GB")
        for name in named:
            print(f"  {name:<20} held {held[name]:8.3f} s   on the disk {durable[name]:8.3f} s")
        print(f"  {'dtrain, first save':<20} held {first[0]:8.3f} s   on the disk {first[1]:8.3f} s")
        print(f"  held / memcpy: {held['dtrain'] / held['memcpy']:.2f}")
        print(
            f"  on the disk / save_file with fsync: {durable['dtrain'] / durable['safetensors + fsync']:.2f}"
        )
        plain, quick, full = loads(run, folder, ROUNDS.get(millions, 3))
        print(
            f"  load_file and copy {plain:.3f} s; dtrain {quick:.3f} s ({quick / plain:.2f}), "
            f"with all hashes {full:.3f} s ({full / plain:.2f})",
            flush=True,
        )


def main() -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1"}
    for millions in [int(word) for word in sys.argv[1:]] or [10, 100]:
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCHMARK_FOLDER")) as folder:
            measure(millions, Path(folder))


if __name__ == "__main__":
    main()
