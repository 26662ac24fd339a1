"""`dtrain convert`: a model's weights as others open them, whole or not at all."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Said, cut_off
from safetensors import safe_open
from safetensors.torch import load_file

import dtrain
from dtrain.checkpoint.convert import INDEX
from dtrain.checkpoint.read import checkpoints_in
from dtrain.format.files import in_groups
from dtrain.format.safetensors_header import Stored

Here = Callable[..., Said]
FORMATS = sorted((Path(__file__).parent / "checkpoints").iterdir())


@pytest.fixture
def run(gan: Path, tmp_path: Path) -> Path:
    """A run whose checkpoints have several files a part."""
    return cut_off(gan, tmp_path / "runs", 4, "checkpoint.shard_bytes=400")


def refused(said: Said, *words: str) -> None:
    """A mistake said in a line."""
    assert (said.code, said.out) == (2, "")
    assert said.errors.count("\n") == 1, said.errors
    for word in words:
        assert word in said.errors


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two models have the same weights, to the bit and the type."""
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) and value.dtype == second[name].dtype
        for name, value in first.items()
    )


@pytest.mark.parametrize("averages", [True, False])
def test_files_are_merged_into_one_under_plain_names(
    run: Path, tmp_path: Path, dtrain_here: Here, averages: bool
) -> None:
    out = tmp_path / "out" / "generator.safetensors"
    raw = [] if averages else ["--no-averages"]
    said = dtrain_here("convert", run, out, "--model", "generator", *raw)
    assert (said.code, said.errors) == (0, "")
    assert said.out == f"wrote {out}: {'the average of ' * averages}generator at step 4, 812 bytes\n"
    models = {
        each: dtrain.load_models(run, averages=each)["generator"].state_dict() for each in (True, False)
    }
    assert not same(models[True], models[False])
    assert same(load_file(out), models[averages])
    newest = checkpoints_in(run)[-1]
    with safe_open(out, "pt") as file:
        told = file.metadata()
    assert told["format"] == "pt"
    assert told["source"] == f"tiny-gan/{run.name}/checkpoints/{newest.name}"
    assert (told["step"], told["model"], told["weights"]) == (
        "4",
        "generator",
        "average" if averages else "model",
    )


def test_nothing_of_a_run_is_overwritten(run: Path, tmp_path: Path, dtrain_here: Here) -> None:
    checkpoint = checkpoints_in(run)[-1]
    file = next(checkpoints_in(run)[0].glob("models-*.safetensors"))
    refused(dtrain_here("convert", run, file, "--model", "generator", "--force"), "a part of the checkpoint")
    taken = checkpoint.with_name("step-00000040")
    refused(dtrain_here("convert", run, taken, "--model", "generator"), "taken for a checkpoint")
    assert dtrain_here("verify", run).code == 0
    (tmp_path / "manifest.json").write_text("{}")  # of something else
    out = checkpoint / ".." / ".." / "own.safetensors"
    said = dtrain_here("convert", run, out, "--model", "generator")
    assert said.code == 0, said.errors


def test_a_model_without_an_average_has_its_own_weights(run: Path, tmp_path: Path, dtrain_here: Here) -> None:
    out = tmp_path / "d.safetensors"
    assert dtrain_here("convert", run, out, "--model", "discriminator").code == 0
    assert same(load_file(out), dtrain.load_models(run)["discriminator"].state_dict())


def test_the_best_checkpoint_of_a_run_may_be_asked_for(run: Path, tmp_path: Path, dtrain_here: Here) -> None:
    out = tmp_path / "d.safetensors"
    assert dtrain_here("convert", run, out, "--model", "generator", "--best").code == 0
    with safe_open(out, "pt") as file:
        assert file.metadata()["step"] == "3"


