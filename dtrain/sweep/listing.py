"""The trials that a sweep will have, before any is trained: their recipes, and which are there already."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import optuna

from dtrain.format.runs import standing
from dtrain.recipe.cells import in_words
from dtrain.recipe.write import to_toml
from dtrain.sweep.process import Finder
from dtrain.sweep.samplers import choice, open_sampler, startup
from dtrain.sweep.setup import Setup


def listing(setup: Setup) -> Iterator[str]:
    """The recipes, as far as they do not depend on what comes of others; at the end how many there are."""
    known = list(_known(setup))
    for number, settings in enumerate(known):
        for seed in range(setup.sweep.seeds):
            recipe = setup.recipe(settings, seed)
            text = to_toml(recipe)
            run = Finder(setup.launch.runs / recipe.name, text).run()
            again = f", {standing(run).state} in {run}" if run is not None else ""
            nth = f", seed {recipe.seed}" if setup.sweep.seeds > 1 else ""
            yield f"# trial {number}{nth}{again}\n#     {in_words(settings)}\n{text}"
    left = (setup.sweep.trials or len(known)) - len(known)
    more = f"; {left} more go by what comes of them" if left else ""
    yield f"# {len(known)} trial{'s' * (len(known) != 1)}{more}"


def _known(setup: Setup) -> Iterator[Mapping[str, Any]]:
    """What is tried in the trials that nobody's result has a part in."""
    sweep = setup.sweep
    if sweep.is_grid:
        yield from sweep.grid()
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=open_sampler(sweep))
    count = sweep.trials or 0
    for _ in range(count if sweep.sampler == "random" else min(count, startup(sweep))):
        yield sweep.settings(partial(choice, study.ask(), sweep))
