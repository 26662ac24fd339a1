"""The cost of lanes: a step with `train.lanes` against one without, in time and memory.

    python benchmarks/lanes_cost.py

One process and two over gloo, on one thread each, train a small model and one of 10 M parameters, in four
micro-batches. Runs take turns, each in processes of its own; times are medians over the steps of all turns,
and their ratio is the median of those of the turns. Memory is the most that a process held.
"""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

LANES = (0, 2, 4)  # 0: none
MODELS = {"0.4 M parameters": (1, 530), "10 M parameters": (3, 2048)}  # hidden layers, and their width
TURNS, STEPS, WARM_UP = 4, 40, 5

RECIPE = """
name = "lanes-cost"
[system]
kind = "classifier"
[models.classifier]
input = [1, 28, 28]
layers = [{ kind = "flatten" }, LAYERS { kind = "linear", out = 10 }]
[optimizers.classifier]
kind = "adam"
lr = 1e-3
[data]
kind = "arrays"
path = "DATA"
[train]
steps = NUMBER
batch_size = 64
micro_batch_size = 16
LANES
[every]
log = 1
save = 0
[track]
kinds = []
"""
DATA = Path(__file__).parents[1] / "recipes/data/fashion-mnist-7k.npz"


def recipe_of(name: str, lanes: int) -> str:
    """The recipe of a model that adds up in so many lanes."""
    layers, width = MODELS[name]
    layer = f'{{ kind = "linear", out = {width} }}, {{ kind = "activation", function = "relu" }},'
    text = RECIPE.replace("LAYERS", layer * layers).replace("DATA", str(DATA))
    return text.replace("NUMBER", str(STEPS)).replace("LANES", f"lanes = {lanes}" if lanes else "")


def train(recipe: Path) -> None:
    """As one rank: print the seconds of a step, and the bytes of memory that this process held at most."""
    import dtrain
    from dtrain.events import Stepped

    moments = []
    with dtrain.setup(dtrain.load(recipe), runs=recipe.parent / "runs", fresh=True) as run:
        for event in dtrain.train(run):
            if isinstance(event, Stepped):
                moments.append(time.perf_counter())
    steps = [after - before for before, after in pairwise(moments)]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": median(steps[WARM_UP:]), "memory": memory}), flush=True)


def measured(recipe: Path, world: int) -> dict[str, float]:
    """What the slowest and the largest of so many ranks say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ours: dict[str, Any] = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    ours |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1, "ACCELERATE_USE_CPU": "true"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(recipe)],
            env={**os.environ, **{k: str(v) for k, v in ours.items()}, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(world)
    ]
    said = [json.loads(rank.communicate()[0].splitlines()[-1]) for rank in ranks]
    return {key: max(each[key] for each in said) for key in ("seconds", "memory")}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            for world in (1, 2):
                found: dict[int, list[dict[str, float]]] = {lanes: [] for lanes in LANES}
                for _ in range(TURNS):
                    for lanes, turns in found.items():
                        recipe = Path(folder) / "recipe.toml"
                        recipe.write_text(recipe_of(name, lanes))
                        turns.append(measured(recipe, world))
                say(name, world, found)


def say(name: str, world: int, found: dict[int, list[dict[str, float]]]) -> None:
    """Print a line for each number of lanes."""
    for lanes, turns in found.items():
        seconds = median(turn["seconds"] for turn in turns)
        ratio = median(turn["seconds"] / none["seconds"] for turn, none in zip(turns, found[0], strict=True))
        memory = median(turn["memory"] for turn in turns) / 1e6
        print(
            f"{name}, {world} process{'es' * (world > 1)}, {lanes or 'no'} lanes: "
            f"{1000 * seconds:.1f} ms a step, x{ratio:.2f}, {memory:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        train(Path(sys.argv[1]))
        from dtrain.engines.processes import leave

        leave(0)
    main()
