"""What one engine has saved any other carries on: from the same bits, with the same numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement.cases import IS_LONG, write_examples
from agreement.resume import HALF, REST
from conftest import Said, cut_off, only_run, start_two
from test_agreement import start_ranks
from test_engines import WAYS, finish

from dtrain.checkpoint.read import all_tensors, newest_of

pytestmark = pytest.mark.worlds

SEVEN = ("one process", "ddp, 2", "ddp, 4", "fsdp, 2", "zero 1, 2", "zero 2, 2", "zero 3, 2")
LONG = ("ddp, 4", "zero 1, 2")  # only in the long form: each way carries on what all others have saved
CHOSEN = [way for way in SEVEN if way in WAYS and (IS_LONG or way not in LONG)]
TOLERANCES = {"fp32": 1e-4} | ({"fp64": 1e-9, "fp16": 0.05} if IS_LONG else {})
PAIRS = [
    (precision, saved, carried_on)
    for precision in TOLERANCES
    for saved in CHOSEN
    for carried_on in CHOSEN
    if precision != "fp64" or (WAYS[saved].has_fp64 and WAYS[carried_on].has_fp64)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    write_examples(folder / "examples.npz")
    for what in ("save", "continue"):
        for way in CHOSEN:
            how = WAYS[way]
            precisions = [each for each in TOLERANCES if how.has_fp64 or each != "fp64"]
            scale = "-"
            if how.scale:
                scale = str(folder / f"{way}.toml")
                Path(scale).write_text(how.scale)
            finish(start_ranks(how.size, "agreement.resume", str(folder), way, scale, what, *precisions))
    return folder


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize(("precision", "saved", "carried_on"), PAIRS)
def test_any_way_carries_on_what_any_has_saved(
    folder: Path, precision: str, saved: str, carried_on: str
) -> None:
    whole = read(folder / f"saved {precision} {saved}.json")
    rest = read(folder / f"{carried_on} after {precision} {saved}.json")
    assert rest["same_bits"]  # of models, optimizer state and averages
    assert rest["same_scalars"]  # steps, loss scales and counts
    assert rest["ranks"] == 1
    assert rest["seen"] == {
        u: ids for u, ids in whole["seen"].items() if int(u) in range(3 * HALF, 3 * (HALF + REST))
    }
    assert rest["losses"].keys() == {str(step) for step in range(HALF + 1, HALF + REST + 1)}
    worst = max(apart(rest["losses"][step], whole["losses"][step]) for step in rest["losses"])
    print(f"{precision}, {saved}, carried on by {carried_on}: {worst:.1e}")
    assert worst < TOLERANCES[precision]
    if saved == carried_on:
        assert worst == 0  # nor does anything else differ from a run that is left alone


@pytest.mark.parametrize("engine", ['kind = "zero"\nstage = 2', 'kind = "zero"\nstage = 3', 'kind = "fsdp"'])
def test_a_setting_that_comes_with_a_resume_begins_alike_on_each(
    classifier: Path, tmp_path: Path, dtrain_here: Callable[..., Said], engine: str
) -> None:
    """Buffers that were not kept begin at zero, whatever a rank has of them."""
    own = ["optimizers.classifier.kind=rmsprop", "track.kinds=[]"]
    first = cut_off(classifier, tmp_path / "first", 2, *own)
    settings = ["optimizers.classifier.momentum=0.9", "optimizers.classifier.centered=true"]
    command = ["run", classifier, *own, *settings, "--resume", first]
    assert dtrain_here(*command, "--runs", tmp_path / "alone").code == 0
    scale = tmp_path / "scale.toml"
    scale.write_text(f"[engine]\n{engine}\n")
    lives = start_two(*command, "--scale", scale, "--runs", tmp_path / "both", log=tmp_path / "log")
    assert [life.end() for life in lives] == [0, 0], [life.said for life in lives]
    ours, alone = (all_tensors(newest_of(only_run(tmp_path / runs))) for runs in ("both", "alone"))
    assert ours["optimizers"].keys() == alone["optimizers"].keys()
    assert "classifier/0.weight/grad_avg" in ours["optimizers"]
    for part, tensors in alone.items():
        for name, tensor in tensors.items():
            assert torch.allclose(ours[part][name], tensor, rtol=1e-3, atol=1e-4), name


def apart(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """The largest difference of losses and gradient norms of a step, relative to 0.01 at least."""
    assert ours.keys() == theirs.keys()
    return max(abs(ours[key] - theirs[key]) / max(abs(theirs[key]), 0.01) for key in ours)
