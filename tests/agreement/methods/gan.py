"""The GANs of `agreement.cases`, written as `composed`."""

from collections.abc import Mapping
from typing import Any

from agreement.cases import BOTH_ADAM, DISCRIMINATOR, GENERATOR, Case, Table, recipe
from agreement.references import Numbers, train_gan

REAL, FAKE = "discriminator(image)", "discriminator(fake)"
CRITIC = {
    "non_saturating": "softplus(-on_real) + softplus(on_fake)",
    "hinge": "hinge(on_real) + hinge(-on_fake)",
    "least_squares": "((on_real - 1)**2 + on_fake**2) / 2",
    "wasserstein": "on_fake - on_real",
}
GENERATOR_LOSS = {
    "non_saturating": "softplus(-discriminator(generator(normal(5))))",
    "hinge": "-discriminator(generator(normal(5)))",
    "least_squares": {"of": "mse(discriminator(generator(normal(5))), 1)", "weight": 0.5},
    "wasserstein": "-discriminator(generator(normal(5)))",
}
PENALTY = "gradient_penalty(discriminator(between), between)"


def composed(loss: str, r1: float = 0.0) -> Table:
    """The recipe; what it is called and weighs where it is a named system stands in its hyperparameters."""
    values = {"fake": "detach(generator(normal(5)))", "on_real": REAL, "on_fake": FAKE}
    losses: Table = {"critic": CRITIC[loss]}
    if loss == "wasserstein":
        values |= {"share": "uniform(1, 1, 1)", "between": "share * image + (1 - share) * fake"}
        losses["penalty"] = {"of": PENALTY, "weight": 10.0}
    if r1:
        losses["r1"] = {"of": "gradient_penalty(discriminator, image, target=0.0)", "weight": r1 / 2}
    logs = {"real": "on_real", "fake": "on_fake"}
    first = {"updates": ["discriminator"], "values": values, "losses": losses, "logs": logs, "repeat": 2}
    system = {
        "kind": "composed",
        "phases": [first, {"updates": ["generator"]}],
        "values": {"made": "generator(normal(5))", "judged": REAL, "fooled": "discriminator(made)"},
        "evaluate": {
            "loss": CRITIC[loss].replace("on_real", "judged").replace("on_fake", "fooled"),
            "real": "judged",
            "fake": "fooled",
        },
    }
    models = {
        "generator": {**GENERATOR, "losses": {"adversarial": GENERATOR_LOSS[loss]}},
        "discriminator": DISCRIMINATOR,
    }
    found = recipe(system, models, BOTH_ADAM, generator=0.9)
    return found | {"hyperparameters": {"loss": loss, "r1": r1}}


CASES: Mapping[str, Case] = {
    f"composed gan, {loss}": Case(composed(loss, r1), processes=(1, 2))
    for loss, r1 in (("non_saturating", 1.0), ("hinge", 0.0), ("least_squares", 0.0), ("wasserstein", 0.0))
}


def train(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    """The named system's loop; terms are logged before they are weighed."""
    named = recipe["hyperparameters"]
    found = train_gan({**recipe, "system": {**named, "critic_steps": 2}}, data, first)
    place = "curve:discriminator/"
    rest = 0.0
    if named["loss"] == "wasserstein":
        rest = found[f"{place}penalty"].copy()
        found[f"{place}penalty"] /= 10.0
    if named["r1"]:
        rest = found[f"{place}r1"].copy()
        found[f"{place}r1"] /= named["r1"] / 2
    found[f"{place}critic"] = found[f"{place}loss"] - rest
    half = 0.5 if named["loss"] == "least_squares" else 1.0
    found["curve:generator/adversarial"] = found["curve:generator/loss"] / half
    return found
