"""`dtrain inspect`: what is in a checkpoint, read without torch, and whatever a stranger wrote into it."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Said, cut_off

import dtrain
from dtrain.checkpoint.read import checkpoints_in
from dtrain.format.files import MANIFEST, RECIPE, STATE, canonical, hash_of, sealed, unseal
from dtrain.format.locks import lock

Here = Callable[..., Said]
FORMATS = sorted((Path(__file__).parent / "checkpoints").iterdir())


def known(dtrain_here: Here, *arguments: Any) -> dict[str, Any]:
    said = dtrain_here("inspect", *arguments, "--json")
    assert (said.code, said.errors) == (0, "")
    found: dict[str, Any] = json.loads(said.out)
    return found


def rewritten(checkpoint: Path, name: str, data: bytes) -> None:
    """Put other bytes into a small file of a checkpoint, and seal the manifest anew, as a stranger could."""
    (checkpoint / name).write_bytes(data)
    manifest = unseal(checkpoint / MANIFEST)
    manifest["files"][name] = {"size": len(data), "hash": hash_of(data)}
    (checkpoint / MANIFEST).write_bytes(sealed(manifest))


def test_models_are_counted_and_measured(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    run = cut_off(gan, tmp_path / "runs", 4, "checkpoint.shard_bytes=400")
    newest = checkpoints_in(run)[-1]
    assert len(list(newest.glob("models-*.safetensors"))) > 2
    found = known(dtrain_here, run)
    assert found["checkpoint"] == str(newest)
    models = dtrain.load_models(newest, averages=False)
    assert found["models"].keys() == models.keys()
    for name, model in models.items():
        state = model.state_dict()
        assert found["models"][name]["parameters"] == sum(each.numel() for each in model.parameters())
        assert found["models"][name]["numbers"] == sum(each.numel() for each in state.values())
        assert found["models"][name]["bytes"] == sum(each.nbytes for each in state.values())
    assert found["models"]["generator"]["dtypes"] == ["F32", "I64"]
    assert found["averages"].keys() == {"generator"}
    kinds = {name: own["kind"] for name, own in found["optimizers"].items()}
    assert kinds == {"generator": "adam", "discriminator": "sgd"}
    assert found["environment"]["world"] == 1
    assert found["best"]["metric"] == "evaluate/loss"
    sizes = {path.name: path.stat().st_size for path in newest.iterdir()}
    assert found["files"] == sizes
    (report,) = json.loads(dtrain_here("verify", newest, "--json").out)
    assert (report["files"], report["bytes"]) == (len(sizes), sum(sizes.values()))
    assert "tensors" not in found


def test_tensors_are_listed_with_the_hashes_of_the_manifest(
    gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    run = cut_off(gan, tmp_path / "runs", 4, "checkpoint.shard_bytes=400")
    found = known(dtrain_here, run, "--tensors")["tensors"]
    listed = unseal(checkpoints_in(run)[-1] / MANIFEST)["tensors"]
    assert {f"{each['part']}/{each['name']}": each["hash"] for each in found} == listed
    said = dtrain_here("inspect", run, "--tensors").out
    assert re.search(r"^  models/generator/0\.weight +F32 +32x4 +512 bytes$", said, re.MULTILINE)


def test_text_says_what_matters(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    run = cut_off(gan, tmp_path / "runs", 4)
    said = dtrain_here("inspect", run).out
    for line in (
        r"recipe +tiny-gan \(gan\)",
        r"step +4 of 8: cut off",
        r"best +evaluate/loss \d\.\d+ at step 3",
        r"data +20 examples, image 1x8x8, label one number",
        r"  discriminator +105 parameters +420 bytes +F32",
        r"  generator +adam +400 numbers +1\.6 kB +F32",
        r"versions +accelerate .*torch .*",
    ):
        assert re.search(f"^{line}$", said, re.MULTILINE), line


def test_what_is_said_of_a_checkpoint_is_true_of_it(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    """One of which the run went on, the newest of a run in each of its states, and one in no run."""
    run = cut_off(gan, tmp_path / "runs", 4)
    early, _, late = checkpoints_in(run)
    with lock(run):
        assert known(dtrain_here, late)["ended"] == "running"
    assert known(dtrain_here, run)["ended"] == "cut off"
    assert known(dtrain_here, early)["ended"] == "the run went on to step 4"
    assert dtrain_here("run", gan, "--runs", tmp_path / "runs").code == 0
    assert known(dtrain_here, run)["ended"] == "finished"
    text = dtrain_here("inspect", late).out
    assert re.search(r"^step +4 of 8: the run went on to step 8$", text, re.MULTILINE)
    alone = shutil.copytree(late, tmp_path / "alone")
    assert known(dtrain_here, alone)["ended"] is None
    assert re.search(r"^step +4 of 8$", dtrain_here("inspect", alone).out, re.MULTILINE)


def test_the_commands_that_it_names_go_on(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    for step, total in ((4, 8), (8, 16)):
        ways = known(dtrain_here, cut_off(gan, tmp_path / f"runs{step}", step))["go_on"]
        resumed = dtrain_here(*shlex.split(ways["resume"])[1:], "--runs", tmp_path / "on")
        assert resumed.code == 0, resumed.errors
        assert f"step-{total:08d}" in resumed.out
        assert dtrain_here(*shlex.split(ways["evaluate"])[1:]).code == 0
        assert eval(ways["load"], {"dtrain": dtrain}).keys() == {"generator", "discriminator"}


def test_the_best_checkpoint_of_a_run_may_be_asked_for(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    run = cut_off(gan, tmp_path / "runs", 4)
    assert known(dtrain_here, run, "--best")["step"] == 3
    assert known(dtrain_here, run.parent, "--best")["step"] == 3
    said = dtrain_here("inspect", run.parent.parent)
    assert (said.code, said.out) == (2, "")
    assert f"the newest run in it that has one is {run}" in said.errors


@pytest.mark.parametrize("checkpoint", FORMATS, ids=lambda path: path.name)
def test_every_format_is_read(dtrain_here: Here, checkpoint: Path) -> None:
    found = known(dtrain_here, checkpoint)
    assert found["format"] == int(checkpoint.name.removeprefix("format-"))
    assert found["models"]["generator"]["parameters"] == 197


def test_it_needs_neither_torch_nor_numpy() -> None:
    code = f"""
