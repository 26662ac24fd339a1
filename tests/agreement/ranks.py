"""What each process of a world runs: every case in turn, by dtrain's own loop, and notes of what came of it.

python -m agreement.ranks FOLDER LABEL SCALE CASE...

What LABEL says begins the names of the files; SCALE is a file that says how to run, or - for what dtrain does
without. Of a case's name, what follows " in " is its precision instead of its own.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from agreement import methods
from agreement.cases import CASES, FROZEN, HALVES

import dtrain
from dtrain.engines.base import Engine
from dtrain.events import Evaluated, Stepped
from dtrain.loop import make_update
from dtrain.recipe.load import from_table
from dtrain.scale.asked import read_scale

UNSTEADY = ("lr", "examples_per_second")  # in the events, but neither a loss nor a gradient norm


WATCHED = "watched "  # before the name of a case that is watched update by update
ALL = {**CASES, **HALVES, **methods.CASES}


def main(folder: Path, label: str, scale: str, names: list[str]) -> None:
    for name in names:
        if name.startswith(WATCHED):
            follow(folder, label, scale, name)
            continue
        with ready(recipe_of(name), folder, label, scale) as run:
            kept = {f"first:{key}": value for key, value in state(run.engine).items()}
            kept |= {f"curve:{term}": values for term, values in curves(run).items()}
            last = state(run.engine)
            kept |= {f"last:{key}": value for key, value in last.items()}
            ends = {"digests": run.engine.gather(digest(last)), **run.engine.scalars()}
            if run.engine.rank == 0:
                np.savez(folder / f"{label} {name}.npz", **kept)
                (folder / f"{label} {name}.json").write_text(json.dumps(ends))


def follow(folder: Path, label: str, scale: str, name: str) -> None:
    """Note what each update moves, of a case that is watched update by update."""
    case, _, precision = name.removeprefix(WATCHED).partition(" in ")
    with ready(in_precision(FROZEN[case], precision), folder, label, scale) as run:
        seen = list(watch_updates(run))
        if run.engine.rank == 0:
            (folder / f"{label} {name}.json").write_text(json.dumps(seen))


def recipe_of(name: str) -> dict[str, Any]:
    """The recipe of a case, in the precision that its name asks for."""
    case, _, precision = name.partition(" in ")
    return in_precision(ALL[case].recipe, precision)


def in_precision(recipe: dict[str, Any], precision: str) -> dict[str, Any]:
    """The recipe in another precision than its own; "" is its own."""
    return {**recipe, "train": {**recipe["train"], "precision": precision}} if precision else recipe


def ready(recipe: dict[str, Any], folder: Path, label: str, scale: str) -> dtrain.Run:
    found = from_table(recipe, folder=folder, source="cases.py")
    how = None if scale == "-" else read_scale({}, Path(scale))
    return dtrain.setup(found, runs=folder / f"runs-{label}", fresh=True, scale=how)


def curves(run: dtrain.Run) -> dict[str, np.ndarray]:
    """Train to the end; every loss, term and gradient norm at every step, and the evaluation at the end."""
    seen: dict[str, list[float]] = {}
    for event in dtrain.train(run):
        if isinstance(event, Stepped | Evaluated):
            for term, value in event.metrics.items():
                if term.rpartition("/")[2] not in UNSTEADY:
                    seen.setdefault(term, []).append(value)
    return {term: np.array(values) for term, values in seen.items()}


def watch_updates(run: dtrain.Run, steps: int = 6) -> Iterator[dict[str, Any]]:
    """Make updates as the loop does; of each, say which models it trains and which moved on any rank."""
    number = 0
    for step in range(steps):
        for phase in run.system.phases():
            for _ in range(0 if step % phase.every else phase.repeat):
                before = state(run.engine)
                settings = {name: {"lr": run.recipe.optimizers[name].lr} for name in phase.updates}
                update = make_update(run, phase, number, settings, measure=False)
                run.engine.update(update, run.loader.load(number))
                after = state(run.engine)
                moved = {
                    key.split("/")[1]
                    for key in before.keys() | after.keys()
                    if key not in before or before[key].tobytes() != after[key].tobytes()
                }
                of_all = run.engine.gather(sorted(moved))
                yield {"trains": phase.updates, "moved": sorted(set().union(*of_all))}
                number += 1


def state(engine: Engine) -> dict[str, np.ndarray]:
    """A copy of every tensor, as `part/model/name`."""
    return {f"{part}/{name}": tensor.cpu().numpy().copy() for part, name, tensor in engine.tensors()}


def digest(tensors: dict[str, np.ndarray]) -> str:
    total = hashlib.blake2b()
    for name in sorted(tensors):
        total.update(tensors[name].tobytes())
    return total.hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
    from dtrain.world.processes import leave

    leave(0)
