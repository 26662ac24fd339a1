"""A loss that is weighed by its tokens is the same however its sentences are cut up."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from agreement.cases import VOCABULARY
from conftest import Said, metrics_of, only_run, start_two

from dtrain.backends.torch_weights import tensors_of
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint

Here = Callable[..., Said]
EXAMPLES = 40
RECIPE = f"""
name = "tokens"
[system]
kind = "agreement.systems:Speech"
[models.speaker]
input = [5]
layers = [
    {{ kind = "embedding", size = {VOCABULARY}, out = 6 }},
    {{ kind = "layer_norm" }},
    {{ kind = "linear", out = 8 }},
    {{ kind = "activation", function = "gelu" }},
    {{ kind = "linear", out = {VOCABULARY} }},
]
[optimizers.speaker]
kind = "sgd"
lr = 0.1
momentum = 0.9
clip = 0.2
[data]
kind = "arrays"
path = "sentences.npz"
[train]
steps = 20
batch_size = 16
precision = "fp64"
[every]
log = 1
[track]
kinds = ["jsonl"]
"""


@pytest.fixture
def sentences(tmp_path: Path, on_cpu: None) -> Path:
    """A recipe of 40 sentences of 0 to 6 tokens: the last batch of each epoch is half a one."""
    random = np.random.default_rng(1)
    token = random.integers(VOCABULARY, size=(EXAMPLES, 6))
    np.savez(tmp_path / "sentences.npz", token=token, length=random.integers(7, size=EXAMPLES))
    (tmp_path / "tokens.toml").write_text(RECIPE)
    return tmp_path / "tokens.toml"


def test_one_process_with_one_big_batch_equals_four_micro_batches_on_two_processes_with_ragged_lengths(
    sentences: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    assert dtrain_here("run", sentences, "--runs", tmp_path / "one").code == 0
    cut_up = ("run", sentences, "train.micro_batch_size=4", "--runs", tmp_path / "two")
    lives = start_two(*cut_up, log=tmp_path / "log")
    assert [life.end() for life in lives] == [0, 0], lives[0].said
    one, two = only_run(tmp_path / "one"), only_run(tmp_path / "two")
    for part in ("models", "optimizers"):
        whole, cut = (tensors_of(open_checkpoint(checkpoints_in(run)[-1]), part) for run in (one, two))
        assert whole.keys() == cut.keys()
        for name, tensor in whole.items():
            assert float((cut[name] - tensor).abs().max()) < 1e-12 * max(1.0, float(tensor.abs().max())), name
    curves, others = metrics_of(one), metrics_of(two)
    assert [step for step, _ in curves] == [step for step, _ in others] == list(range(1, 21))
    for (_, wanted), (_, found) in zip(curves, others, strict=True):
        assert wanted.keys() == found.keys() >= {"speaker/loss", "speaker/accuracy", "speaker/grad_norm"}
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name
    clipped = [values["speaker/grad_norm"] > 0.2 for _, values in curves]
    assert any(clipped)
