"""A launch's way to run, read: from its file, and from what Accelerate leaves in the environment."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtrain.errors import LaunchError
from dtrain.recipe.document import Document, Said, Sayings
from dtrain.recipe.locate import located
from dtrain.recipe.texts import open_text, parse
from dtrain.scale.fit import unfit
from dtrain.scale.tables import FSDP, Activations, Compile, Parallel, Scale, ZeRO
from dtrain.spec.decode import decode
from dtrain.spec.table import Table, Wrong

if TYPE_CHECKING:  # it takes NumPy, which would keep a process from tying itself to its launcher
    from dtrain.recipe.values import Recipe


def read_scale(environment: Mapping[str, str], path: Path | None, recipe: "Recipe | None" = None) -> Scale:
    """What `accelerate launch` left in the environment says, and a file; raises where they contradict.

    Raises RecipeErrors with the mistakes of the file, each at its line, among them what does not fit the
    recipe, and LaunchError for what dtrain lacks.
    """
    asked: dict[str, Any] = {
        "engine": engine_asked(environment),
        "compile": compile_asked(environment),
        "activation_checkpointing": activations_asked(environment),
    }
    said = {name: table for name, table in asked.items() if table is not None}
    document = None
    if path is not None:
        text = open_text(path, what="scale file")
        document = Document(parse(text), Sayings({(): Said(text, ())}))
        said |= _of_file(document, said)
    try:
        scale = Scale(**said)
    except Wrong as error:  # each by itself is right
        raise LaunchError(f"{error.at}: {error}, as the launcher asks for") from None
    if recipe is not None and (errors := list(unfit(scale, recipe))):
        raise located(document, errors) if document else LaunchError(str(errors[0]))
    return scale


def _of_file(document: Document, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says; raises LaunchError where the launcher asks for something else."""
    scale, errors = decode(Scale, document.table)
    if errors:
        raise located(document, errors)
    found = {name: getattr(scale, name) for name in document.table}
    for name in found.keys() & asked.keys():
        if name == "engine" and type(found[name]) is not type(asked[name]):
            one, other = f"engine.kind = {found[name].kind!r}", f"{asked[name].kind!r}"
        elif name == "engine" and (lost := _lost(found[name], asked[name])):
            one, other = f"engine.{lost} = {getattr(found[name], lost)!r}", f"{getattr(asked[name], lost)!r}"
        elif name == "compile" and (differs := _differing(found[name], asked[name])):
            one = f"compile.{differs} = {getattr(found[name], differs)!r}"
            other = f"{getattr(asked[name], differs)!r}"
        else:
            continue
        path = document.main.name
        raise LaunchError(f"{path} says {one}, but `accelerate launch` asks for {other}; say it in one place")
    return found


def _differing(one: Table, other: Table) -> str | None:
    """The first key of which the one says something else than the other, which says it."""
    keys = (key for key, value in vars(other).items() if value not in (None, vars(one)[key]))
    return next(keys, None)


def _lost(one: Parallel, other: Parallel) -> str | None:
    """The first key that is no default in the other, and something else in the one.

    Accelerate's defaults cannot be told from what somebody asked for.
    """
    changed = (f.name for f in fields(other) if getattr(other, f.name) != f.default)
    return next((key for key in changed if getattr(one, key) != getattr(other, key)), None)


def compile_asked(environment: Mapping[str, str]) -> Compile | None:
    """What Accelerate's `dynamo_config` asks for; None where nothing is to be compiled."""
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend in ("no", ""):
        return None
    mode = environment.get("ACCELERATE_DYNAMO_MODE", "default")
    if mode not in ("default", "max-autotune-no-cudagraphs"):
        raise LaunchError(
            f"the launcher asks for dynamo_mode: {mode}, whose CUDA graphs overwrite losses before they are "
            "logged; default, or max-autotune-no-cudagraphs, would do"
        )
    if _is_true(environment, "ACCELERATE_DYNAMO_USE_FULLGRAPH"):
        raise LaunchError(
            "the launcher asks for dynamo_use_fullgraph, but DistributedDataParallel, noise and metrics may "
            "stand between what is compiled; leave it out"
        )
    return Compile(
        what="blocks" if _is_true(environment, "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION") else "losses",
        backend=backend,
        mode=mode,  # type: ignore[arg-type]  # it is one of the two
        dynamic=True if _is_true(environment, "ACCELERATE_DYNAMO_USE_DYNAMIC") else None,
    )


