"""`dtrain convert --to`: models of transformers and diffusers, opened again by their `from_pretrained`."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Said, only_run, written
from safetensors import safe_open
from safetensors.torch import load_file

pytestmark = pytest.mark.alone

Here = Callable[..., Said]
TRUSTED = ("pretrained_models:writer", "pretrained_models", "diffusers")
TRUST = tuple(itertools.chain.from_iterable(("--trust", name) for name in TRUSTED))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of models of transformers and diffusers, made by a process of its own."""
    folder = tmp_path_factory.mktemp("pretrained")
    here = Path(__file__).parent
    code = "from pretrained_models import RECIPE; import sys; open(sys.argv[1], 'w').write(RECIPE)"
    environment = {**os.environ, "PYTHONPATH": f"{here}:{here.parent}", "ACCELERATE_USE_CPU": "true"}
    recipe = written(folder, "pretrained.toml", "")
    subprocess.run([sys.executable, "-c", code, recipe], env=environment, check=True)
    command = [sys.executable, "-m", "dtrain", "run", recipe, "--runs", folder / "runs"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return only_run(folder / "runs")


def opened(code: str, *arguments: str | Path) -> str:
    """What a program of a user prints, in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


OPEN_WRITER = """
import sys, torch
from transformers import AutoModelForCausalLM
import dtrain
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
mine = dtrain.load_models(sys.argv[2], trust=sys.argv[3:])["writer"]
words = torch.tensor([[1, 2, 3]])
assert torch.equal(model(words).logits, mine(words).logits)
assert model.lm_head.weight is model.transformer.wte.weight
print(type(model).__name__)
"""
OPEN_PAINTER = """
import sys, torch
from diffusers import UNet2DModel
import dtrain
model = UNet2DModel.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16)
mine = dtrain.load_models(sys.argv[2], trust=sys.argv[3:])["painter"]
assert all(torch.equal(v, mine.state_dict()[k].bfloat16()) for k, v in model.state_dict().items())
print(type(model).__name__)
"""


def to_folder(run: Path, out: Path, *arguments: str) -> Said:
    """`dtrain convert` in a process of its own, as libraries that it imports warn of much."""
    command = [sys.executable, "-m", "dtrain", "convert", run, out, "--model", *arguments, *TRUST]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return Said(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def with_own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes import what lies in this folder."""
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(__file__).parents[1]}")


@pytest.mark.usefixtures("with_own_models")
def test_a_model_of_transformers_is_opened_by_from_pretrained(pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "writer"
    said = to_folder(pretrained, out, "writer", "--to", "transformers", "--shard-bytes", "2kB")
    assert said.code == 0, said.errors
    assert opened(OPEN_WRITER, out, pretrained, *TRUSTED) == "GPT2LMHeadModel\n"
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 1
    for file in files:
        with safe_open(file, "pt") as tensors:
            assert (tensors.metadata()["step"], tensors.metadata()["weights"]) == ("2", "average")


@pytest.mark.usefixtures("with_own_models")
def test_a_model_of_diffusers_is_opened_by_from_pretrained(pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "painter"
    said = to_folder(pretrained, out, "painter", "--to", "diffusers", "--dtype", "bf16")
    assert said.code == 0, said.errors
    assert opened(OPEN_PAINTER, out, pretrained, *TRUSTED) == "UNet2DModel\n"
    (file,) = out.glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.bfloat16}


REFUSED = """
import sys
from dtrain.cli.app import carry_out
for words in ("painter --to transformers", "writer --to diffusers", "own --to transformers"):
    assert carry_out(["convert", sys.argv[1], sys.argv[2], "--model", *words.split(), *sys.argv[3:]]) == 2
"""


@pytest.mark.usefixtures("with_own_models")
def test_a_library_is_not_given_what_it_cannot_open(pretrained: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", REFUSED, pretrained, tmp_path / "out", *TRUST]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line for line in ended.stderr.splitlines() if line.startswith("dtrain: ")] == [
        "dtrain: models.painter is a UNet2DModel, which diffusers opens; --to diffusers would do",
        "dtrain: models.writer is a GPT2LMHeadModel, which transformers opens; --to transformers would do",
        "dtrain: models.own is a Linear, which has no save_pretrained, so transformers cannot open it; "
        "without --to its weights are written as they are, under plain names",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_strangers_model_is_not_imported(pretrained: Path, tmp_path: Path, dtrain_here: Here) -> None:
    said = dtrain_here("convert", pretrained, tmp_path / "out", "--model", "writer", "--to", "transformers")
    assert (said.code, said.out) == (2, "")
    assert "'pretrained_models:writer' is not in a trusted package" in said.errors
    assert "pretrained_models" not in sys.modules
    assert dtrain_here("convert", pretrained, tmp_path / "plain", "--model", "writer").code == 0
