"""Checkpoints of every format that there was: small ones, kept as they were written, are carried on."""

from pathlib import Path

import pytest
import torch
from conftest import start_two, tensors_of
from damaging import whole

import dtrain
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.format.files import FORMATS

pytestmark = pytest.mark.alone


def test_there_is_one_of_each_format() -> None:
    assert sorted(path.name for path in whole(1).parent.iterdir()) == [f"format-{form}" for form in FORMATS]
    for form in FORMATS:
        assert open_checkpoint(whole(form), hashes=True).format == form


@pytest.mark.parametrize("form", FORMATS)
def test_a_run_carries_on_from_it_with_its_very_bits(form: int, gan: Path, tmp_path: Path) -> None:
    saved = tensors_of(whole(form))
    with dtrain.setup(dtrain.load(gan), runs=tmp_path / "runs", resume=whole(form)) as run:
        assert run.step == 4
        own = {
            f"{part}/{name}": (str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes())
            for part, name, tensor in run.engine.tensors()
        }
        assert own == saved
        for _ in dtrain.train(run):
            pass
    ended = open_checkpoint(checkpoints_in(run.folder)[-1])
    assert (ended.step, ended.format) == (8, FORMATS[-1])


@pytest.mark.parametrize("form", FORMATS)
def test_its_models_load(form: int) -> None:
    models = dtrain.load_models(whole(form))
    assert models["generator"](torch.zeros(2, 4)).shape == (2, 1, 8, 8)
    averaged = tensors_of(whole(form))["averages/generator/0.weight"][2]
    assert models["generator"].state_dict()["0.weight"].numpy().tobytes() == averaged


def test_two_processes_carry_on_from_the_first_format(gan: Path, tmp_path: Path) -> None:
    lives = start_two("run", gan, "--resume", whole(1), "--runs", tmp_path / "runs", log=tmp_path / "log")
    assert [life.end() for life in lives] == [0, 0], [life.said for life in lives]
