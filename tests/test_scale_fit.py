"""What a launch asks for and a recipe cannot give is told by `dtrain check`; and the memory of a device."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_scale import ROOT, file

import dtrain
from dtrain.backends.torch_backend import build_model
from dtrain.engines.blocks import repeated
from dtrain.scale.fit import has_blocks
from dtrain.scale.memory import plan_memory_under
from dtrain.scale.tables import DDP, FSDP, ZeRO
from dtrain.spec.decode import decode
from dtrain.spec.models import ModelSpec

HALF_WEIGHTS = '[engine]\nkind = "fsdp"\nhalf_parameters = true'


@pytest.mark.parametrize("loss", ['loss = "wasserstein"', "r1 = 1.0"])
def test_check_refuses_slopes_of_slopes_where_an_engine_has_none(
    dtrain_here: Callable[..., Any], gan: Path, tmp_path: Path, loss: str
) -> None:
    asked = ["check", gan, "--scale", file(tmp_path, HALF_WEIGHTS), 'train.precision="bf16"']
    assert dtrain_here(*asked).code == 0
    said = dtrain_here(*asked, f"system.{loss}")
    assert said.code == 2
    assert re.search(r"scale.toml:3:1: engine.half_parameters: FSDP has no slope of a slope", said.errors)


PENALTY = "gradient_penalty(discriminator, image)"


@pytest.mark.parametrize(
    "given",
    [
        [f'system.phases[0].losses.steep="{PENALTY}"'],
        [f'system.values.steep="{PENALTY}"', 'system.phases[0].losses.steep="2 * steep"'],
        [f'models.discriminator.losses.steep="{PENALTY}"'],
    ],
)
def test_slopes_in_the_losses_of_a_composed_system_are_known(given: list[str]) -> None:
    recipe = ROOT / "recipes/composed/gan.toml"
    assert dtrain.load(recipe, given).system.has_slopes
    logged = [f'system.phases[0].logs.steep="{PENALTY}"']  # no gradient goes through what is logged
    assert not dtrain.load(recipe, logged).system.has_slopes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '[activation_checkpointing]\nlayers = ["discriminator/1", "generator/9"]',
            r'2:30: activation_checkpointing.layers\[1\]: there is no such layer; .* did you mean "gen',
        ),
        ('[engine]\nkind = "fsdp"\nblocks = ["7.*"]', r"3:11: engine.blocks\[0\]: there is no such layer"),
        ('[engine]\nkind = "fsdp"\nhalf_parameters = true', '3:19: engine.half_parameters: .* "bf16", and'),
        ('optimizer = "foreach"', "1:13: optimizer: optimizers.generator is lion, which has no such form"),
        (
            '[compile]\nwhat = "blocks"\nbackend = "eager"',
            '2:8: compile.what: no model is made of repeated blocks, as transformers are; "losses" would do',
        ),
        (
            "[activation_checkpointing]",
            "1:2: activation_checkpointing: no model has repeated layers that are made of several; say which",
        ),
    ],
)
def test_check_finds_what_does_not_fit_the_recipe(
    dtrain_here: Callable[..., Any], gan: Path, tmp_path: Path, text: str, message: str
) -> None:
    lion = ['optimizers."*"={kind = "lion", lr = 1e-4}'] if "lion" in message else []
    said = dtrain_here("check", gan, "--scale", file(tmp_path, text), *lion)
    assert said.code == 2
    assert re.search(f"scale.toml:{message}", said.errors), said.errors


INSIDE = [{"kind": "linear", "out": 4}]


@pytest.mark.parametrize(
    "layers",
    [
        [{"kind": "residual", "layers": INSIDE}],
        [{"kind": "skip", "layers": INSIDE}],
        [{"kind": "repeat", "times": 2, "layers": INSIDE}],
        [{"kind": "attention", "heads": 2}],
        [{"kind": "gru", "out": 4}],
        [*INSIDE, {"kind": "layer_norm"}, {"kind": "activation", "function": "relu"}],
        [{"kind": "position"}, {"kind": "flatten"}],
    ],
)
def test_whether_a_model_has_repeated_blocks_is_told_before_it_is_built(layers: list[Any]) -> None:
    spec, errors = decode(ModelSpec, {"input": [3, 4], "layers": layers})
    assert not errors
    assert has_blocks(spec) == bool(dict(repeated(build_model("model", spec, seed=0))))


@pytest.mark.parametrize(
    ("text", "overrides", "place", "message"),
    [
        ('engine.kind = "fsdp"', ["train.lanes=2"], "train.lanes", "fsdp keeps parts of them"),
        ('engine = {kind = "ddp", compression = "fp16"}', ["train.lanes=2"], "train.lanes", "no say in it"),
        (
            "engine = {kind = 'zero', stage = 1}",
            ['train.precision="fp64"'],
            "train.precision",
            "fp64 is more",
        ),
        (
            'engine = {kind = "fsdp", half_parameters = true}',
            ['train.precision="bf16"', 'models.generator.precision="fp32"'],
            "models.generator.precision",
            "engine.half_parameters of the launch turns",
        ),
        (
            'engine.kind = "fsdp"',
            ['optimizers.generator.kind="adafactor"'],
            "optimizers.generator.kind",
            "may go by the shapes of weights, and fsdp cuts them; adamw would do, or launch/ddp.yaml",
        ),
        (
            "engine = {kind = 'zero', stage = 2}",
            ['optimizers.generator.kind="muon"', "optimizers.generator.others={lr = 1e-3}"],
            "optimizers.generator.kind",
            "muon may go by the shapes of weights, and zero cuts them",
        ),
    ],
)
def test_check_refuses_what_an_engine_cannot_do(
    dtrain_here: Callable[..., Any],
    gan: Path,
    tmp_path: Path,
    text: str,
    overrides: list[str],
    place: str,
    message: str,
) -> None:
    plain = ['optimizers."*"={kind = "adam", lr = 1e-3}', *overrides]
    assert dtrain_here("check", gan, *plain).code == 0
    said = dtrain_here("check", gan, "--scale", file(tmp_path, text), *plain)
    assert said.code == 2
    number = next(number for number, given in enumerate(plain, 1) if given.startswith(place))
    assert re.search(rf"^argument {number}:\d+: {place}: .*{message}", said.errors), said.errors


@pytest.mark.parametrize(
    ("engine", "weights", "gradients", "optimizers", "averages"),
    [  # in weights of the trained model, of which Adam keeps two more; as the table of docs/engines.md says
        (DDP(), 1, 1, 2, 1),
        (ZeRO(stage=1), 1, 1, 3 / 4, 1 / 4),
        (ZeRO(stage=2), 1, 1 / 4, 3 / 4, 1 / 4),
        (ZeRO(stage=3), 1 / 4, 1 / 4, 2 / 4, 1 / 4),
        (FSDP(), 1 / 4, 1 / 4, 2 / 4, 1 / 4),
        (FSDP(accumulate="whole"), 1 / 4, 1, 2 / 4, 1 / 4),
        (FSDP(offload=True), 0, 0, 0, 0),
        (ZeRO(stage=2, half_parameters=True), 1 / 2, 1 / 4, 3 / 4, 1 / 4),
        (ZeRO(stage=3, half_parameters=True), 1 / 8, 1 / 4, 3 / 4, 1 / 4),
        (ZeRO(stage=2, offload_optimizer=True), 1, 0, 0, 0),
        (ZeRO(stage=3, offload_optimizer=True, offload_parameters=True), 0, 0, 0, 0),
    ],
    ids=str,
)
def test_the_plan_counts_what_a_device_keeps_under_an_engine(
    classifier: Path, engine: Any, weights: float, gradients: float, optimizers: float, averages: float
) -> None:
    given = ['optimizers."*"={kind = "adam", lr = 1e-3}', "averages.classifier.decay=0.9"]
    recipe = dtrain.load(classifier, given)
    model = recipe.models["classifier"]
    assert isinstance(model, ModelSpec)
    size = 4 * model.parameter_count()
    found = plan_memory_under(engine, recipe, 4)
    assert found is not None
    there = [found.weights, found.gradients, found.optimizers, found.averages]
    assert there == pytest.approx([size * each for each in (weights, gradients, optimizers, averages)], abs=1)


def test_models_that_nobody_trains_are_whole_under_zero_and_in_parts_under_fsdp(gan: Path) -> None:
    recipe = dtrain.load(gan)
    sizes = {name: 4 * model.parameter_count() for name, model in recipe.models.items()}  # type: ignore[union-attr]
    only = dataclasses.replace(recipe, optimizers={"generator": recipe.optimizers["generator"]})
    in_parts = (plan_memory_under(engine, only, 2) for engine in (ZeRO(stage=3), FSDP()))
    assert [found and found.weights for found in in_parts] == pytest.approx(
        [sizes["discriminator"] + sizes["generator"] / 2, sum(sizes.values()) / 2], abs=1
    )


@pytest.mark.parametrize(
    ("text", "processes", "said"),
    [
        ("", "1", "memory on each device: about"),
        ("", "2", "memory on each of 2 devices, under DDP: about"),
        ("engine = { kind = 'fsdp' }", "2", "memory on each of 2 devices, under FSDP2: about"),
        ("engine = { kind = 'zero', stage = 2 }", "1", "memory on the one device, under ZeRO 2: about"),
    ],
)
def test_check_says_for_which_engine_memory_is_counted(
    dtrain_here: Callable[..., Any], gan: Path, tmp_path: Path, text: str, processes: str, said: str
) -> None:
    arguments = ["train.micro_batch_size=2", "--processes", processes, "--scale", file(tmp_path, text)]
    printed = dtrain_here("check", gan, *arguments)
    assert printed.code == 0, printed.errors
    assert said in printed.out
