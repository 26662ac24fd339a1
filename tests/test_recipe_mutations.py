"""One mistake at a time in the shipped recipes: refused, at its very place, with the right word beside it.

DTRAIN_TEST_LONG=1 tries five times as many.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

import mutations
import mutations_more
import pytest
from mutating import Mutation, Scan

from dtrain.errors import DtrainError, RecipeError
from dtrain.recipe.fit import check_data
from dtrain.recipe.load import from_document, read

COUNT = 5_000 if os.environ.get("DTRAIN_TEST_LONG") == "1" else 1_000
Sorts = Mapping[str, Callable[[Scan, Random], Mutation | None]]


@pytest.fixture(scope="module")
def recipes(shipped: Path) -> list[Path]:
    """The shipped recipes of which `fits` knows what agrees in them, with their data."""
    return [shipped / "classifier.toml", shipped / "gan.toml"]


def mistakes_in(path: Path) -> list[DtrainError]:
    """What `dtrain check` says of a recipe."""
    try:
        document = read(path)
        check_data(from_document(document, imports=False), document, 1)
    except DtrainError as error:
        return list(getattr(error, "errors", [error]))
    return []


def mutated(recipes: list[Path], sorts: Sorts, count: int, seed: int) -> Iterator[tuple[Path, Mutation]]:
    """So many mistakes, of every sort equally many."""
    random, names = Random(seed), list(sorts)
    scans = [(path, Scan(path.read_text(encoding="utf-8"))) for path in recipes]
    while count:
        path, scan = random.choice(scans)
        mutation = sorts[random.choice(names)](scan, random)
        if mutation is not None:
            count -= 1
            yield path, mutation


def tried(recipes: list[Path], sorts: Sorts, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """How many were refused, at their places, with the right word; and what was not as it should be."""
    counts: Counter[str] = Counter()
    astray: list[str] = []
    for path, mutation in mutated(recipes, sorts, count, seed):
        wrong = path.with_name("mutated.toml")
        wrong.write_text(mutation.text, encoding="utf-8")
        mistakes = mistakes_in(wrong)
        counts["all"] += 1
        if mutation.is_valid:
            counts["valid"] += 1
            counts["complaints"] += bool(mistakes)
            astray += [f"complaint of {path.name} {mutation.what}: {mistake}" for mistake in mistakes[:1]]
            continue
        counts["wrong"] += 1
        counts["refused"] += bool(mistakes)
        counts["several"] += len(mistakes) > 1
        is_placed, is_right = told(mistakes, mutation)
        counts["placed"] += is_placed
        counts["words"] += mutation.word is not None
        counts["right"] += is_right
        if not is_placed or (mutation.word is not None and not is_right):
            astray.append(f"{mutation.sort} in {path.name} {mutation.what}: {mistakes[:1] or 'accepted'}")
    return counts, astray


def told(mistakes: list[DtrainError], mutation: Mutation) -> tuple[bool, bool]:
    """Whether the first mistake stands at the place of the mutation, and suggests the word that was there."""
    first = mistakes[0] if mistakes else None
    if not isinstance(first, RecipeError) or first.spot is None:
        return False, False
    is_right = mutation.word is not None and first.suggestion == mutation.word
    return (first.spot.line, first.spot.column) == mutation.where, is_right


def report(counts: Counter[str], astray: list[str]) -> str:
    """The figures, and all that was not as it should be."""
    wrong = counts["wrong"]
    figures = [
        f"{counts['all']} mutations, of which {counts['valid'] / counts['all']:.1%} left out, still good",
        f"refused {counts['refused'] / wrong:.2%}",
        f"at the exact line and column {counts['placed'] / wrong:.2%}",
        f"the right word first {counts['right'] / max(counts['words'], 1):.2%} of {counts['words']}",
        f"more than one mistake for one {counts['several'] / wrong:.2%}",
    ]
    return "\n".join(["; ".join(figures), *astray])


def test_no_shipped_recipe_is_complained_of(recipes: list[Path]) -> None:
    assert recipes
    for path in recipes:
        assert not mistakes_in(path), path


def test_a_mutated_recipe_is_refused_at_the_place_of_the_mutation(recipes: list[Path]) -> None:
    counts, astray = tried(recipes, mutations.SORTS, COUNT, seed=2026)
    said = report(counts, astray)
    print(said)
    assert counts["complaints"] == 0, said
    assert counts["refused"] >= 0.99 * counts["wrong"], said
    assert counts["placed"] >= 0.98 * counts["wrong"], said
    assert counts["right"] >= 0.95 * counts["words"], said
    assert counts["several"] <= 0.05 * counts["wrong"], said
    assert counts["valid"] <= 0.15 * counts["all"], said


def test_mistakes_of_other_sorts_are_found_as_exactly(recipes: list[Path]) -> None:
    counts, astray = tried(recipes, mutations_more.SORTS, COUNT, seed=2027)
    said = report(counts, astray)
    print(said)
    assert counts["complaints"] == 0, said
    assert counts["refused"] >= 0.99 * counts["wrong"], said
    assert counts["placed"] >= 0.97 * counts["wrong"], said
    assert counts["right"] >= 0.95 * counts["words"], said
    assert counts["several"] <= 0.05 * counts["wrong"], said
