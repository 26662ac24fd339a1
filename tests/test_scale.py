"""What a launch says of how to run: read from its file and from what Accelerate leaves in the environment."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import only_run, start_two

import dtrain
from dtrain.backends.torch_weights import tensors_of as tensors_in
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.errors import LaunchError, RecipeError, RecipeErrors
from dtrain.recipe.reference import renewed
from dtrain.scale.asked import read_scale
from dtrain.scale.reference import parts
from dtrain.scale.tables import DDP, FSDP, Activations, Compile, Scale, ZeRO
from dtrain.spec.decode import fields_of

pytestmark = pytest.mark.alone

ROOT = Path(dtrain.__file__).parents[1]
OF_FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
OF_ZERO = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


def file(folder: Path, content: str) -> Path:
    (folder / "scale.toml").write_text(content)
    return folder / "scale.toml"


@pytest.mark.parametrize(
    ("environment", "engine"),
    [
        ({}, DDP()),
        (OF_FSDP, FSDP()),
        ({**OF_FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false"}, FSDP(reshard=False)),
        ({**OF_FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, FSDP(offload=True)),
        (OF_ZERO, ZeRO(stage=3)),
        (
            {**OF_ZERO, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"},
            ZeRO(stage=3, offload_optimizer=True),
        ),
    ],
)
def test_the_launcher_chooses_the_engine(environment: dict[str, str], engine: object) -> None:
    assert read_scale(environment, None) == Scale(engine=engine)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 2 would do"),
        ({**OF_FSDP, "FSDP_RESHARD_AFTER_FORWARD": "hybrid_shard"}, "true or false would do"),
        (
            {**OF_FSDP, "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"},
            "engine.blocks in a file of --scale",
        ),
        ({**OF_ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "stage 0; 1, 2 or 3 would do"),
        ({**OF_ZERO, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, "cpu, or none"),
        ({**OF_ZERO, "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "ds.json, which dtrain does not read"),
    ],
)
def test_what_dtrain_has_no_engine_for_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        read_scale(environment, None)


def test_a_file_says_more_than_the_launcher(tmp_path: Path) -> None:
    path = file(tmp_path, '[engine]\nkind = "fsdp"\naccumulate = "whole"\n')
    assert read_scale({}, path) == read_scale(OF_FSDP, path) == Scale(engine=FSDP(accumulate="whole"))
    assert read_scale(OF_ZERO, file(tmp_path, "")) == Scale(engine=ZeRO(stage=3))


def test_a_file_and_a_launcher_that_disagree_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LaunchError, match=r"scale.toml says engine.kind = 'fsdp', but `accelerate launch` asks for 'zero'"
    ):
        read_scale(OF_ZERO, file(tmp_path, '[engine]\nkind = "fsdp"\n'))
    with pytest.raises(LaunchError, match=r"says engine.offload = False, but .* asks for True"):
        read_scale({**OF_FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, file(tmp_path, '[engine]\nkind = "fsdp"\n'))
    with pytest.raises(LaunchError, match=r"says engine.stage = 2, but .* asks for 3"):
        read_scale(OF_ZERO, file(tmp_path, '[engine]\nkind = "zero"\nstage = 2\n'))


def test_a_mistake_in_the_file_is_told_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeErrors, match=r'scale.toml:3:1: engine.resharrd: unknown key; did you mean "reshard"'
    ):
        read_scale({}, file(tmp_path, '[engine]\nkind = "fsdp"\nresharrd = true\n'))


OF_COMPILE = {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_DYNAMO_MODE": "default"}
REGIONAL = {**OF_COMPILE, "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "True"}


@pytest.mark.parametrize(
    ("environment", "scale"),
    [
        ({"ACCELERATE_DYNAMO_BACKEND": "NO"}, Scale()),
        (OF_COMPILE, Scale(compile=Compile(what="losses"))),
        (REGIONAL, Scale(compile=Compile(what="blocks"))),
        (
            {**OF_COMPILE, "ACCELERATE_DYNAMO_USE_DYNAMIC": "True"},
            Scale(compile=Compile(what="losses", dynamic=True)),
        ),
        (
            {**OF_FSDP, **REGIONAL, "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            Scale(engine=FSDP(), compile=Compile(what="blocks"), activation_checkpointing=Activations()),
        ),
    ],
)
def test_the_launcher_asks_for_compilation_and_activation_checkpointing(
    environment: dict[str, str], scale: Scale
) -> None:
    assert read_scale(environment, None) == scale


@pytest.mark.parametrize(
    ("environment", "text", "message"),
    [
        (OF_COMPILE, '[compile]\nwhat = "blocks"', "compile.what = 'blocks', but .* asks for 'losses'"),
        (REGIONAL, '[compile]\nwhat = "blocks"\nbackend = "aot_eager"', "'aot_eager', but .* 'inductor'"),
        (
            {**OF_FSDP, **OF_COMPILE},
            "",
            'compile.what: .* under engine.kind = "ddp" alone, not "fsdp"; "blocks"',
        ),
        ({**OF_COMPILE, "ACCELERATE_DYNAMO_MODE": "reduce-overhead"}, "", "CUDA graphs overwrite losses"),
        ({**OF_COMPILE, "ACCELERATE_DYNAMO_USE_FULLGRAPH": "true"}, "", "dynamo_use_fullgraph"),
    ],
)
def test_what_launcher_and_file_say_must_agree_and_be_there(
    tmp_path: Path, environment: dict[str, str], text: str, message: str
) -> None:
    with pytest.raises(LaunchError, match=message):
        read_scale(environment, file(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[engine]\nkind = "fsdp"\n[compile]\nwhat = "losses"', '4:8: compile.what: .* "blocks" would do'),
        (
            '[compile]\nwhat = "losses"\n[activation_checkpointing]\n',
            "2:8: compile.what: .* computes no layer",
        ),
        (
            '[engine]\nkind = "ddp"\npowersgd_rank = 2',
            '3:17: engine.powersgd_rank: is of compression = "powersgd"',
        ),
        (
            '[engine]\nkind = "zero"\nstage = 2\npersistence_threshold = 0',
            "4:25: engine.persistence_threshold: is of stage 3 alone, which keeps weights in parts, not of 2",
        ),
        ('[engine]\nkind = "zero"\nstage = 1\nprefetch_bucket_size = 9', "4:24: .* is of stage 3 alone"),
        ('[engine]\nkind = "zero"\nstage = 1\nmax_live_parameters = 9', "4:23: .* is of stage 3 alone"),
        ('[engine]\nkind = "zero"\nstage = 2\nmax_reuse_distance = 9', "4:22: .* is of stage 3 alone"),
        (
            '[engine]\nkind = "zero"\nstage = 3\nallgather_bucket_size = 10',
            "4:25: engine.allgather_bucket_size: is of the stages 1 and 2; stage 3 gathers layer by layer",
        ),
        (
            '[engine]\nkind = "zero"\nstage = 1\nallgather_bucket_size = 9',
            "4:25: .* DeepSpeed takes even numbers",
        ),
        (
            '[engine]\nkind = "zero"\nstage = 2\npin_memory = false',
            "4:14: engine.pin_memory: is of what is offloaded; offload_optimizer = true would do, or leave",
        ),
        ('optimizer = "fusd"', r'1:13: optimizer: found "fusd"'),
    ],
)
def test_options_that_do_not_go_together_are_told_at_their_line(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(RecipeErrors, match=f"scale.toml:{message}"):
        read_scale({}, file(tmp_path, text))


def test_a_scale_file_that_is_not_there_is_called_one(
    dtrain_here: Callable[..., Any], gan: Path, tmp_path: Path
) -> None:
    near = file(tmp_path, "")
    said = dtrain_here("check", gan, "--scale", tmp_path / "scales.toml")
    assert said.code == 2
    assert f'scales.toml: there is no such scale file; did you mean "{near}"?' in said.errors


def options(text: str) -> list[str]:
    """An example with each of its tables that are comments in turn; such a line has no space after its #."""
    blocks = re.split(r"\n(?=#?\[)", text)
    given = [block for block in blocks if not block.startswith("#[")]
    others = [
        "\n".join(re.sub(r"^#(?=\S)", "", line) for line in b.splitlines()) for b in blocks if b not in given
    ]
    kept = [[b for b in given if b.partition("]")[0] != other.partition("]")[0]] for other in others]
    return ["\n".join(given), *("\n".join([*rest, other]) for rest, other in zip(kept, others, strict=True))]


