"""Tiny recipes that train in a second, and dtrain on them: here, or in processes that can be killed."""

import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in every rank

import numpy as np
import pytest
import torch
from damaging import copied, whole

import dtrain
from dtrain.backends.torch_weights import tensors_of as tensors_in
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.cli.app import carry_out, main
from dtrain.events import Saved
from dtrain.format.files import (
    FORMAT,
    MANIFEST,
    PARTS,
    RECIPE,
    STATE,
    canonical,
    folder_name,
    hash_of,
    sealed,
)
from dtrain.format.metrics import read_metrics
from dtrain.recipe.write import to_toml
from dtrain.world.processes import leave

torch.set_num_threads(1)

# Every process is forked from one that has imported torch and Accelerate already: they take seconds.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["dtrain.cli.app", "dtrain.loop", "dtrain.engines.engine", "torch._dynamo", "PIL.Image"]
)


def label(value: object) -> str:
    """What a case of a table is called: the same in every process, as workers of pytest-xdist need it."""
    return getattr(value, "__name__", str(value))[:60]


GAN = """\
name = "tiny-gan"
seed = 3

[hyperparameters]
lr = 2e-3

[system]
kind = "gan"
latent = 4
critic_steps = 2

[models.generator]
input = [4]
layers = [
    { kind = "linear", out = 32 },
    { kind = "reshape", shape = [2, 4, 4] },
    { kind = "batch_norm" },
    { kind = "activation", function = "relu" },
    { kind = "conv_transpose", out = 1, kernel = 4, stride = 2, padding = 1 },
    { kind = "activation", function = "tanh" },
]

[models.discriminator]
input = [1, 8, 8]
layers = [
    { kind = "conv", out = 4, kernel = 3, stride = 2, padding = 1 },
    { kind = "activation", function = "leaky_relu", slope = 0.2 },
    { kind = "dropout", rate = 0.2 },
    { kind = "flatten" },
    { kind = "linear", out = 1 },
]

[optimizers."*"]
kind = "adam"
lr = "${hyperparameters.lr}"
schedule = { kind = "cosine", warmup = 4 }

[optimizers.discriminator]
kind = "sgd"
lr = 0.05
momentum = 0.9
clip = 1.0

[averages.generator]
decay = 0.9

[data]
kind = "arrays"
path = "pictures.npz"

[train]
steps = 8
batch_size = 8
micro_batch_size = 4

[every]
log = 1
evaluate = 3
save = 2

[checkpoint]
best = "evaluate/loss"
mode = "min"

[track]
kinds = ["jsonl"]
"""

CLASSIFIER = """\
name = "tiny-classifier"

[system]
kind = "classifier"
label_smoothing = 0.1

[models.classifier]
input = [1, 8, 8]
layers = [
    { kind = "conv", out = 4, kernel = 3, padding = 1 },
    { kind = "batch_norm" },
    { kind = "activation", function = "relu" },
    { kind = "pool", mode = "max" },
    { kind = "flatten" },
    { kind = "dropout", rate = 0.3 },
    { kind = "linear", out = 3 },
]

[optimizers.classifier]
kind = "adamw"
lr = 1e-2

[data]
kind = "arrays"
path = "pictures.npz"

[train]
epochs = 2
batch_size = 8
micro_batch_size = 4

[every]
log = 1
evaluate = 2
save = 2

[track]
kinds = ["jsonl"]
"""


def stored(run: Path, recipe: str, *, step: int = 8, total: int = 8) -> Path:
    """A checkpoint of a run that has no tensors: enough to know what its models are."""
    checkpoint = run / "checkpoints" / folder_name(step)
    checkpoint.mkdir(parents=True)
    files = {RECIPE: recipe.encode(), STATE: canonical({"step": step, "total": total, "best": None})}
    for name, data in files.items():
        (checkpoint / name).write_bytes(data)
    listed = {name: {"size": len(data), "hash": hash_of(data)} for name, data in files.items()}
    manifest = {"format": FORMAT, "step": step, "files": listed, "tensors": {}, "environment": {}}
    (checkpoint / MANIFEST).write_bytes(sealed(manifest))
    return checkpoint


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recipes in a folder of their own, with data, and the runs that some take models from."""
    folder = tmp_path_factory.mktemp("shipped")
    recipes = Path(dtrain.__file__).parents[1] / "recipes"
    shutil.copytree(recipes, folder / "recipes")
    for name in ("classifier", "contrastive"):
        stored(folder / f"runs/{name}/1", to_toml(dtrain.load(recipes / f"{name}.toml")))
    return folder / "recipes"


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep runs in this process off the GPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture
def gan(tmp_path: Path, on_cpu: None) -> Path:
    """A GAN with batch normalisation, dropout, two optimizers, an average: 20 examples, 3 updates a step."""
    return written(tmp_path, "gan.toml", GAN)


@pytest.fixture
def classifier(tmp_path: Path, on_cpu: None) -> Path:
    """A classifier of three classes: 20 examples, 3 steps an epoch, the last of 4 examples."""
    return written(tmp_path, "classifier.toml", CLASSIFIER)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A copy of the small checkpoint of the newest format that is kept beside the tests."""
    return copied(whole(FORMAT), tmp_path / "run")


