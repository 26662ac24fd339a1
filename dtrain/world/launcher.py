"""What `accelerate launch` was asked for, by its options and its file, and where a recipe says otherwise.

Nothing here imports torch: a contradiction is told before that.
"""

import argparse
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain.errors import LaunchError, RecipeError

if TYPE_CHECKING:  # it takes NumPy, which would keep this process from tying itself to its launcher
    from dtrain.recipe.values import Train

# What a recipe says too, and the variable that tells the processes of it. Accelerate 1.15 sets the first one
# always, the others for DeepSpeed alone; whoever exports them by hand would have any `Accelerator()` obey.
VARIABLES = {
    "mixed_precision": "ACCELERATE_MIXED_PRECISION",
    "gradient_accumulation_steps": "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
    "gradient_clipping": "ACCELERATE_GRADIENT_CLIPPING",
}
UNSAID = ("", "no", "none", "false", "auto")


@dataclass(frozen=True)
class Asked:
    """A setting that the launcher was given and that a recipe has too."""

    value: str
    said: str  # which variable, option or file says so, as a clause


@dataclass(frozen=True)
class Request:
    """The `accelerate launch` above this process: its options and the file that it read."""

    options: Mapping[str, Any]  # None where not given
    file: Path
    settings: Mapping[str, Any]  # of that file

    def find(self, name: str) -> tuple[str, str]:
        """A setting's value, and where it comes from; "" and "" if from neither."""
        if self.options[name] is not None:
            return self.options[name], f"the option --{name} of `accelerate launch`"
        value = self.settings.get(name)
        return ("", "") if value is None else (str(value), str(self.file))


def find_request(environment: Mapping[str, str]) -> Request | None:
    """Read the command line of the `accelerate launch` above this process; None if nobody may look at it.

    Raises LaunchError where it has ended already.
    """
    import psutil  # type: ignore[import-untyped]  # it has no types

    command = psutil.Process().cmdline()
    for ancestor in psutil.Process().parents():
        try:
            if _is_accelerate_launch(ancestor.cmdline()):
                options = _without_common_end(ancestor.cmdline(), command)
                return read_request(options, Path(ancestor.cwd()), environment)
            command = ancestor.cmdline()
        except psutil.Error:  # it has ended, or belongs to somebody else: nothing to compare with
            continue
    if os.getppid() == 1:  # given to the first process, because the launcher died while Python started
        raise LaunchError("accelerate launch, which started this process, has ended; start it again")
    return None


def read_request(options: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Request:
    """What the launcher's options say, and the file that they or Accelerate's habits choose."""
    # Accelerate's own parser would import torch: 3 s in which this process is not tied to its launcher.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes", type=int)
    parser.add_argument("--num_machines", "--num-machines", type=int)
    parser.add_argument("--config_file", "--config-file", type=Path)
    parser.add_argument("--cpu", action="store_true")
    for name in VARIABLES:
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}")
    asked, _ = parser.parse_known_args(options)
    file = _default_config(environment) if asked.config_file is None else folder / asked.config_file
    is_read = asked.config_file is not None or (file.is_file() and not asked.cpu)  # as Accelerate decides
    return Request(vars(asked), file, _read_settings(file) if is_read else {})


def check_size(request: Request | None, size: int) -> None:
    """Raise LaunchError if the launcher was asked for another world than the one that came.

    Accelerate 1.15 starts one process and says nothing for `--cpu --num_processes 2`, for `--num_processes 2`
    without GPUs, and for a file with `distributed_type: MULTI_CPU`: only `multi_gpu` leads to several.
    """
    if request is None:
        return
    options, settings = request.options, request.settings
    processes = options["num_processes"] or int(settings.get("num_processes") or 0)
    machines = options["num_machines"] or int(settings.get("num_machines") or 0)
    by_options = options["num_processes"]
    if processes <= 0:  # -1 stands for "on the command line"
        by_options = options["num_machines"]
        processes = max(machines, size, 1)  # nothing but machines was asked for: at least one process each
    if processes == size:
        return
    if processes < size:
        cure = "start `dtrain run ...` with one launcher only"
    else:
        cure = (
            "without GPUs start it with `accelerate launch --config_file launch/cpu-2.yaml dtrain run ...`, "
            f"or anywhere with `accelerate launch --multi_gpu --num_processes {processes} dtrain run ...`"
        )
    raise LaunchError(
        f"{'`accelerate launch`' if by_options else request.file} asks for {processes} "
        f"process{'es' * (processes > 1)}, but Accelerate started {size} without a warning; {cure}"
    )