def activations_asked(environment: Mapping[str, str]) -> Activations | None:
    """Whether Accelerate's `fsdp_config` asks for activation checkpointing."""
    if not _is_true(environment, "ACCELERATE_USE_FSDP"):
        return None
    if _is_true(environment, "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD"):
        raise LaunchError("the launcher asks for fsdp_activation_checkpointing_offload, which dtrain lacks")
    return Activations() if _is_true(environment, "FSDP_ACTIVATION_CHECKPOINTING") else None


def engine_asked(environment: Mapping[str, str]) -> Parallel | None:
    """The engine that Accelerate's file or options ask for; None where they ask for none."""
    for variable, name in _OTHERS.items():
        if _is_true(environment, variable):
            raise LaunchError(
                f"the launcher asks for {name} ({variable}={environment[variable]}), for which dtrain has no "
                "engine; launch/ddp.yaml, fsdp.yaml and zero1.yaml to zero3.yaml would do"
            )
    if _is_true(environment, "ACCELERATE_USE_FSDP"):
        if environment.get("FSDP_VERSION") != "2":
            raise LaunchError("the launcher asks for the first version of FSDP; fsdp_version: 2 would do")
        for variable, instead in _NOT_READ.items():
            if environment.get(variable, "false").lower() not in ("", "false", "no_wrap"):
                raise LaunchError(
                    f"the launcher asks for {variable.lower()}: {environment[variable]}, which dtrain does "
                    f"not read; leave it out there, {instead}"
                )
        reshard = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
        if reshard not in ("true", "false"):
            raise LaunchError(
                f"the launcher asks for fsdp_reshard_after_forward: {reshard}; true or false would do"
            )
        return FSDP(
            reshard=reshard == "true",
            offload=_is_true(environment, "FSDP_OFFLOAD_PARAMS"),
        )
    if _is_true(environment, "ACCELERATE_USE_DEEPSPEED"):
        if file := environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
            raise LaunchError(
                f"the launcher asks for deepspeed_config_file: {file}, which dtrain does not read; "
                "zero_stage in its place would do, and a file of --scale for more"
            )
        stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        if stage not in ("1", "2", "3"):
            raise LaunchError(
                f"the launcher asks for ZeRO stage {stage}; 1, 2 or 3 would do, or launch/ddp.yaml"
            )
        try:
            return ZeRO(
                stage=int(stage),  # type: ignore[arg-type]  # it is one of the three
                offload_optimizer=_is_on_cpu(environment, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"),
                offload_parameters=_is_on_cpu(environment, "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"),
            )
        except Wrong as error:
            raise LaunchError(f"the launcher asks for ZeRO stage {stage}: {error.at} {error}") from None
    return None


_NOT_READ = {  # of FSDP, and what to do instead
    "FSDP_AUTO_WRAP_POLICY": "and say engine.blocks in a file of --scale, or leave dtrain to find them",
    "FSDP_FORWARD_PREFETCH": "and say engine.prefetch in a file of --scale",
    "FSDP_IGNORED_MODULES": "as all of a model is kept in parts",
}
_OTHERS = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "Accelerate's parallelism_config",
}


def _is_true(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").lower() in ("1", "true", "yes")


def _is_on_cpu(environment: Mapping[str, str], variable: str) -> bool:
    device = environment.get(variable, "none").lower()
    if device not in ("none", "cpu"):
        raise LaunchError(f"{variable} is {device}; dtrain offloads to the memory of the CPU: cpu, or none")
    return device == "cpu"
