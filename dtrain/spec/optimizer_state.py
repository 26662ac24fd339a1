"""What an optimizer keeps of each parameter, under the names of torch's classes."""

from collections.abc import Mapping

from dtrain.spec.initial import Shape
from dtrain.spec.optimizers import SGD, Adafactor, Adam, AdamW, Lion, Muon, Optimizer, RMSprop

STEP = "step"  # the count of steps


def kept(optimizer: Optimizer, shape: Shape) -> Mapping[str, Shape] | None:
    """The shapes by name, for a parameter of this shape; None of an imported optimizer.

    Of one that trains different parameters differently, such as Muon, what its own way keeps.
    """
    match optimizer:
        case SGD():
            return {"momentum_buffer": shape} if optimizer.momentum else {}
        case Adam() | AdamW():
            return {STEP: (), "exp_avg": shape, "exp_avg_sq": shape}
        case RMSprop():
            found = {STEP: (), "square_avg": shape}
            found |= {"momentum_buffer": shape} if optimizer.momentum else {}
            return found | ({"grad_avg": shape} if optimizer.centered else {})
        case Adafactor() if len(shape) > 1:
            return {STEP: (), "row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}
        case Adafactor():
            return {STEP: (), "variance": shape}
        case Lion():
            return {"exp_avg": shape}
        case Muon():
            return {"momentum_buffer": shape}
    return None


def changing(optimizer: Optimizer, shape: Shape) -> Mapping[str, Shape]:
    """Of what an optimizer may keep, that which comes with a setting that a schedule or a resume changes."""
    match optimizer:
        case SGD():
            return {"momentum_buffer": shape}
        case RMSprop():
            return {"momentum_buffer": shape, "grad_avg": shape}
    return {}
