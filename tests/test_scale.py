"""What a launch says of how to run: read from its file and from what Accelerate leaves in the environment."""

from pathlib import Path

import pytest

from dtrain.engines.scale import DDP, FSDP, Scale, ZeRO, read_scale
from dtrain.errors import LaunchError, RecipeErrors

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
        ({**OF_ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "stage 0; 1, 2 or 3 would do"),
        ({**OF_ZERO, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, "cpu, or none"),
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


def test_a_mistake_in_the_file_is_told_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeErrors, match=r'scale.toml:3:1: engine.resharrd: unknown key; did you mean "reshard"'
    ):
        read_scale({}, file(tmp_path, '[engine]\nkind = "fsdp"\nresharrd = true\n'))
