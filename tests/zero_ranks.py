"""What each process of test_zero.py runs: recipes on one engine after another, and notes of what came of it.

python -m zero_ranks FOLDER
"""

import copy
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agreement import methods
from agreement.cases import ADAM, CASES, HALVES, JOINT, Table, classifier
from agreement.ranks import curves, digest, state
from agreement.systems import Autoencoder
from torch import Tensor, nn

import dtrain
from dtrain import Loss, Ops
from dtrain.errors import DtrainError
from dtrain.recipe.load import from_table
from dtrain.scale.tables import Scale, ZeRO
from dtrain.systems.base import Batch, Models

IS_LONG = os.environ.get("DTRAIN_TEST_LONG") == "1"
STEPS = 50 if IS_LONG else 6  # the fourth batch of an epoch is smaller than the others
ENGINES = {
    "alone": Scale(),
    "zero1": Scale(engine=ZeRO(stage=1)),
    "zero2": Scale(engine=ZeRO(stage=2)),
    # Otherwise parameters as small as these would stay whole.
    "zero3": Scale(engine=ZeRO(stage=3, persistence_threshold=0)),
    "zero2, offloaded": Scale(engine=ZeRO(stage=2, offload_optimizer=True)),
    "zero3, offloaded": Scale(
        engine=ZeRO(stage=3, persistence_threshold=50, offload_optimizer=True, offload_parameters=True)
    ),
    "zero2, half": Scale(engine=ZeRO(stage=2, half_parameters=True)),
    "zero3, half": Scale(engine=ZeRO(stage=3, persistence_threshold=0, half_parameters=True)),
}
STAGES = ("zero1", "zero2", "zero3")
FULL = (*STAGES, "zero2, offloaded", "zero3, offloaded")
SKIPPED = ("zero2", "zero3, offloaded", "zero2, offloaded")
HALVED = ("zero2, half", "zero3, half")


@dataclass(frozen=True)
class Faulty(Autoencoder):
    """The same, whose loss is no number where a picture begins with a number below `least`."""

    least: float = -1.0

    def reconstruct(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        loss = super().reconstruct(models, batch, ops)
        is_bad = (batch["image"].flatten(1)[:, 0] < self.least).any()
        return Loss(torch.where(is_bad, torch.nan, 1.0) * loss.value, loss.terms)


class Idle(nn.Module):
    """An imported model with a layer that takes no part."""

    def __init__(self, out: int):
        super().__init__()
        self.head = nn.Linear(64, out)
        self.idle = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x.flatten(1))
        return out


SKIPPING = copy.deepcopy(JOINT)
SKIPPING["system"] = {"kind": "zero_ranks:Faulty", "least": -0.9323}  # one picture of all begins so
SKIPPING["train"]["on_nonfinite"] = "skip"


def cases() -> dict[str, tuple[Table, tuple[str, ...]]]:
    """The recipes, and the engines that each is run on; all but those of HALVES in fp32."""
    few: dict[str, tuple[Table, tuple[str, ...]]] = {
        "two models at once": (JOINT, FULL),
        "gan, non_saturating, r1": (CASES["gan, non_saturating, r1"].recipe, ("zero3",)),
        "classifier, groups": (CASES["classifier, groups"].recipe, ("zero2",)),
        "classifier, imported and half frozen": (
            CASES["classifier, imported and half frozen"].recipe,
            ("zero3",),
        ),
        "skipping": (SKIPPING, SKIPPED),
        "classifier, bf16": (HALVES["classifier, bf16"].recipe, HALVED),
        "classifier, fp16": (HALVES["classifier, fp16"].recipe, ("zero3",)),
    }
    if not IS_LONG:
        return few
    refused = ("adafactor", "muon", "overflow")
    all_of_them = {**CASES, **methods.CASES}
    known = {name: case for name, case in all_of_them.items() if not any(word in name for word in refused)}
    return {**few, **{name: (case.recipe, STAGES) for name, case in known.items()}}