import sys
from dtrain.cli.app import carry_out
assert carry_out(["inspect", {str(FORMATS[-1])!r}, "--tensors"]) == 0
assert not {{"torch", "numpy", "wandb", "safetensors"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


HOSTILE = "\x1b]0;owned\x07\nmodels\n  \u202egenerator"


def test_what_a_stranger_wrote_is_shown_and_not_carried_out(tmp_path: Path, dtrain_here: Here) -> None:
    checkpoint = shutil.copytree(FORMATS[-1], tmp_path / "checkpoint")
    manifest = unseal(checkpoint / MANIFEST)
    manifest["environment"] = {HOSTILE: HOSTILE, "versions": {HOSTILE: [HOSTILE]}, "device": "x" * 100_000}
    (checkpoint / MANIFEST).write_bytes(sealed(manifest))
    state = json.loads((checkpoint / STATE).read_bytes())
    state["data"] = {"examples": HOSTILE, "fields": {HOSTILE: [HOSTILE]}}
    state["best"] = {"metric": HOSTILE, "mode": "min", "at": [3, 0.5], "stale": False}
    rewritten(checkpoint, STATE, canonical(state))
    recipe = (checkpoint / RECIPE).read_text()
    name = json.dumps(HOSTILE)
    rewritten(checkpoint, RECIPE, recipe.replace('name = "tiny-gan"', f"name = {name}").encode())
    said = dtrain_here("inspect", checkpoint, "--tensors")
    assert (said.code, said.errors) == (0, "")
    assert said.out.replace("\n", "").isprintable()
    assert said.out.count("\nmodels\n") == 1
    assert len(said.out) < 20_000
    dtrain_here("inspect", checkpoint, "--json")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (STATE, {"step": "four"}, "state.json does not say step, a number of steps"),
        (STATE, {"total": None}, "state.json does not say total, a number of steps"),
        (RECIPE, b"name = ", "recipe.toml"),
        (RECIPE, b"\xff", "recipe.toml cannot be read"),
        (MANIFEST, b"{}", "manifest.json was altered"),
        ("models-00001-of-00001.safetensors", b"\0" * 7, "was cut short or altered: 7 bytes"),
    ],
)
def test_what_cannot_be_read_is_one_mistake(
    tmp_path: Path, dtrain_here: Here, name: str, change: Any, message: str
) -> None:
    checkpoint = shutil.copytree(FORMATS[-1], tmp_path / "checkpoint")
    if isinstance(change, dict):
        rewritten(checkpoint, name, canonical(json.loads((checkpoint / name).read_bytes()) | change))
    elif name == RECIPE:
        rewritten(checkpoint, name, change)
    else:
        (checkpoint / name).write_bytes(change)
    said = dtrain_here("inspect", checkpoint)
    assert (said.code, said.out) == (2, "")
    assert message in said.errors
    assert said.errors.count("\n") == 1
