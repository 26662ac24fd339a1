"""The state of an optimizer of flat tensors, made of that of the parameters which lie in them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dtrain.engines.zero.pieces import Piece
from dtrain.errors import CheckpointError

# What torch's optimizers keep once for a tensor; all else is shaped like it.
SINGLE = ("step", "mu_product", "eta", "mu")


def joined_state(
    model: str,
    flat: Tensor,
    pieces: Mapping[str, Piece],
    state: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The state of a flat tensor, of whole tensors and single numbers by parameter and key.

    Raises CheckpointError where parameters differ in what is kept once for all of them, or in their keys.
    """
    first = next(iter(pieces))
    made: dict[str, Any] = {}
    for name, piece in pieces.items():
        own, place = state.get(name, {}), f"{model}/{name}"
        if own.keys() != state.get(first, {}).keys():
            raise CheckpointError(
                f"{place} has other optimizer state than {first}, and ZeRO keeps one for both"
            )
        for key, value in own.items():
            if key in SINGLE:
                if made.setdefault(key, value) != value:
                    said = f"another {key} than {first}, and ZeRO keeps one for both"
                    raise CheckpointError(f"{place} has {said}")
                continue
            if tuple(value.shape) != piece.shape:
                raise CheckpointError(f"{place}/{key} is {tuple(value.shape)}, not {piece.shape}")
            whole = made.setdefault(key, torch.zeros_like(flat, dtype=value.dtype, requires_grad=False))
            piece.of(whole).copy_(piece.cut(value))
    return {key: _on_device(key, value, flat, settings) for key, value in made.items()}


def _on_device(key: str, value: Any, flat: Tensor, settings: Mapping[str, Any]) -> Any:
    """A value where torch's optimizers look for it, as their own load_state_dict has it."""
    if not isinstance(value, Tensor) or key not in SINGLE:
        return value
    is_on_host = key == "step" and not (settings.get("fused") or settings.get("capturable"))
    return value.clone() if is_on_host else value.to(flat.device, copy=True)