def test_every_option_stands_in_the_example_as_it_is_if_left_out(tmp_path: Path) -> None:
    text = (ROOT / "launch/scale.toml").read_text()
    found = [read_scale({}, file(tmp_path, one)) for one in options(text)]
    assert [each.engine for each in found[:3]] == [DDP(), FSDP(blocks=("3.*",)), ZeRO(stage=2)]
    assert found[0] == Scale()
    for cls in (Scale, DDP, FSDP, ZeRO, Compile, Activations):
        for key in fields_of(cls):
            assert re.search(rf"^#?\[?{key}\b", text, re.MULTILINE), f"{key} of {cls.__name__} is not there"


def test_the_tables_of_the_reference_are_those_of_the_code() -> None:
    text = (ROOT / "docs/scale.md").read_text()
    assert renewed(text, parts()) == text, "python -m dtrain.scale.reference docs/scale.md"


@pytest.mark.parametrize(("form", "kind"), [("fused", "rmsprop"), ("foreach", "lion")])
def test_a_form_that_an_optimizer_lacks_is_refused(gan: Path, form: Any, kind: str) -> None:
    recipe = dtrain.load(gan, [f'optimizers."*".kind="{kind}"'])
    with pytest.raises(RecipeError, match=f"optimizer: optimizers.generator is {kind}, which has no such"):
        dtrain.setup(recipe, scale=Scale(optimizer=form))


