"""State of torch models and optimizers as named tensors and JSON scalars, and back."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dtrain.backends.torch_optimizers import OWN
from dtrain.errors import CheckpointError

SETTING = "group:"  # in front of the name of a setting among a parameter's state
Scalar = bool | int | float | str | None


class Optimizers:
    """The optimizers by model, with their state under canonical names: `generator/3.weight/exp_avg`.

    Learning rates and the like come from the recipe and are never part of the state. A setting that an
    optimizer moved itself is: of every parameter of its group, `generator/3.weight/group:d`, so that groups
    may be others when the state is taken up.
    """

    def __init__(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer],
        parameters: Mapping[str, Mapping[str, Tensor]],
        rates: Mapping[str, float],
    ):
        self.optimizers = optimizers
        self.rates = rates  # of each model as its recipe says, before the schedule's factor
        self.names: dict[str, list[str]] = {}  # of the parameters of each model, in the optimizer's order
        self.first: dict[str, list[dict[str, Any]]] = {}  # the settings of each group, as the recipe has them
        for model, optimizer in optimizers.items():
            names = {id(parameter): name for name, parameter in parameters[model].items()}
            self.names[model] = [names[id(parameter)] for parameter in _parameters(optimizer)]
            self.first[model] = [copy.deepcopy(_settings(group)) for group in optimizer.param_groups]

    def __getitem__(self, model: str) -> torch.optim.Optimizer:
        return self.optimizers[model]

    def set(self, model: str, settings: Mapping[str, Any]) -> None:
        """Go by what a schedule says from now on; it is no part of the state.

        Settings that a group has of its own stay, but for its learning rate: that keeps its ratio.
        """
        for group, first in zip(self.optimizers[model].param_groups, self.first[model], strict=True):
            own = group.get(OWN, ())
            moved = {key: value for key, value in settings.items() if key in group and key not in own}
            if "lr" in own:
                group["lr"] = first["lr"] * (settings["lr"] / self.rates[model])
            group.update(moved)
            first.update({key: value for key, value in moved.items() if key != "lr"})

    def _entries(self) -> Iterator[tuple[str, str, Any]]:
        """The state of every parameter: its name, a key, and the value."""
        for model, optimizer in self.optimizers.items():
            if strange := [key for key in optimizer.state if not isinstance(key, Tensor)]:
                raise CheckpointError(
                    f"optimizers.{model} keeps state of no parameter ({strange[0]}); a checkpoint holds "
                    "that of parameters, so a resume would not be exact"
                )
            names = iter(self.names[model])
            for group, first in zip(optimizer.param_groups, self.first[model], strict=True):
                now = _settings(group)
                moved = {f"{SETTING}{k}": v for k, v in now.items() if k != "lr" and _differ(v, first.get(k))}
                for parameter, name in zip(group["params"], names, strict=False):
                    for key, value in {**optimizer.state.get(parameter, {}), **moved}.items():
                        if not isinstance(value, Tensor | Scalar) and not (key in moved and _is_plain(value)):
                            raise CheckpointError(
                                f"optimizers.{model} keeps a {type(value).__name__} ({key}); a checkpoint "
                                "holds tensors, numbers and strings, so a resume would not be exact"
                            )
                        yield f"{model}/{name}", key, value

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the state under its name."""
        for name, key, value in self._entries():
            if isinstance(value, Tensor):  # no two in one memory, as those of a group are
                yield f"{name}/{key}", value.clone() if key.startswith(SETTING) else value

    def scalars(self) -> dict[str, Any]:
        """What JSON takes of the rest."""
        numbers = {f"{n}/{key}": value for n, key, value in self._entries() if not isinstance(value, Tensor)}
        return {"numbers": numbers}

    def restore(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Take up a state. Raises CheckpointError if it belongs to other parameters."""
        entries: dict[str, dict[str, Any]] = {}
        for path, value in {**scalars["numbers"], **tensors}.items():
            name, _, key = path.rpartition("/")
            # A copy, as what was read is a view of the file, which may change or go.
            entries.setdefault(name, {})[key] = value.clone() if isinstance(value, Tensor) else value
        for model, optimizer in self.optimizers.items():
            known = [entries.pop(f"{model}/{name}", {}) for name in self.names[model]]
            self._restore(model, optimizer, known)
        if entries:
            raise CheckpointError(
                f"optimizer state of parameters that the recipe lacks: {', '.join(sorted(entries)[:8])}"
            )

    def _restore(self, model: str, optimizer: torch.optim.Optimizer, known: list[dict[str, Any]]) -> None:
        """Give one optimizer the state of its parameters, in their order."""
        moved = [{key: entry.pop(key) for key in list(entry) if key.startswith(SETTING)} for entry in known]
        state = {number: entry for number, entry in enumerate(known) if entry}
        for number, parameter in enumerate(_parameters(optimizer)):
            _check_shapes(f"{model}/{self.names[model][number]}", state.get(number, {}), parameter)
        groups = optimizer.state_dict()["param_groups"]
        for group in groups:
            settings = _settings_of(f"optimizers.{model}", [moved[number] for number in group["params"]])
            for key, value in settings.items():
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        _keep_types(optimizer, state)


def _check_shapes(name: str, entry: Mapping[str, Any], parameter: Tensor) -> None:
    for key in ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg"):
        value = entry.get(key)
        if isinstance(value, Tensor) and value.shape != parameter.shape:
            raise CheckpointError(f"{name}/{key} is {tuple(value.shape)}, not {tuple(parameter.shape)}")


def _keep_types(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Undo torch's turning of all state into the parameter's type: NAdam's products are float32 in fp64."""
    parameters = _parameters(optimizer)
    for number, entry in state.items():
        own = optimizer.state.get(parameters[number], {})  # of what was left out there is nothing
        for key, value in entry.items():
            if isinstance(value, Tensor) and key in own and own[key].dtype != value.dtype:
                own[key] = value.to(own[key].device)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a group of parameters."""
    return {key: value for key, value in group.items() if key != "params"}


def _settings_of(place: str, moved: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of a group by what was kept of them with each of its parameters."""
    for each in moved:
        if each.keys() != moved[0].keys() or any(_differ(each[key], moved[0][key]) for key in each):
            said = "keeps settings of each group, and the recipe puts together what was in several"
            raise CheckpointError(f"{place} {said}; the groups of the checkpoint would do")
    return {key.removeprefix(SETTING): value for key, value in moved[0].items()}


def _differ(one: Any, other: Any) -> bool:
    """Whether two settings are not the same; a tensor is only like a tensor."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype != other.dtype or not torch.equal(one, other)
    return isinstance(one, Tensor) or isinstance(other, Tensor) or bool(one != other)


def _is_plain(value: Any) -> bool:
    """Whether JSON holds a value as it is, but for tuples, which come back as lists."""
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, Scalar)