REFUSED: dict[str, Table] = {
    "fp64": JOINT,
    "half": classifier(ADAM, precision="fp32"),
    "muon": classifier({"kind": "muon", "lr": 0.02, "others": {"lr": 2e-3}}, precision="fp32"),
    "adafactor": classifier({"kind": "torch.optim:Adafactor", "lr": 0.05}, precision="fp32"),
    "adagrad": classifier(
        {"kind": "torch.optim:Adagrad", "lr": 0.1, "groups": [{"match": "*.bias", "lr": 0.2}]},
        precision="fp32",
    ),
    "unused": classifier(ADAM, model={"kind": "zero_ranks:Idle", "out": 4}, precision="fp32"),
}


@contextmanager
def ready(table: Table, folder: Path, engine: str) -> Iterator[dtrain.Run]:
    found = from_table(table, folder=folder, source="zero_ranks.py")
    with dtrain.setup(found, runs=folder / "runs", fresh=True, scale=ENGINES[engine]) as run:
        yield run


def in_fp32(table: Table) -> Table:
    """A recipe, as short as is needed and in a precision that ZeRO has."""
    table = copy.deepcopy(table)
    table["train"]["steps"] = STEPS
    if table["train"]["precision"] == "fp64":
        table["train"]["precision"] = "fp32"
    return table


def train(folder: Path, name: str, table: Table, engine: str, world: int) -> None:
    """Note first and last tensors, every loss and norm, and whether ranks ended with the same."""
    with ready(in_fp32(table), folder, engine) as run:
        kept = {f"first:{key}": value for key, value in state(run.engine).items()}
        kept |= {f"curve:{term}": values for term, values in curves(run).items()}
        last = state(run.engine)
        kept |= {f"last:{key}": value for key, value in last.items()}
        ends = {"digests": run.engine.gather(digest(last)), "skipped": run.skipped, **run.engine.scalars()}
        if run.engine.rank == 0:
            np.savez(folder / f"{world} {engine} {name}.npz", **kept)
            (folder / f"{world} {engine} {name}.json").write_text(json.dumps(ends))


def hand_on(folder: Path, world: int) -> None:
    """Give the state of one engine to the next, and that to the next; note it before and after."""
    names = ["zero3", "zero2, offloaded", "zero3, offloaded"]
    given: dict[str, np.ndarray] = {}
    scalars: dict[str, Any] = {}
    for engine in names:
        with ready(in_fp32({**JOINT}), folder, engine) as run:
            if given:
                run.engine.restore(parts_of(given), scalars)
                taken = state(run.engine)
                same = taken.keys() == given.keys() and all(
                    taken[key].tobytes() == given[key].tobytes() for key in given
                )
                said = run.engine.gather(bool(same))
                if run.engine.rank == 0:
                    (folder / f"{world} {engine} handed.json").write_text(json.dumps(said))
            run.step = 0
            list(dtrain.train(run))
            given, scalars = state(run.engine), run.engine.scalars()


def parts_of(arrays: dict[str, np.ndarray]) -> dict[Any, dict[str, Tensor]]:
    parts: dict[Any, dict[str, Tensor]] = {}
    for key, array in arrays.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = torch.from_numpy(array.copy())
    return parts


def refuse(folder: Path, world: int) -> None:
    """Note what is said of recipes that ZeRO cannot train."""
    said = {}
    for name, table in REFUSED.items():
        table = copy.deepcopy(table)
        table["train"] |= {"steps": 1} | ({} if name == "fp64" else {"precision": "fp32"})
        try:
            with ready(table, folder, "zero2, half" if name == "half" else "zero2") as run:
                list(dtrain.train(run))
        except DtrainError as error:
            said[name] = str(error)
    if os.environ["RANK"] == "0":
        (folder / f"{world} refused.json").write_text(json.dumps(said))


def main(folder: Path) -> None:
    warnings.filterwarnings("error")
    warnings.filterwarnings("ignore", category=ResourceWarning)  # of runs that are refused in the middle
    world = int(os.environ["WORLD_SIZE"])
    for name, (table, engines) in cases().items():
        for engine in ("alone",) if world == 1 else engines:
            train(folder, name, table, engine, world)
    if world == 2:
        hand_on(folder, world)
        refuse(folder, world)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    from dtrain.world.processes import leave

    leave(0)