def two_ranks(recipe: Path, text: str, *overrides: str) -> dict[str, torch.Tensor]:
    """The tensors of the models that two ranks train under a scale file."""
    folder = recipe.parent / f"run-{abs(hash((text, overrides)))}"
    folder.mkdir()
    ranks = start_two(
        "run", recipe, *PLAIN, *overrides, "--scale", file(folder, text), "--runs", folder, log=folder / "log"
    )
    assert [rank.end(300) for rank in ranks] == [0, 0], ranks[0].said + ranks[1].said
    return tensors_in(open_checkpoint(checkpoints_in(only_run(folder))[-1]), "models")


PLAIN = (
    "train.steps=4",
    "every.save=4",
    "every.evaluate=0",
    "checkpoint.best=${unset}",
    "checkpoint.mode=${unset}",
)
HALF = 'train.precision="bf16"'


@pytest.mark.parametrize(
    ("text", "overrides", "relative"),
    [
        ('kind = "ddp"\nbucket_mb = 1e-3\ngradient_as_bucket_view = true', (), 0.0),
        ('kind = "ddp"\ncompression = "fp16"', (), 2e-2),
        ('kind = "ddp"\ncompression = "powersgd"\npowersgd_after = 2', (), 2e-1),
        ('kind = "fsdp"\nprefetch = 1\nblocks = ["generator/[04]", "discriminator/0"]', (), 0.0),
        ('kind = "fsdp"\nhalf_parameters = true', (HALF,), 2e-2),
    ],
    ids=["buckets", "fp16", "powersgd", "prefetch", "half parameters"],
)
def test_how_gradients_and_weights_go_over_the_ranks_changes_as_much_as_said(
    gan: Path, text: str, overrides: tuple[str, ...], relative: float
) -> None:
    plain = two_ranks(gan, "", *overrides)
    found = two_ranks(gan, f"[engine]\n{text}", *overrides)
    for name, tensor in plain.items():
        away = (found[name] - tensor).abs().max() / tensor.abs().max()
        assert away <= relative, f"{name} is {away:.1e} away"
    is_same = all(torch.equal(found[name], tensor) for name, tensor in plain.items())
    assert is_same == (relative == 0.0)


@pytest.mark.parametrize("form", ["foreach", "plain"])
def test_forms_of_optimizers_differ_by_rounding_alone(gan: Path, form: Any) -> None:
    found = []
    for scale in (Scale(), Scale(optimizer=form)):
        with dtrain.setup(dtrain.load(gan, PLAIN), runs=gan.parent / "runs", fresh=True, scale=scale) as run:
            list(dtrain.train(run))
            tensors = [(name, tensor) for part, name, tensor in run.engine.tensors() if part == "models"]
            found.append({name: tensor.clone() for name, tensor in tensors})
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_compression_that_torch_has_on_gpus_alone_is_refused_elsewhere(gan: Path) -> None:
    path = file(gan.parent, '[engine]\nkind = "ddp"\ncompression = "bf16"\n')
    ranks = start_two("run", gan, *PLAIN, "--scale", path, log=gan.parent / "log")
    assert [rank.end(300) for rank in ranks] == [2, 2], ranks[0].said + ranks[1].said
    assert 'engine.compression: torch sends bf16 between GPUs alone; "fp16" would do' in ranks[0].said