def test_a_folder_has_files_of_a_size_and_their_index(run: Path, tmp_path: Path, dtrain_here: Here) -> None:
    out = tmp_path / "generator"
    assert dtrain_here("convert", run, out, "--model", "generator", "--shard-bytes", "0.2kB").code == 0
    index = json.loads((out / INDEX).read_text())
    files = sorted(out.glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    weights = dtrain.load_models(run)["generator"].state_dict()
    found: dict[str, torch.Tensor] = {}
    for file in files:
        own = load_file(file)
        size = sum(tensor.nbytes for tensor in own.values())
        assert size <= 200 or len(own) == 1
        assert all(index["weight_map"][name] == file.name for name in own)
        found |= own
    assert same(found, weights)
    assert index["weight_map"].keys() == weights.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights.values())
    assert index["metadata"]["step"] == "4"


def test_a_tensor_larger_than_a_file_has_one_of_its_own() -> None:
    tensors = [Stored(str(n), "U8", (size,), 0, size) for n, size in enumerate((2, 3, 9, 1, 4, 1))]
    assert [[each.size for each in shard] for shard in in_groups(tensors, lambda each: each.size, 5)] == [
        [2, 3],
        [9],
        [1, 4],
        [1],
    ]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp64", "fp32"])
def test_floats_take_another_precision_and_nothing_else_does(
    run: Path, tmp_path: Path, dtrain_here: Here, dtype: str
) -> None:
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}[
        dtype
    ]
    out = tmp_path / "out.safetensors"
    assert dtrain_here("convert", run, out, "--model", "generator", "--dtype", dtype).code == 0
    weights = dtrain.load_models(run)["generator"].state_dict()
    floats = {
        name: value.to(wanted) if value.is_floating_point() else value for name, value in weights.items()
    }
    assert same(load_file(out), floats)


def test_a_value_that_would_become_infinite_is_refused(tmp_path: Path, gan: Path, dtrain_here: Here) -> None:
    run = cut_off(
        gan, tmp_path / "large", 2, "optimizers.discriminator.lr=1e7", "optimizers.discriminator.clip=1e3"
    )
    out = tmp_path / "out.safetensors"
    said = dtrain_here("convert", run, out, "--model", "discriminator", "--dtype", "fp16")
    refused(said, "has a value of", "and torch.float16 ends at 6.55e+04; bf16 or fp32 would do")
    assert list(tmp_path.glob("*out*")) == []
    assert dtrain_here("convert", run, out, "--model", "discriminator", "--dtype", "bf16").code == 0


