"""What a file of `accelerate config` will say to the processes that it starts, told before it starts any."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dtrain.errors import LaunchError

WOULD_DO = "one of `accelerate config`, or launch/zero2.yaml and the like, would do"


def environment_of(config: Path) -> dict[str, str]:
    """The variables that `accelerate launch --config_file` will set, of those that choose how a run goes.

    Accelerate's own parser would import torch. Raises LaunchError where there is no such file.
    """
    settings = _read(config)
    engine = str(settings["distributed_type"]).upper()
    found = {f"ACCELERATE_USE_{engine}": "true"}
    if "parallelism_config" in settings:
        found["ACCELERATE_USE_PARALLELISM_CONFIG"] = "true"
    if engine == "FSDP":
        found |= {key.upper(): str(value) for key, value in _table(settings, "fsdp_config")}
    if engine == "DEEPSPEED":
        of_zero = _table(settings, "deepspeed_config")
        return found | {
            f"ACCELERATE_DEEPSPEED_{key.removeprefix('deepspeed_').upper()}": str(value)
            for key, value in of_zero
        }
    return found | {
        f"ACCELERATE_{key.upper()}": str(value) for key, value in _table(settings, "dynamo_config")
    }


def _table(settings: Mapping[str, Any], name: str) -> list[tuple[str, Any]]:
    """What is said in one of its tables."""
    return [(key, value) for key, value in (settings.get(name) or {}).items() if value is not None]


def _read(config: Path) -> Mapping[str, Any]:
    import yaml  # type: ignore[import-untyped]  # Accelerate brings it; JSON is YAML

    if not config.is_file():
        raise LaunchError(f"--config {config} is not there; {WOULD_DO}")
    if config.suffix == ".toml":
        raise LaunchError(f"--config {config} is TOML, which Accelerate does not read; --scale {config} does")
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise LaunchError(f"--config {config} cannot be read as YAML: {said}; {WOULD_DO}") from None
    if not isinstance(settings, dict) or "distributed_type" not in settings:
        raise LaunchError(f"--config {config} has no distributed_type, which Accelerate asks for; {WOULD_DO}")
    return settings
