"""CycleGAN: two translators and two discriminators, in two phases, with and without the identity loss."""

from collections.abc import Mapping
from typing import Any

from agreement.cases import ADAM, ADAMW, DISCRIMINATOR, Case, Table, activation, layer, recipe
from agreement.references import Numbers, Reference, Terms, discriminator, evaluated
from torch import Tensor, nn

TRANSLATOR: Table = {
    "input": [1, 8, 8],
    "layers": [
        layer("conv", out=4, kernel=3, padding=1, bias=False),
        layer("batch_norm"),
        activation("silu"),
        layer("conv", out=1, kernel=3, padding=1),
        activation("tanh"),
    ],
}
NAMES = ("a_to_b", "b_to_a", "discriminator_a", "discriminator_b")
MODELS = dict(zip(NAMES, [TRANSLATOR] * 2 + [DISCRIMINATOR] * 2, strict=True))


RATE = 2e-4  # as in the paper


def judged(domain: str, real: str) -> str:
    """The loss of one discriminator."""
    verdict = f"discriminator_{domain}"
    return f"mean(({verdict}({real}) - 1) ** 2) / 2 + mean({verdict}(detach(made_{domain})) ** 2) / 2"


FOOLED = "mean((discriminator_a(made_a) - 1) ** 2) + mean((discriminator_b(made_b) - 1) ** 2)"
COMPOSED: Table = {
    "kind": "composed",
    "values": {"made_a": "b_to_a(other)", "made_b": "a_to_b(image)"},
    "phases": [
        {
            "updates": ["discriminator_a", "discriminator_b"],
            # Not as values, which are all computed, and draw, before the losses: the loop goes by model.
            "losses": {"a": judged("a", "image"), "b": judged("b", "other")},
        },
        {
            "updates": ["a_to_b", "b_to_a"],
            "losses": {
                "fooled": FOOLED,
                "cycle": {"of": "l1(b_to_a(made_b), image) + l1(a_to_b(made_a), other)", "weight": 3.0},
                "identity": {"of": "l1(b_to_a(image), image) + l1(a_to_b(other), other)", "weight": 2.0},
            },
        },
    ],
    "evaluate": {
        "fooled": FOOLED,
        "cycle": "l1(b_to_a(made_b), image) + l1(a_to_b(made_a), other)",
        "identity": "l1(b_to_a(image), image) + l1(a_to_b(other), other)",
    },
}


def case(system: Table, identity: float) -> Case:
    # At ten times this rate two loops by hand, whose first weights differ by a rounding of fp32, end a tenth
    # apart after 200 steps: slopes of |x| jump at 0.
    slow = [{**optimizer, "lr": RATE} for optimizer in (ADAM, ADAMW)]
    optimizers = dict(zip(NAMES, slow * 2, strict=True))
    found = recipe(system, MODELS, optimizers, a_to_b=0.9)
    return Case({**found, "hyperparameters": {"cycle": 3.0, "identity": identity}}, processes=(1, 2))


NAMED: Table = {"kind": "cycle", "cycle": 3.0, "a": "image", "b": "other"}
CASES: Mapping[str, Case] = {
    "cycle": case({**NAMED, "identity": 2.0}, 2.0),
    "cycle, without identity": case({**NAMED, "identity": 0.0}, 0.0),
    "cycle, composed": case(COMPOSED, 2.0),
}


def translator() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Conv2d(4, 1, 3, padding=1),
        nn.Tanh(),
    )


def train(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    made_of = (translator(), translator(), discriminator(), discriminator())
    plain = Reference(recipe, data, first, dict(zip(NAMES, made_of, strict=True)))
    weight, identity = recipe["hyperparameters"]["cycle"], recipe["hyperparameters"]["identity"]
    is_named = recipe["system"]["kind"] == "cycle"

    def judge(indices: Tensor) -> tuple[Tensor, Terms]:
        a, b = plain.data["image"][indices], plain.data["other"][indices]
        to_b, to_a, on_a, on_b = plain.models.values()
        made_a, made_b = to_a(b).detach(), to_b(a).detach()
        terms = {
            name: 0.5 * (verdict(real).sub(1).square().mean() + verdict(made).square().mean())
            for name, verdict, real, made in (("a", on_a, a, made_a), ("b", on_b, b, made_b))
        }
        return terms["a"] + terms["b"], terms

    def measured(indices: Tensor, to_b: nn.Module, to_a: nn.Module) -> Terms:
        a, b = plain.data["image"][indices], plain.data["other"][indices]
        made_a, made_b = to_a(b), to_b(a)
        _, _, on_a, on_b = plain.models.values()
        terms = {
            "fooled": on_a(made_a).sub(1).square().mean() + on_b(made_b).sub(1).square().mean(),
            "cycle": (to_a(made_b) - a).abs().mean() + (to_b(made_a) - b).abs().mean(),
        }
        if identity:
            terms["identity"] = (to_a(a) - a).abs().mean() + (to_b(b) - b).abs().mean()
        return terms

    def total(terms: Terms) -> Tensor:
        return terms["fooled"] + weight * terms["cycle"] + identity * terms.get("identity", 0.0)

    def translate(indices: Tensor) -> tuple[Tensor, Terms]:
        terms = measured(indices, plain.models["a_to_b"], plain.models["b_to_a"])
        return total(terms), terms

    def judged(indices: Tensor) -> Terms:
        terms = measured(indices, plain.averages["a_to_b"], plain.models["b_to_a"])
        return {"loss": total(terms), **terms} if is_named else terms

    for _ in plain.steps():
        plain.update("discriminator_a", "discriminator_b", loss=judge)
        plain.update("a_to_b", "b_to_a", loss=translate)
    return plain.result() | evaluated(plain, judged)