def settings_asked(environment: Mapping[str, str], request: Request | None) -> dict[str, Asked]:
    """What was asked for of the settings that a recipe has too, by the names of Accelerate's options."""
    found = {}
    for name, variable in VARIABLES.items():
        value, source = request.find(name) if request else ("", "")
        if variable in environment:
            value = environment[variable]
            said = f"the environment variable {variable} is {value}" + (f", by {source}" if source else "")
        else:  # Accelerate ignores it without a word
            said = f"{source} says {name} {value}"
        if value.lower() not in UNSAID:
            found[name] = Asked(value, said)
    return found


def contradictions(
    train: "Train", clips: Mapping[str, float | None], size: int, asked: Mapping[str, Asked]
) -> Iterator[RecipeError]:
    """Every setting of which the recipe says one thing and the launcher another, in a world of so many.

    `clips` are those of the optimizers by name.
    """
    if (found := asked.get("mixed_precision")) and found.value.lower() != train.precision:
        yield _contradiction("train.precision", f"is {train.precision}", found)
    if found := asked.get("gradient_accumulation_steps"):
        micro_batches = -(-train.batch_size // train.micro)
        steps = -(-micro_batches // size)
        if _number(found) not in (1, steps):
            means = f"leads to {steps} micro-batch{'es' * (steps > 1)} of each process in an update"
            yield _contradiction("train.micro_batch_size", means, found)
    if found := asked.get("gradient_clipping"):
        for name, clip in clips.items():
            if clip != _number(found):
                said = "is left out" if clip is None else f"is {clip:g}"
                yield _contradiction(f"optimizers.{name}.clip", said, found)


def _contradiction(key: str, said: str, asked: Asked) -> RecipeError:
    return RecipeError(key, f"{said} in the recipe, but {asked.said}; make them agree, or leave it out there")


def _number(asked: Asked) -> float:
    try:
        return float(asked.value)
    except ValueError:
        raise LaunchError(f"{asked.said}, which is not a number; leave it out there") from None


def _is_accelerate_launch(command: Sequence[str]) -> bool:
    # accelerate launch | accelerate-launch | -m accelerate.commands.launch | accelerate/commands/launch.py
    return re.search(r"\baccelerate(-|\S* |[./]commands[./])launch\b", " ".join(command)) is not None


def _without_common_end(command: Sequence[str], child: Sequence[str]) -> list[str]:
    """Return the launcher's command without the program it starts, whose options may bear the same names."""
    kept = list(command)
    rest = list(child)
    while kept and rest and kept[-1] == rest[-1]:
        kept.pop()
        rest.pop()
    return kept


def _default_config(environment: Mapping[str, str]) -> Path:
    """Return where `accelerate config` keeps the file that is read without --config_file."""
    cache = Path(environment.get("XDG_CACHE_HOME", "~/.cache"))
    folder = Path(environment.get("HF_HOME", cache / "huggingface")).expanduser() / "accelerate"
    newer, older = folder / "default_config.yaml", folder / "default_config.json"
    return older if older.is_file() and not newer.is_file() else newer


def _read_settings(file: Path) -> dict[str, Any]:
    """A file's settings, with those that Accelerate keeps in its table for DeepSpeed."""
    import yaml  # type: ignore[import-untyped]  # Accelerate brings it; JSON is YAML

    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError:  # a pipe such as /dev/fd/63, read by the launcher already
        return {}
    return {**(settings.get("deepspeed_config") or {}), **settings}