@pytest.mark.parametrize("checkpoint", FORMATS, ids=lambda path: path.name)
def test_every_format_is_converted(tmp_path: Path, dtrain_here: Here, checkpoint: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert dtrain_here("convert", checkpoint, out, "--model", "generator").code == 0
    assert same(load_file(out), dtrain.load_models(checkpoint)["generator"].state_dict())


def test_wrong_arguments_are_said(run: Path, tmp_path: Path, dtrain_here: Here) -> None:
    out = tmp_path / "x.safetensors"
    refused(
        dtrain_here("convert", run, out), "has discriminator, generator; say which: --model discriminator"
    )
    refused(dtrain_here("convert", run, out, "--model", "generater"), 'did you mean "generator"?')
    refused(
        dtrain_here("convert", run, out, "--model", "generator", "--to", "diffusers"), "--to is for a folder"
    )
    refused(
        dtrain_here("convert", run, out, "--model", "generator", "--shard-bytes", "4GB"),
        "--shard-bytes is for a folder",
    )
    refused(dtrain_here("convert", run, tmp_path / "x", "--shard-bytes", "4 cows"), "'4 cows' is not a size")
    refused(dtrain_here("convert", run, tmp_path / "x", "--shard-bytes", "0"), "'0' is not a size")
    refused(dtrain_here("convert", run, tmp_path / "x", "--dtype", "fp8"), "'fp8'")
    refused(dtrain_here("convert", tmp_path, out), "is neither a checkpoint nor a run that has one")
    inside = checkpoints_in(run)[-1] / "model.safetensors"
    refused(dtrain_here("convert", run, inside, "--model", "generator"), "would lie in the checkpoint itself")
    assert list(tmp_path.glob("x*")) == []


@pytest.mark.parametrize("name", ["out.safetensors", "out"])
def test_what_is_there_is_replaced_only_by_force(
    run: Path, tmp_path: Path, dtrain_here: Here, name: str
) -> None:
    out = tmp_path / name
    command = ["convert", run, out, "--model"]
    assert dtrain_here(*command, "generator").code == 0
    before = contents(tmp_path)
    refused(dtrain_here(*command, "discriminator"), f"{out} is there already; --force replaces it")
    assert contents(tmp_path) == before
    assert dtrain_here(*command, "discriminator", "--force").code == 0
    assert contents(tmp_path) != before
    assert [path.name for path in tmp_path.glob("*out*")] == [name]


def test_force_replaces_nothing_but_weights(run: Path, tmp_path: Path, dtrain_here: Here) -> None:
    command = ["convert", run, "--model", "generator", "--force"]
    before = contents(tmp_path)
    for folder in (tmp_path, tmp_path / "runs", run, checkpoints_in(run)[0]):
        refused(dtrain_here(*command, folder), f"{folder} holds more than weights, and is not replaced")
    assert contents(tmp_path) == before
    assert dtrain_here(*command, tmp_path / "out").code == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refused(dtrain_here(*command, tmp_path / "out"), "holds more than weights")
    (tmp_path / "folder.safetensors").mkdir()
    refused(dtrain_here(*command, tmp_path / "folder.safetensors"), "is not a file")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_was_altered_is_refused_and_leaves_nothing(run: Path, tmp_path: Path, dtrain_here: Here) -> None:
    newest = checkpoints_in(run)[-1]
    for file in sorted(newest.glob("models-*.safetensors")):
        whole = file.read_bytes()
        for place in (9, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            wrong = 0
            for model, name in itertools.product(("generator", "discriminator"), ("x.safetensors", "x")):
                out = tmp_path / f"{file.name}-{place}-{model}-{name}"
                said = dtrain_here("convert", run, out, "--model", model, "--no-averages")
                if said.code:
                    refused(said, str(file), "was altered")
                    assert list(tmp_path.glob(f"*{out.name}*")) == []
                    wrong += 1
            assert wrong, (file, place)
        file.write_bytes(whole)


def test_a_disk_that_is_full_leaves_nothing(run: Path, tmp_path: Path) -> None:
    code = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
from dtrain.cli.app import carry_out
for name in ("out.safetensors", "out"):
    assert carry_out(["convert", {str(run)!r}, {str(tmp_path)!r} + "/" + name, "--model", "generator"]) == 2
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("cannot be written") == 2
    assert list(tmp_path.glob("*out*")) == list(tmp_path.glob(".*out*")) == []


def test_merging_needs_no_torch_and_no_more_memory_than_a_tensor(tmp_path: Path, gan: Path) -> None:
    layers = '{kind="linear",out=1500},' * 6 + '{kind="linear",out=64},{kind="reshape",shape=[1,8,8]}'
    text = f"models.generator.layers=[{layers}]"
    large = cut_off(gan, tmp_path / "large", 1, text, "every.save=1", "averages={}")
    code = f"""
import sys, tracemalloc
from dtrain.cli.app import carry_out
tracemalloc.start()
assert carry_out(["convert", {str(large)!r}, {str(tmp_path / "out")!r}, "--model", "generator"]) == 0
assert not {{"torch", "numpy", "safetensors"}} & set(sys.modules)
print("peak", tracemalloc.get_traced_memory()[1])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    tensor = 4 * 1500 * 1500  # of five as large
    peak = int(ended.stdout.rpartition("peak")[2])
    assert tensor < peak < 2.5 * tensor
