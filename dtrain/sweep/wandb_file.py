"""The same sweep for W&B, whose agent then starts `dtrain run` with a trial's values."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]  # Accelerate brings it, without types

from dtrain.errors import RecipeError
from dtrain.recipe.cells import placed_in
from dtrain.recipe.compose import places
from dtrain.spec.axes import Axis
from dtrain.spec.sweep import Hyperband, Median, Sweep
from dtrain.spec.words import dotted, written
from dtrain.sweep.setup import Setup

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")  # as the schema of W&B's sweeps has it
METHODS = {"grid": "grid", "random": "random", "tpe": "bayes"}


def wandb_file(setup: Setup, said: Sequence[str]) -> str:
    """The YAML that `wandb sweep` takes; `said` are the words after `dtrain run`.

    Raises RecipeError for what W&B has no words for.
    """
    sweep = setup.sweep
    if sweep.sampler not in METHODS:
        _refuse("sweep.sampler", f"W&B has no {sweep.sampler}; grid, random or tpe would do")
    if isinstance(sweep.prune, Median):
        _refuse("sweep.prune", 'W&B ends trials by Hyperband alone; kind = "hyperband" would do')
    if sweep.value == "best":
        _refuse("sweep.value", 'W&B goes by the last value; value = "last" would do')
    if sweep.seeds > 1:
        _refuse("sweep.seeds", "W&B has no means over seeds; 1 would do, or an axis seed in a grid")
    if "wandb" not in setup.base.track.kinds:
        _refuse("track.kinds", 'its agents would tell W&B nothing; "wandb" belongs here, too')
    parameters = {_key(setup, key): _parameter(key, axis, sweep) for key, axis in sweep.all_axes.items()}
    config = setup.launch.config
    launched = ["accelerate", "launch", "--config_file", str(config), "-m", "dtrain"]
    started = ["dtrain"] if config is None else launched
    table: dict[str, Any] = {
        "name": setup.name,
        "method": METHODS[sweep.sampler],
        "metric": {"name": setup.metric, "goal": {"max": "maximize", "min": "minimize"}[setup.mode]},
        "parameters": parameters,
        "command": ["${env}", *started, "run", *said, "${args_no_hyphens}"],
        "project": setup.base.track.project,
    }
    if sweep.trials is not None:
        table["run_cap"] = sweep.trials
    if isinstance(sweep.prune, Hyperband):
        calls = max(
            sweep.prune.min_steps // max(setup.base.every.evaluate, 1), 1
        )  # W&B counts what it is told
        table["early_terminate"] = {"type": "hyperband", "min_iter": calls, "eta": sweep.prune.factor}
    return str(yaml.safe_dump(table, sort_keys=False))


def _key(setup: Setup, key: str) -> str:
    """The key as an argument of `dtrain run` has it, which knows no `*` for all that there are."""
    first, *more = places(setup.written.table, placed_in(key))
    if more:
        _refuse(
            dotted(("sweep", "axes", key)), f"W&B has no axes of {len(more) + 1} keys; one of each would do"
        )
    key_there = ".".join(map(str, first))  # dtrain takes layers.0, and W&B no brackets
    if not NAME.fullmatch(key_there) or any("." in str(part) for part in first):
        said = "W&B's names are of letters, digits, points and hyphens; one of hyperparameters would do"
        _refuse(dotted(("sweep", "axes", key)), said)
    return key_there


def _parameter(key: str, axis: Axis, sweep: Sweep) -> Mapping[str, Any]:
    place = ("sweep", "axes", key)
    if axis.tied is not None or axis.when:
        _refuse(dotted(place), "W&B has no axes that depend on others; one of its own values would do")
    cells = axis.cells() if sweep.is_grid else axis.values
    if cells is not None:
        return {"values": [_plain(value) for value in cells]}
    if axis.uniform is not None:
        return {"distribution": "uniform", "min": axis.uniform[0], "max": axis.uniform[1]}
    if axis.log_uniform is not None:
        return {"distribution": "log_uniform_values", "min": axis.log_uniform[0], "max": axis.log_uniform[1]}
    if axis.log_range is not None:
        return {
            "distribution": "q_log_uniform_values",
            "min": axis.log_range[0],
            "max": axis.log_range[1],
            "q": 1,
        }
    assert axis.range is not None
    first, last, *step = axis.range
    if step and step != [1]:
        try:
            return {"values": list(axis.counted())}
        except ValueError as error:
            _refuse(dotted((*place, "range")), str(error).replace("in a grid", "for W&B"))
    return {"distribution": "int_uniform", "min": first, "max": last}


def _plain(value: Any) -> Any:
    """A value that W&B hands on as it is; of others the text that an argument of dtrain takes."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else written(value)


def _refuse(key: str, message: str) -> NoReturn:
    raise RecipeError(key, message)
