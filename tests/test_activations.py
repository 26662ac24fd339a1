"""Activation checkpointing: layers computed anew in the backward change no bit of a run, on any engine."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GAN, last_tensors, only_run, start_two, written
from torch import Tensor, nn

import dtrain
from dtrain.engines.activations import compute_anew
from dtrain.engines.blocks import check_patterns
from dtrain.errors import LaunchError, RecipeError
from dtrain.events import Stepped
from dtrain.scale.tables import FSDP, Activations, Scale, matches

pytestmark = pytest.mark.alone

SHORT = ("train.steps=4", "every.save=4", "every.evaluate=0", "checkpoint.best=${unset}")
ALL = Activations(layers=("*",))


def trained(recipe: Path, scale: Scale, *overrides: str) -> tuple[Any, list[Any]]:
    """The tensors, and the metrics but for the speed, of a run in this process."""
    runs = recipe.parent / f"runs-{len(list(recipe.parent.glob('runs-*')))}"
    loaded = dtrain.load(recipe, [*SHORT, "checkpoint.mode=${unset}", *overrides])
    with dtrain.setup(loaded, runs=runs, scale=scale) as run:
        steps = [event.metrics for event in dtrain.train(run) if isinstance(event, Stepped)]
    metrics = [{key: step[key] for key in step.keys() - {"examples_per_second"}} for step in steps]
    return last_tensors(only_run(runs)), metrics


@pytest.mark.parametrize(
    "overrides",
    [(), ('system.loss="wasserstein"',), ("system.r1=1.0",), ('train.precision="bf16"',)],
    ids=["gan", "gradient penalty", "r1", "bf16"],
)
def test_no_bit_changes(gan: Path, overrides: tuple[str, ...]) -> None:
    kept = trained(gan, Scale(), *overrides)
    anew = trained(gan, Scale(activation_checkpointing=ALL), *overrides)
    assert anew == kept  # with the statistics of batch normalisation, noted once


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_no_bit_changes_on_two_ranks(tmp_path: Path, engine: str) -> None:
    recipe = written(tmp_path, "gan.toml", GAN)
    found = []
    for anew in ("", '[activation_checkpointing]\nlayers = ["generator/*", "discriminator/[012]"]\n'):
        scale = tmp_path / f"scale-{bool(anew)}.toml"
        blocks = 'blocks = ["0", "4"]\n' if engine == "fsdp" else ""
        scale.write_text(f'[engine]\nkind = "{engine}"\n{blocks}{anew}')
        runs = tmp_path / f"runs-{bool(anew)}"
        command = ("run", recipe, *SHORT, "checkpoint.mode=${unset}", "--scale", scale, "--runs", runs)
        ranks = start_two(*command, log=tmp_path / f"log-{bool(anew)}")
        assert [rank.end() for rank in ranks] == [0, 0], ranks[0].said + ranks[1].said
        found.append(last_tensors(only_run(runs)))
    assert found[0] == found[1]


def test_what_is_inside_is_computed_twice_and_not_kept() -> None:
    block = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
    calls: list[bool] = []
    block[1].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    def kept() -> int:
        """The most numbers in one tensor that autograd keeps."""
        sizes = [0]
        keep = torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x)
        with keep:
            out = block(torch.ones(32, 8)).sum()
        calls.clear()
        out.backward()
        return max(sizes)

    assert (kept(), len(calls)) == (32 * 16, 0)
    compute_anew(block)
    assert (kept(), len(calls)) == (32 * 8, 1)


def test_a_layer_that_moves_its_buffers_is_computed_anew_from_where_they_were() -> None:
    found = []
    for anew in (False, True):
        torch.manual_seed(0)
        layer = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 5))
        if anew:
            compute_anew(layer)
        x = torch.randn(3, 6)
        (layer(x) + layer(x + 1)).square().sum().backward()
        found.append([*(p.grad for p in layer.parameters()), *layer.buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


class Mask(nn.Module):
    """Multiplies by a buffer, of which autograd keeps a view."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.arange(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def test_a_buffer_that_stays_is_not_written_to() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Mask(), nn.Linear(4, 4))
    compute_anew(model)
    x = torch.randn(2, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()  # would complain


@pytest.mark.parametrize(
    ("pattern", "model", "layer", "is_named"),
    [
        ("3.*", "generator", "3.0", True),
        ("3.*", "generator", "3.0.1", False),
        ("generator/3", "generator", "3", True),
        ("generator/3", "critic", "3", False),
        ("gen*/h.[0-3].mlp", "generator", "h.2.mlp", True),
    ],
)
def test_a_star_stands_for_one_part_of_a_name(pattern: str, model: str, layer: str, is_named: bool) -> None:
    assert matches(pattern, model, layer) is is_named


def test_layers_that_no_model_has_are_refused(gan: Path) -> None:
    scale = Scale(activation_checkpointing=Activations(layers=("generator/7",)))
    with pytest.raises(RecipeError, match=r"there is no such layer; .* generator/0, generator/1"):
        trained(gan, scale)
    with pytest.raises(RecipeError, match=r"no model has repeated layers .* say which"):
        trained(gan, Scale(engine=FSDP(), activation_checkpointing=Activations()))
    with pytest.raises(LaunchError, match=r"there is no layer 'h\.9'; the outermost are gpt/0"):
        check_patterns(["0", "h.9"], {"gpt": nn.Sequential(nn.Linear(2, 2))}, "layers")
