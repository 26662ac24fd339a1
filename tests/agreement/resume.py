"""What each process of a world runs: a GAN that is saved halfway, and what others have saved carried on.

python -m agreement.resume FOLDER LABEL SCALE save PRECISION...
python -m agreement.resume FOLDER LABEL SCALE continue PRECISION... (of every run in FOLDER with such a name)
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from agreement.cases import ADAM, ADAMW, IS_LONG, gan
from agreement.ranks import digest, state

import dtrain
from dtrain.backends.torch_weights import tensors_of
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.events import Stepped
from dtrain.recipe.load import from_table
from dtrain.scale.asked import read_scale

HALF, REST = (100, 50) if IS_LONG else (6, 6)  # steps before it is saved, and after


class Noting:
    """A loader that notes which examples were asked for, by update."""

    def __init__(self, loader: Any):
        self.loader = loader
        self.seen: dict[int, list[int]] = {}

    def load(self, update: int) -> Any:
        loaded = self.loader.load(update)
        self.seen[update] = [int(i) for micro, _ in loaded if not micro.idle for i in micro.indices]
        return loaded


def recipe(folder: Path, precision: str) -> dtrain.Recipe:
    optimizers = {"generator": ADAM, "discriminator": {**ADAMW, "clip": 0.3}}
    table = gan("hinge", optimizers, precision=precision)
    table["train"] |= {"steps": HALF + REST}
    table |= {"averages": {name: {"decay": 0.9} for name in optimizers}}
    table["every"] |= {"save": HALF}
    table |= {"checkpoint": {"keep": 9}}
    return from_table(table, folder=folder, source="resume.py")


def train(run: dtrain.Run) -> dict[str, Any]:
    """Train to the end: the losses by step, the examples that all ranks saw by update, the scalars."""
    run.loader = noting = Noting(run.loader)  # type: ignore[assignment]
    losses = {}
    for event in dtrain.train(run):
        if isinstance(event, Stepped):
            losses[event.step] = {k: v for k, v in event.metrics.items() if k.endswith(("loss", "grad_norm"))}
    seen = run.engine.gather({str(update): ids for update, ids in noting.seen.items()})
    each = {update: sorted(i for of_rank in seen for i in of_rank[update]) for update in seen[0]}
    return {"losses": losses, "seen": each, "scalars": run.engine.scalars()}


def save(folder: Path, label: str, scale: Any, precision: str) -> None:
    runs = folder / f"saved {precision} {label}"
    with dtrain.setup(recipe(folder, precision), runs=runs, fresh=True, scale=scale) as run:
        write(run, folder / f"saved {precision} {label}.json", train(run))


def carry_on(folder: Path, label: str, scale: Any, precision: str) -> None:
    for saved in sorted(folder.glob(f"saved {precision} *.json")):
        (of,) = (saved.with_suffix("") / "agreement").iterdir()
        path = next(each for each in checkpoints_in(of) if each.name.endswith(f"{HALF:08d}"))
        runs = folder / f"carried on by {label}"
        with dtrain.setup(recipe(folder, precision), runs=runs, resume=path, scale=scale) as run:
            restored = state(run.engine)
            digests = run.engine.gather(digest(restored))
            kept = open_checkpoint(path)
            written = {
                f"{part}/{name}": tensor.numpy()
                for part in ("models", "optimizers", "averages")
                for name, tensor in tensors_of(kept, part).items()
            }
            same = restored.keys() == written.keys() and all(
                np.asarray(restored[name]).tobytes() == written[name].tobytes() for name in written
            )
            scalars = {key: run.engine.scalars()[key] for key in ("optimizers", "loss_scales", "averages")}
            is_same = scalars == {key: kept.state[key] for key in scalars}
            found = {"same_bits": same, "same_scalars": is_same, "ranks": len(set(digests))} | train(run)
            write(run, folder / f"{label} after {saved.stem.removeprefix('saved ')}.json", found)


def write(run: dtrain.Run, path: Path, found: dict[str, Any]) -> None:
    if run.engine.rank == 0:
        path.write_text(json.dumps(found))


if __name__ == "__main__":
    folder, label, scale, what, *precisions = sys.argv[1:]
    how = None if scale == "-" else read_scale({}, Path(scale))
    for precision in precisions:
        {"save": save, "continue": carry_on}[what](Path(folder), label, how, precision)
    from dtrain.world.processes import leave

    leave(0)