def written(folder: Path, name: str, text: str) -> Path:
    """Write a recipe and the pictures that it reads; return its path."""
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 20), ("test", 6)):
        arrays[f"{part}_image"] = random.integers(0, 256, (count, 8, 8), np.uint8)
        arrays[f"{part}_label"] = random.integers(0, 3, count)
    folder.mkdir(exist_ok=True)
    np.savez(folder / "pictures.npz", **arrays)
    (folder / name).write_text(text)
    return folder / name


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    out: str
    errors: str


@pytest.fixture
def dtrain_here(capfd: pytest.CaptureFixture[str], on_cpu: None) -> Callable[..., Said]:
    """Carry out a dtrain command in this process."""

    def carry(*arguments: str | Path) -> Said:
        capfd.readouterr()
        code = carry_out([str(argument) for argument in arguments])
        return Said(code, *capfd.readouterr())

    return carry


@dataclass(frozen=True)
class Life:
    """A process of dtrain, and the file with all that it says."""

    process: ForkServerProcess
    log: Path

    def kill(self) -> None:
        """Kill it as `kill -9` does, and wait until it is gone."""
        self.process.kill()
        self.process.join()

    def end(self, seconds: float = 120) -> int | None:
        """Wait for its end and return its exit code; None if it does not end."""
        self.process.join(seconds)
        return self.process.exitcode

    @property
    def said(self) -> str:
        return self.log.read_text()


def start(
    *arguments: str | Path,
    log: Path,
    action: Callable[[list[str]], int] = main,
    environment: Mapping[str, str] | None = None,
) -> Life:
    """Start a dtrain command, or another action on its arguments, in a process of its own."""
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **(environment or {})}
    texts = [str(argument) for argument in arguments]
    process = SERVER.Process(target=_live, args=(action, texts, str(log), environment))
    process.start()
    return Life(process, log)


def start_two(
    *arguments: str | Path, log: Path, action: Callable[[list[str]], int] = main
) -> tuple[Life, Life]:
    """Start the two ranks of one world, as torchrun would."""
    first, second = start_world(2, *arguments, log=log, action=action)
    return first, second


def start_world(
    size: int, *arguments: str | Path, log: Path, action: Callable[[list[str]], int] = main
) -> list[Life]:
    """Start the ranks of a world, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    all_ = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    all_ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def start_rank(rank: str) -> Life:
        environment = {**all_, "RANK": rank, "LOCAL_RANK": rank}
        return start(*arguments, log=log.with_suffix(f".{rank}"), action=action, environment=environment)

    return [start_rank(str(rank)) for rank in range(size)]


def _live(
    action: Callable[[list[str]], int], arguments: list[str], log: str, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    # Jobs in the background of a shell, or under nohup, ignore these two.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    leave(action(arguments))


def cut_off(recipe: Path, runs: Path, step: int, *overrides: str) -> Path:
    """Train in this process until the checkpoint of `step` is there, and stop; return the run's folder."""
    with dtrain.setup(dtrain.load(recipe, overrides), runs=runs) as run:
        for event in dtrain.train(run):
            if event == Saved(step, run.folder / "checkpoints" / f"step-{step:08d}"):
                break
    return run.folder


def only_run(runs: Path) -> Path:
    """The one run under a folder of runs."""
    (run,) = runs.glob("*/*/")
    return run


def tensors_of(checkpoint: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a checkpoint found whole: `part/name` to type, shape and bytes."""
    opened = open_checkpoint(checkpoint)
    return {
        f"{part}/{name}": (str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes())
        for part in PARTS
        for name, tensor in tensors_in(opened, part).items()
    }


def last_tensors(run: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Those of a run's newest checkpoint."""
    return tensors_of(checkpoints_in(run)[-1])


def metrics_of(run: Path) -> list[tuple[int, dict[str, Any]]]:
    """Every line of metrics.jsonl but for the speed, which differs from run to run."""
    lines = [(step, dict(values)) for step, values in read_metrics(run / "metrics.jsonl")]
    for _, values in lines:
        values.pop("examples_per_second", None)
    return lines
