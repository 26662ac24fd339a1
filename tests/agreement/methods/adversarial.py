"""Adversarial training: FGSM, PGD within a cube and within a ball, TRADES."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from agreement.cases import ADAMW, CLASSIFIER, NESTEROV, Case, Table, recipe
from agreement.references import Numbers, Reference, Terms, classifier, evaluated
from torch import Tensor

SHARED: Table = {"kind": "adversarial", "eps": 0.3, "low": -1.0, "high": 1.0, "evaluate_steps": 4}


def case(optimizer: Table, **system: Any) -> Case:
    models, optimizers = {"classifier": CLASSIFIER}, {"classifier": optimizer}
    return Case(recipe({**SHARED, **system}, models, optimizers, classifier=0.9), processes=(1, 2))


def composed(optimizer: Table, **system: Any) -> Case:
    """The same method as `composed`; the hyperparameters tell the plain loop which it is."""
    options = {"norm": "linf", "steps": 7, **SHARED, **system}
    reach = f"eps={options['eps']}, low=-1, high=1"
    attack = f"image, steps={options['steps']}, norm='{options['norm']}', {reach}"
    wrong = "cross_entropy(classifier(image), label)"
    moved = {
        "fgsm": f"fgsm({wrong}, image, {reach})",
        "pgd": f"pgd({wrong}, {attack})",
        "trades": f"pgd(kl_categorical(judged, classifier(image)), {attack})",
    }[system["method"]]
    on_moved = {"natural": "cross_entropy(logits, label)"}
    on_both = {
        "natural": "cross_entropy(judged, label)",
        "apart": {"of": "kl_categorical(judged, classifier(moved))", "weight": options.get("beta", 6.0)},
    }
    is_trades = system["method"] == "trades"
    hard = f"pgd({wrong}, image, steps=4, norm='{options['norm']}', {reach})"
    table: Table = {
        "kind": "composed",
        "values": {
            **({"judged": "classifier(image)"} if is_trades else {}),
            "clean": "classifier(image)",
            "robust": f"classifier({hard})",
        },
        "phases": [
            {
                "updates": ["classifier"],
                "prepare": {"moved": moved},
                "values": {} if is_trades else {"logits": "classifier(moved)"},
                "losses": on_both if is_trades else on_moved,
                "logs": {"accuracy": f"argmax({'judged' if is_trades else 'logits'}) == label"},
            }
        ],
        "evaluate": {
            "loss": "cross_entropy(clean, label)",
            "accuracy": "argmax(clean) == label",
            "robust_loss": "cross_entropy(robust, label)",
            "robust_accuracy": "argmax(robust) == label",
        },
    }
    found = recipe(table, {"classifier": CLASSIFIER}, {"classifier": optimizer}, classifier=0.9)
    return Case({**found, "hyperparameters": {**options, "terms": ["natural"]}}, processes=(1, 2))


CASES: Mapping[str, Case] = {
    "adversarial, none": case(ADAMW, method="none"),
    "adversarial, fgsm": case(ADAMW, method="fgsm"),
    "adversarial, pgd": case(NESTEROV, method="pgd", steps=3),
    "adversarial, pgd l2": case(ADAMW, method="pgd", norm="l2", eps=1.5, steps=2, step_size=1.0),
    "adversarial, trades": case(ADAMW, method="trades", steps=2, beta=4.0),
    "adversarial, trades l2": case(NESTEROV, method="trades", norm="l2", eps=1.5, steps=2),
    "adversarial, composed fgsm": composed(ADAMW, method="fgsm"),
    "adversarial, composed pgd": composed(NESTEROV, method="pgd", steps=3),
    "adversarial, composed pgd l2": composed(ADAMW, method="pgd", norm="l2", eps=1.5, steps=2),
    "adversarial, composed trades": composed(ADAMW, method="trades", steps=2, beta=4.0),
}


def train(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    model = classifier()
    plain = Reference(recipe, data, first, {"classifier": model})
    system = {"norm": "linf", "steps": 7, "step_size": None, "beta": 6.0, **plain.system}
    system |= recipe.get("hyperparameters", {})

    def loss(indices: Tensor) -> tuple[Tensor, Terms]:
        image, label = plain.data["image"][indices], plain.data["label"][indices]
        statistics = [buffer.clone() for buffer in model.buffers()]
        hard = attacked(image, label)
        for buffer, value in zip(model.buffers(), statistics, strict=True):
            buffer.copy_(value)
        if system["method"] != "trades":
            logits = model(hard)
            natural, accuracy = surprise(logits, label), share_right(logits, label)
            return natural, {"accuracy": accuracy} | dict.fromkeys(system.get("terms", ()), natural)
        logits = model(image)
        natural, apart = surprise(logits, label), divergence(logits, model(hard))
        terms = {"accuracy": share_right(logits, label), "natural": natural, "apart": apart}
        return natural + system["beta"] * apart, terms

    def attacked(image: Tensor, label: Tensor) -> Tensor:
        match system["method"]:
            case "none":
                return image
            case "fgsm":
                return (
                    image + system["eps"] * slope(lambda x: surprise(model(x), label), image).sign()
                ).clip(-1, 1)
            case "pgd":
                return pgd(lambda x: surprise(model(x), label), image, system["steps"], system["step_size"])
            case _:
                with torch.no_grad():
                    logits = model(image)
                return pgd(
                    lambda x: divergence(logits, model(x)), image, system["steps"], system["step_size"]
                )

    def pgd(function: Callable[[Tensor], Tensor], image: Tensor, steps: int, size: float | None) -> Tensor:
        """Every iterate is projected onto what may be reached: the ball, then the range of the data."""
        eps, is_cube = system["eps"], system["norm"] == "linf"
        size = 2.5 * eps / steps if size is None else size
        x = (image + (in_cube(image, eps) if is_cube else in_ball(image, eps))).clip(-1, 1)
        for _ in range(steps):
            up = slope(function, x)
            if is_cube:
                x = torch.minimum(torch.maximum(x + size * up.sign(), image - eps), image + eps)
            else:
                away = (x + size * F.normalize(up.flatten(1)).view_as(x) - image).flatten(1)
                is_outside = away.norm(dim=1, keepdim=True) > eps
                x = image + torch.where(is_outside, eps * F.normalize(away), away).view_as(x)
            x = x.clip(-1, 1)
        return x

    for _ in plain.steps():
        plain.update("classifier", loss=loss)
    mean = plain.averages["classifier"]

    def judged(indices: Tensor) -> Terms:
        image, label = plain.data["image"][indices], plain.data["label"][indices]
        with torch.enable_grad():
            hard = pgd(lambda x: surprise(mean(x), label), image, system["evaluate_steps"], None)
        clean, robust = mean(image), mean(hard)
        return {
            "loss": surprise(clean, label),
            "accuracy": share_right(clean, label),
            "robust_loss": surprise(robust, label),
            "robust_accuracy": share_right(robust, label),
        }

    return plain.result() | evaluated(plain, judged)


def slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


def in_cube(image: Tensor, eps: float) -> Tensor:
    return torch.empty(image.shape, dtype=image.dtype).uniform_(-eps, eps)


def in_ball(image: Tensor, eps: float) -> Tensor:
    """Evenly over the ball: a direction, and a radius whose volume is drawn evenly."""
    direction = F.normalize(torch.randn(image.shape, dtype=image.dtype).flatten(1))
    radius = torch.rand(len(image), 1, dtype=image.dtype) ** (1 / direction.shape[1])
    return (eps * radius * direction).view_as(image)


def surprise(logits: Tensor, label: Tensor) -> Tensor:
    return F.nll_loss(logits.log_softmax(1), label)


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL of the classes of `logits` from those of `other`, as in the code of TRADES's authors."""
    return F.kl_div(other.log_softmax(1), logits.softmax(1), reduction="batchmean")


def share_right(logits: Tensor, label: Tensor) -> Tensor:
    return (logits.argmax(1) == label).to(logits.dtype).mean()
