"""The cost of lanes: the time of a step with `train.lanes` against one without.

    python benchmarks/lanes_cost.py

One process and two over gloo, on one thread each, train a small model and one of 10 M parameters, in four
micro-batches. Runs take turns; times are medians over the steps of all turns, and their ratio is the median
of those of the turns.
"""

import json
import os
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
TURNS, STEPS, WARM_UP = 4, 30, 5

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


def train(folder: Path) -> None:
    """As one rank: train every recipe in turn, and print the seconds of its steps, by turn."""
    import dtrain
    from dtrain.events import Stepped

    found: dict[str, list[float]] = {}
    for _ in range(TURNS):
        for lanes in LANES:
            moments = []
            recipe = dtrain.load(folder / f"{lanes}.toml")
            with dtrain.setup(recipe, runs=folder / "runs", fresh=True) as run:
                for event in dtrain.train(run):
                    if isinstance(event, Stepped):
                        moments.append(time.perf_counter())
            steps = [after - before for before, after in pairwise(moments)]
            found.setdefault(str(lanes), []).append(median(steps[WARM_UP:]))
    print(json.dumps(found), flush=True)


def measured(folder: Path, world: int) -> dict[int, list[float]]:
    """The seconds of a step on the slowest of so many ranks, by lanes and turn."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ours: dict[str, Any] = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    ours |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1, "ACCELERATE_USE_CPU": "true"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **{k: str(v) for k, v in ours.items()}, "RANK": str(r), "LOCAL_RANK": str(r)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for r in range(world)
    ]
    said = [json.loads(rank.communicate()[0].splitlines()[-1]) for rank in ranks]
    return {
        lanes: [max(turns) for turns in zip(*(each[str(lanes)] for each in said), strict=True)]
        for lanes in LANES
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            for lanes in LANES:
                (Path(folder) / f"{lanes}.toml").write_text(recipe_of(name, lanes))
            for world in (1, 2):
                say(name, world, measured(Path(folder), world))


def say(name: str, world: int, found: dict[int, list[float]]) -> None:
    """Print a line for each number of lanes."""
    for lanes, turns in found.items():
        ratio = median(own / none for own, none in zip(turns, found[0], strict=True))
        print(
            f"{name}, {world} process{'es' * (world > 1)}, {lanes or 'no'} lanes: "
            f"{1000 * median(turns):.1f} ms a step, x{ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) == 2:
        train(Path(sys.argv[1]))
        from dtrain.world.processes import leave

        leave(0)
    main()
