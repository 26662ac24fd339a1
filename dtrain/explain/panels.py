"""The panels of a recipe's picture: one for each phase, and one for the evaluation."""

from collections.abc import Mapping, Sequence

from dtrain.explain.boxes import graph
from dtrain.explain.flow import Flow
from dtrain.explain.picture import Panel
from dtrain.explain.text import evaluation_title, title
from dtrain.recipe.values import Recipe
from dtrain.systems.base import System


def panels(
    recipe: Recipe, flows: Sequence[Flow], evaluation: Flow | None, optimizers: Mapping[str, str]
) -> list[Panel]:
    """What to draw, with the words of the text for headings."""
    assert isinstance(recipe.system, System)
    drawn = []
    for number, (phase, flow) in enumerate(zip(recipe.system.phases(), flows, strict=True), 1):
        heading, often, *trained = (line.strip() for line in title(number, phase, recipe, optimizers))
        rates = [line.removeprefix("trained: ") for line in trained]
        drawn.append(Panel(heading, "; ".join([often, *rates]), graph(flow)))
    if evaluation is not None:
        drawn.append(Panel("evaluation", evaluation_title(recipe, evaluation), graph(evaluation)))
    return drawn
