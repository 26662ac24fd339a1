"""State of torch models and optimizers as named tensors and JSON scalars, and back."""

import copy
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dtrain.backends.torch_optimizers import OWN
from dtrain.errors import CheckpointError

SETTING = "group:"  # in front of the name of a setting among a parameter's state
Scalar = bool | int | float | str | None
# What a setting of torch's own needs of each parameter's state, and torch makes at the first step alone.
BUFFERS = (
    (torch.optim.RMSprop, "momentum", "momentum_buffer"),
    (torch.optim.RMSprop, "centered", "grad_avg"),
    (torch.optim.Adam, "amsgrad", "max_exp_avg_sq"),
)


class NamedOptimizer:
    """The optimizer of one model, with its state by the names of parameters.

    Learning rates and the like come from the recipe and are never part of the state. A setting that an
    optimizer moved itself is: of every parameter of its group, as the key `group:d`, so that groups may be
    others when the state is taken up. `parameters` may be parts of parameters, in the optimizer's order.
    """

    def __init__(
        self, model: str, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], lr: float
    ):
        self.model = model
        self.optimizer = optimizer
        self.lr = lr  # as the recipe says, before the schedule's factor
        names = {id(parameter): name for name, parameter in parameters.items()}
        self.parameters = _parameters(optimizer)
        self.names = [names[id(parameter)] for parameter in self.parameters]
        # The settings of each group, as the recipe has them.
        self.first = [copy.deepcopy(_settings(group)) for group in optimizer.param_groups]

    def set(self, settings: Mapping[str, Any]) -> None:
        """Go by what a schedule says from now on; it is no part of the state.

        Settings that a group has of its own stay, but for its learning rate: that keeps its ratio.
        """
        for group, first in zip(self.optimizer.param_groups, self.first, strict=True):
            own = group.get(OWN, ())
            moved = {key: value for key, value in settings.items() if key in group and key not in own}
            if "lr" in own:
                group["lr"] = first["lr"] * (settings["lr"] / self.lr)
            group.update(moved)
            first.update({key: value for key, value in moved.items() if key != "lr"})

    def step(self) -> None:
        """One step, of gradients that lie with the parameters."""
        self.optimizer.step()

    def state(self) -> Iterator[tuple[str, str, Any]]:
        """The state of every parameter: its name, a key, and the value.

        Raises CheckpointError of what a checkpoint cannot hold.
        """
        optimizer = self.optimizer
        if strange := [key for key in optimizer.state if not isinstance(key, Tensor)]:
            raise CheckpointError(
                f"optimizers.{self.model} keeps state of no parameter ({strange[0]}); a checkpoint holds "
                "that of parameters, so a resume would not be exact"
            )
        names = iter(self.names)
        for group, first in zip(optimizer.param_groups, self.first, strict=True):
            now = _settings(group)
            moved = {f"{SETTING}{k}": v for k, v in now.items() if k != "lr" and _differ(v, first.get(k))}
            for parameter, name in zip(group["params"], names, strict=False):
                for key, value in {**optimizer.state.get(parameter, {}), **moved}.items():
                    if not isinstance(value, Tensor | Scalar) and not (key in moved and _is_plain(value)):
                        raise CheckpointError(
                            f"optimizers.{self.model} keeps a {type(value).__name__} ({key}); a checkpoint "
                            "holds tensors, numbers and strings, so a resume would not be exact"
                        )
                    # No two in one memory, as those of a group are.
                    is_shared = isinstance(value, Tensor) and key.startswith(SETTING)
                    yield name, key, value.clone() if is_shared else value

    def restore(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Take up a state by parameter and key. Raises CheckpointError if it belongs to other parameters."""
        # A copy, as what was read is a view of the file, which may change or go.
        known = [_copied(state.get(name, {})) for name in self.names]
        if more := state.keys() - set(self.names):
            said = ", ".join(f"{self.model}/{name}" for name in sorted(more)[:8])
            raise CheckpointError(f"optimizer state of parameters that the recipe lacks: {said}")
        moved = [{key: entry.pop(key) for key in list(entry) if key.startswith(SETTING)} for entry in known]
        own = {number: entry for number, entry in enumerate(known) if entry}
        for number, parameter in enumerate(self.parameters):
            _check_shapes(f"{self.model}/{self.names[number]}", own.get(number, {}), parameter)
        groups = self.optimizer.state_dict()["param_groups"]
        for group in groups:
            place = f"optimizers.{self.model}"
            settings = _settings_of(place, [moved[number] for number in group["params"]])
            if strange := settings.keys() - _settings(group).keys():
                raise CheckpointError(f"{place} has no setting {sorted(strange)[0]!r} of its own")
            for key, value in settings.items():
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
            for number in group["params"]:
                begin_buffers(self.optimizer, group, own.get(number, {}), self.parameters[number])
        self.optimizer.load_state_dict({"state": own, "param_groups": groups})
        _keep_types(self.optimizer, own)


def begin_buffers(
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    state: MutableMapping[str, Any],
    like: Tensor,
) -> None:
    """Begin at zero, as torch does, what a setting needs that was off when the state was kept."""
    for kind, setting, key in BUFFERS:
        if isinstance(optimizer, kind) and settings.get(setting) and state and key not in state:
            state[key] = torch.zeros_like(like, requires_grad=False)


def _copied(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in entry.items()}


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
