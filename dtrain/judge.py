"""A checkpoint made ready for evaluation: its models and their averages, without optimizers."""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dtrain.backends.torch_weights import tensors_of
from dtrain.checkpoint.read import open_checkpoint
from dtrain.data.opening import open_examples
from dtrain.engines.base import Engine
from dtrain.engines.together import agreed
from dtrain.errors import CheckpointError
from dtrain.evaluation import Evaluator
from dtrain.recipe.fit import check_fields
from dtrain.recipe.values import Recipe
from dtrain.run import evaluator, open_engine
from dtrain.scale.fit import unfit
from dtrain.scale.tables import Scale
from dtrain.spec.table import empty
from dtrain.spec.trust import Trust
from dtrain.world.world import World


@contextmanager
def open_evaluator(
    recipe: Recipe, path: Path, world: World, scale: Scale, trust: Trust, hang_timeout: float
) -> Iterator[Evaluator]:
    """What evaluates the checkpoint at `path` as its recipe says, on any number of processes.

    Raises DtrainError if the checkpoint is not whole or does not fit the recipe, or its data cannot be read.
    """
    with ExitStack() as stack:
        train = dataclasses.replace(recipe.train, lanes=None)  # there are no gradients
        # All weights are the checkpoint's own, those too that came out of another one, or a file.
        bare = dataclasses.replace(recipe.without_beginnings(), optimizers=empty(), train=train)
        for mistake in unfit(scale, bare):
            raise mistake
        engine, lookout = stack.enter_context(open_engine(bare, world, scale, trust, hang_timeout))
        lookout.position.long("opening the data")
        source = recipe.evaluate.data or recipe.data
        # One process of each machine first: a dataset that downloads itself does so once.
        first = agreed(
            engine,
            lambda: open_examples(source, "evaluate", recipe.seed, trust) if world.local_rank == 0 else None,
        )
        examples = agreed(engine, lambda: first or open_examples(source, "evaluate", recipe.seed, trust))
        check_fields(recipe, examples.fields)
        lookout.position.long("restoring the checkpoint")
        agreed(engine, lambda: _restore(engine, path))
        yield stack.enter_context(evaluator(recipe, examples, engine, trust, lookout.position))


def _restore(engine: Engine, path: Path) -> None:
    checkpoint = open_checkpoint(path)
    no_optimizers: dict[str, object] = {"numbers": {}}
    parts = {part: tensors_of(checkpoint, part) for part in ("models", "averages")}
    try:
        engine.restore(parts, {**checkpoint.state, "optimizers": no_optimizers})
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not hold what this dtrain expects: {error!r}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
