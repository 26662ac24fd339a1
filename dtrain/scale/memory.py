"""What the models of a recipe take of each device, as an engine keeps them."""

from dtrain.recipe.plan import Memory, parameter_counts, plan_memory
from dtrain.recipe.values import Recipe
from dtrain.scale.tables import FSDP, Parallel, ZeRO


def plan_memory_under(engine: Parallel, recipe: Recipe, processes: int) -> Memory | None:
    """An estimate for each process, as in docs/engines.md; None where a model's size is unknown.

    What is whole for a moment alone, a block of layers or a bucket, is left out, as what waits in the memory
    of the CPU is.
    """
    whole, counts = plan_memory(recipe, processes), parameter_counts(recipe)
    if whole is None or counts is None:
        return None
    if isinstance(engine, FSDP):
        return _of_fsdp(engine, whole, processes)
    if isinstance(engine, ZeRO):
        trained = sum(counts[name] for name in recipe.models if name in recipe.optimizers)
        return _of_zero(engine, whole, trained / max(sum(counts.values()), 1), processes)
    return whole


def _of_fsdp(engine: FSDP, whole: Memory, processes: int) -> Memory:
    share = 0.0 if engine.offload else 1 / processes
    return Memory(
        weights=round(whole.weights * share),
        gradients=round(whole.gradients * (1 if engine.accumulate == "whole" else share)),
        optimizers=round(whole.optimizers * share),
        averages=round(whole.averages * share),
        activations=whole.activations,
    )


def _of_zero(engine: ZeRO, whole: Memory, part_trained: float, processes: int) -> Memory:
    """The same where a share of the weights is trained: others are whole on every rank.

    The optimizer has weights of its own where those that a model computes with are whole, or in bf16; where
    it waits in the memory of the CPU, gradients and averages do so, too.
    """
    share = 1 / processes
    trained = whole.weights * part_trained
    own = trained if engine.stage < 3 or engine.half_parameters else 0
    kept = 0.0 if engine.offload_parameters else share if engine.stage == 3 else 1.0
    optimized = 0.0 if engine.offload_optimizer else share
    return Memory(
        weights=round(whole.weights - trained + kept * trained * (0.5 if engine.half_parameters else 1)),
        gradients=round(whole.gradients * (optimized if engine.stage > 1 else 1)),
        optimizers=round((whole.optimizers + own) * optimized),
        averages=round(whole.averages * optimized),
        activations=whole.activations,
    )
