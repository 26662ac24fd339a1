"""State of torch models and optimizers as named tensors and JSON scalars, and back."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dtrain.errors import CheckpointError


class Optimizers:
    """The optimizers by model, with their state under canonical names: `generator/3.weight/exp_avg`.

    Learning rates and the like come from the recipe and are never part of the state.
    """

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer], names: Mapping[str, Sequence[str]]):
        self.optimizers = optimizers
        self.names = names  # of the parameters of each model, in the optimizer's order
        self.first = {name: _settings(optimizer) for name, optimizer in optimizers.items()}

    def __getitem__(self, model: str) -> torch.optim.Optimizer:
        return self.optimizers[model]

    def set(self, model: str, settings: Mapping[str, Any]) -> None:
        """Go by what a schedule says from now on; it is no part of the state."""
        for group in self.optimizers[model].param_groups:
            group.update(settings)
        self.first[model].update(settings)

    def _entries(self) -> Iterator[tuple[str, str, Any]]:
        for model, optimizer in self.optimizers.items():
            if strange := [key for key in optimizer.state if not isinstance(key, Tensor)]:
                raise CheckpointError(
                    f"optimizers.{model} keeps state of no parameter ({strange[0]}); a checkpoint holds "
                    "that of parameters, so a resume would not be exact"
                )
            for name, parameter in zip(self.names[model], _parameters(optimizer), strict=True):
                for key, value in optimizer.state.get(parameter, {}).items():
                    if not isinstance(value, Tensor | bool | int | float | str | None):
                        raise CheckpointError(
                            f"optimizers.{model} keeps a {type(value).__name__} ({key}); a checkpoint holds "
                            "tensors, numbers and strings, so a resume would not be exact"
                        )
                    yield f"{model}/{name}", key, value

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the state under its name."""
        for name, key, value in self._entries():
            if isinstance(value, Tensor):
                yield f"{name}/{key}", value

    def scalars(self) -> dict[str, Any]:
        """What JSON takes of the rest: numbers by parameter, and settings that the optimizer moved itself."""
        numbers = {
            f"{n}/{k}": v for n, k, v in self._entries() if isinstance(v, bool | int | float | str | None)
        }
        moved = {
            model: {k: v for k, v in _settings(optimizer).items() if v != self.first[model].get(k)}
            for model, optimizer in self.optimizers.items()
        }
        return {
            "numbers": numbers,
            "settings": {model: settings for model, settings in moved.items() if settings},
        }

    def restore(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Take up a state. Raises CheckpointError if it belongs to other parameters."""
        entries: dict[str, dict[str, Any]] = {}
        for path, value in {**scalars["numbers"], **tensors}.items():
            name, _, key = path.rpartition("/")
            # A copy, as what was read is a view of the file, which may change or go.
            entries.setdefault(name, {})[key] = value.clone() if isinstance(value, Tensor) else value
        for model, optimizer in self.optimizers.items():
            known = [entries.pop(f"{model}/{name}", {}) for name in self.names[model]]
            state = {number: entry for number, entry in enumerate(known) if entry}
            for number, parameter in enumerate(_parameters(optimizer)):
                _check_shapes(f"{model}/{self.names[model][number]}", state.get(number, {}), parameter)
            groups = optimizer.state_dict()["param_groups"]
            groups[0].update(scalars["settings"].get(model, {}))
            optimizer.load_state_dict({"state": state, "param_groups": groups})
            _keep_types(optimizer, state)
        if entries:
            raise CheckpointError(
                f"optimizer state of parameters that the recipe lacks: {', '.join(sorted(entries)[:8])}"
            )


def _check_shapes(name: str, entry: Mapping[str, Any], parameter: Tensor) -> None:
    for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
        value = entry.get(key)
        if isinstance(value, Tensor) and value.shape != parameter.shape:
            raise CheckpointError(f"{name}/{key} is {tuple(value.shape)}, not {tuple(parameter.shape)}")


def _keep_types(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """Undo torch's turning of all state into the parameter's type: NAdam's products are float32 in fp64."""
    parameters = _parameters(optimizer)
    for number, entry in state.items():
        own = optimizer.state[parameters[number]]
        for key, value in entry.items():
            if isinstance(value, Tensor) and own[key].dtype != value.dtype:
                own[key] = value.to(own[key].device)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The settings of the first group that JSON can hold; dtrain makes one group a model."""
    group = optimizer.param_groups[0]
    return {
        key: value
        for key, value in group.items()
        if key not in ("params", "lr") and isinstance(value, bool | int | float | str | None)
    }
