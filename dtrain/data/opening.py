"""From the `[data]` table to examples, whether its kind is built in or imported."""

from collections.abc import Mapping
from typing import Any, TypeVar

from dtrain.data.dataset import Reading
from dtrain.data.source import Description, Examples, Part, Source
from dtrain.errors import DataError, RecipeError
from dtrain.spec.arguments import call_found
from dtrain.spec.decode import decode
from dtrain.spec.imports import find
from dtrain.spec.table import Imported
from dtrain.spec.trust import EVERYTHING, ImportPathError, Trust
from dtrain.spec.words import Place

T = TypeVar("T")


def open_examples(data: Source | Imported, part: Part, seed: int, trust: Trust = EVERYTHING) -> Examples:
    """Open one part of the data. Raises DataError or RecipeError if it cannot be opened."""
    return open_imported(data, part, seed, trust) if isinstance(data, Imported) else data.open(part, seed)


def describe(data: Source | Imported, part: Part, seed: int) -> Description:
    """Say what `open_examples` would give; what is imported has to be opened for it, the rest is not."""
    if isinstance(data, Imported):
        examples = open_imported(data, part, seed)
        return Description(len(examples), examples.fields)
    return data.describe(part, seed)


def open_imported(imported: Imported, part: Part, seed: int, trust: Trust = EVERYTHING) -> Examples:
    """Import a user's source, or a map-style dataset and the way to read it, and open one part.

    The arguments' table `examples` is ours (`Reading`); all others go to what is imported.
    """
    try:
        found = find(imported.path, "source", trust)
    except ImportPathError as error:
        raise DataError(str(error)) from error
    if isinstance(found, type) and issubclass(found, Source):
        return _decoded(found, imported.arguments, ("data",)).open(part, seed)
    arguments = dict(imported.arguments)
    reading = _decoded(Reading, arguments.pop("examples", {}), ("data", "examples"))
    of_part = reading.train if part == "train" else reading.evaluate
    if of_part is None:
        raise RecipeError(
            "data.examples.evaluate",
            f"says nothing, so {imported.path} has no examples for evaluation; give the arguments of that "
            "part, such as { train = false }, or {} to evaluate on the same examples",
        )
    dataset = _call(found, imported.path, {**arguments, **of_part}, trust)
    for needed in ("__len__", "__getitem__"):
        if not callable(getattr(type(dataset), needed, None)):
            made = type(dataset).__name__
            raise DataError(f"{imported.path} is not a map-style dataset: {made} lacks {needed}")
    from dtrain.data.dataset_examples import DatasetExamples

    return DatasetExamples(dataset, reading, name=imported.path, part=part, seed=seed)


def _decoded(cls: type[T], values: Any, place: Place) -> T:
    value, errors = decode(cls, values, place)
    if errors:
        raise errors[0]
    made: T = value
    return made


def _call(found: Any, path: str, arguments: Mapping[str, Any], trust: Trust) -> Any:
    try:
        return call_found(found, arguments, "source", trust)
    except Exception as error:  # the dataset is the user's code
        problem = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} failed with arguments ({', '.join(arguments)}): {problem}") from error
