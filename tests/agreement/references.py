"""Plain PyTorch loops, written out by hand, one process: what dtrain's numbers are judged by.

Of dtrain they take the first weights, the order of examples, and the seed of each micro-batch. Gradients
come from torch.autograd.grad and are summed by hand: nothing is ever frozen, wrapped, or scaled.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from agreement.cases import BATCH, EXAMPLES, LATENT, MICRO, SEED, STEPS
from agreement.systems import HalfFrozen, Normed, Spectral
from torch import Tensor, nn

from dtrain.data.order import Order
from dtrain.spec.keys import seed_of

Numbers = dict[str, np.ndarray]
Terms = dict[str, Tensor]
ORDER = Order(EXAMPLES, BATCH, MICRO, SEED)


class PlainLion(torch.optim.Optimizer):
    """Lion, a parameter at a time, as its paper writes it."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (first, second), rate, decay = group["betas"], group["lr"], group["weight_decay"]
            for parameter in group["params"]:
                slope = parameter.grad
                mean = self.state[parameter].setdefault("exp_avg", torch.zeros_like(parameter))
                direction = (first * mean + (1 - first) * slope).sign()
                parameter -= rate * (direction + decay * parameter)
                mean.copy_(second * mean + (1 - second) * slope)


def adafactor(parameters: Any, *, lr: float, eps1: float, eps2: float, **options: Any) -> Any:
    return torch.optim.Adafactor(parameters, lr=lr, eps=(eps1, eps2), foreach=False, **options)


def lion(parameters: Any, **options: Any) -> Any:
    return PlainLion(parameters, {"betas": (0.9, 0.99)} | options)


class MuonAndAdamW:
    """Muon for matrices that are no embedding, AdamW for all other parameters."""

    def __init__(self, model: nn.Module, *, others: Mapping[str, Any], **options: Any):
        tables = [child.weight for child in model.modules() if isinstance(child, nn.Embedding)]
        named = list(model.parameters())
        matrices = [own for own in named if own.dim() == 2 and not any(own is table for table in tables)]
        rest = [own for own in named if not any(own is matrix for matrix in matrices)]
        self.muon = torch.optim.Muon(matrices, **options)
        self.adamw = torch.optim.AdamW(rest, foreach=False, **others)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.muon.param_groups + self.adamw.param_groups

    @property
    def state(self) -> Mapping[Tensor, Any]:
        return {**self.muon.state, **self.adamw.state}

    def step(self) -> None:
        self.muon.step()
        self.adamw.step()


def split(model: nn.Module, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lists of parameters as torch takes them: each parameter in the first group with a part of its name."""
    lists: list[dict[str, Any]] = [{"params": []}]
    lists += [{"params": [], **{k: v for k, v in group.items() if k != "match"}} for group in groups]
    for name, parameter in model.named_parameters():
        matching = [number for number, g in enumerate(groups, 1) if g["match"].strip("*") in name]
        if parameter.requires_grad:
            lists[matching[0] if matching else 0]["params"].append(parameter)
    return lists


def one_by_one(cls: Any) -> Any:
    """Without torch's kernels for many tensors at once."""
    return functools.partial(cls, foreach=False)


OPTIMIZERS = {
    "sgd": one_by_one(torch.optim.SGD),
    "adam": one_by_one(torch.optim.Adam),
    "adamw": one_by_one(torch.optim.AdamW),
    "rmsprop": one_by_one(torch.optim.RMSprop),
    "adafactor": adafactor,
    "lion": lion,
    "torch.optim:NAdam": one_by_one(torch.optim.NAdam),
}
OF_DTRAIN = ("kind", "clip", "clip_value", "schedule", "groups")


def classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4, momentum=0.2),
        nn.SiLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(64, 12),
        nn.Tanh(),
        nn.Dropout(0.1),
        nn.Linear(12, 4),
    )


def generator() -> nn.Module:
    return nn.Sequential(
        nn.Linear(LATENT, 24, bias=False),
        nn.Unflatten(1, (6, 2, 2)),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1),
        nn.Softplus(),
        nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1),
        nn.Tanh(),
    )


def discriminator() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(4, 6, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.Softplus(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(24, 1),
    )


def encoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(64, LATENT),
    )


def decoder() -> nn.Module:
    return nn.Sequential(
        nn.Linear(LATENT, 16),
        nn.SiLU(),
        nn.Dropout(0.1),
        nn.Linear(16, 64),
        nn.Unflatten(1, (1, 8, 8)),
        nn.Tanh(),
    )


def judge() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Softplus()).eval()


def speaker() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 6), nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 7))


class Reference:
    """The state of one plain run, and the arithmetic that all of them share."""

    def __init__(
        self, recipe: Mapping[str, Any], data: Numbers, first: Numbers, models: Mapping[str, nn.Module]
    ):
        self.dtype = {"fp64": torch.float64, "fp32": torch.float32}[recipe["train"]["precision"]]
        self.system = recipe["system"]
        self.data = {name: torch.from_numpy(values) for name, values in data.items()}
        for name in ("image", "other"):
            self.data[name] = self.data[name].to(self.dtype)
        self.models = {name: model.to(self.dtype) for name, model in models.items()}
        for name, model in self.models.items():
            prefix = f"models/{name}/"
            own = {
                k.removeprefix(prefix): torch.from_numpy(v) for k, v in first.items() if k.startswith(prefix)
            }
            model.load_state_dict(own)
        self.averages = {name: copy.deepcopy(self.models[name]) for name in recipe["averages"]}
        self.decays = {name: average["decay"] for name, average in recipe["averages"].items()}
        self.rules = recipe["optimizers"]
        self.optimizers = {name: self.optimizer(name, rule) for name, rule in self.rules.items()}
        self.curves: dict[str, list[float]] = {}
        self.step = self.number = 0  # steps and updates done

    def optimizer(self, name: str, rule: Mapping[str, Any]) -> Any:
        options = {key: value for key, value in rule.items() if key not in OF_DTRAIN}
        model = self.models[name]
        if rule["kind"] == "muon":
            return MuonAndAdamW(model, **options)
        return OPTIMIZERS[rule["kind"]](split(model, rule.get("groups", ())), **options)

    def micro_batches(self) -> Iterator[tuple[Tensor, float]]:
        """Indices of each micro-batch of this update and its share of the update; its draws are seeded."""
        micros = ORDER.share(self.number, 0, 1)
        size = sum(len(micro.indices) for micro in micros)
        for micro in micros:
            torch.default_generator.manual_seed(seed_of(SEED, "update", self.number, micro.number))
            yield torch.from_numpy(micro.indices.copy()), len(micro.indices) / size

    def update(self, *names: str, loss: Callable[[Tensor], tuple[Tensor, Terms]]) -> None:
        """One update of the models by the mean of `loss` over the examples of all micro-batches."""
        parameters = {name: trained(self.models[name]) for name in names}
        flat = [parameter for name in names for parameter in parameters[name]]
        gradient = [torch.zeros_like(parameter) for parameter in flat]
        means: dict[str, float] = {}
        others = [
            buffer for name, model in self.models.items() if name not in names for buffer in model.buffers()
        ]
        before = [buffer.clone() for buffer in others]
        for indices, share in self.micro_batches():
            value, terms = loss(indices)
            for total, slope in zip(gradient, torch.autograd.grad(value, flat), strict=True):
                total += share * slope
            for term, number in {"loss": value, **terms}.items():
                means[term] = means.get(term, 0.0) + share * number.item()
        for buffer, value in zip(others, before, strict=True):
            buffer.copy_(value)
        self.finish(parameters, gradient, means)

    def finish(
        self, parameters: Mapping[str, list[Tensor]], gradient: Sequence[Tensor], means: Mapping[str, float]
    ) -> None:
        """Clip, step and average each model, and note the curves."""
        slopes = iter(gradient)
        label = "+".join(parameters)
        self.now = {f"{label}/{term}": value for term, value in means.items()}
        for name, own in parameters.items():
            for parameter in own:
                parameter.grad = next(slopes)
            slope = torch.cat([each.grad.flatten() for each in own])
            self.now[f"{name}/grad_norm"] = float(slope.norm())
            highest, longest = (self.rules[name].get(key, math.inf) for key in ("clip_value", "clip"))
            for parameter in own:
                parameter.grad.clamp_(-highest, highest)
            nn.utils.clip_grad_norm_(own, longest)
            for group in self.optimizers[name].param_groups:
                first = group.setdefault("first", group["lr"])
                group["lr"] = first * rate(self.rules[name].get("schedule"), self.step)
            self.optimizers[name].step()
            if name in self.averages:
                decay = self.decays[name]
                with torch.no_grad():
                    for mean, parameter in zip(trained(self.averages[name]), own, strict=True):
                        mean.copy_(decay * mean + (1 - decay) * parameter)
        self.number += 1
        self.seen |= self.now

    def steps(self) -> Iterator[int]:
        """Count the steps; the last update of each phase in a step is what a curve shows."""
        for self.step in range(STEPS):
            self.seen: dict[str, float] = {}
            yield self.step
            for term, value in self.seen.items():
                self.curves.setdefault(term, []).append(value)

    def result(self) -> Numbers:
        found = {f"curve:{term}": np.array(values) for term, values in self.curves.items()}
        for name, model in self.models.items():
            found |= {f"last:models/{name}/{key}": value.numpy() for key, value in model.state_dict().items()}
        for name, model in self.averages.items():
            found |= {f"last:averages/{name}/{k}": v.detach().numpy() for k, v in model.named_parameters()}
        for name, optimizer in self.optimizers.items():
            for key, parameter in self.models[name].named_parameters():
                for entry, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):
                        found[f"last:optimizers/{name}/{key}/{entry}"] = value.numpy()
        return found


def trained(model: nn.Module) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def rate(schedule: Mapping[str, Any] | None, step: int) -> float:
    """The factor of the learning rate: a linear rise, then a line or half a cosine down to `floor`."""
    if schedule is None:
        return 1.0
    warmup = schedule.get("warmup", 0)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / (STEPS - 1 - warmup)
    match schedule["kind"]:
        case "cosine":
            return schedule["floor"] + (1 - schedule["floor"]) * 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return 1 - done * (1 - schedule["floor"])
        case _:
            return 1.0


def train_gan(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    made_of = {"generator": generator(), "discriminator": discriminator()}
    plain = Reference(recipe, data, first, made_of)
    g, d, kind = plain.models["generator"], plain.models["discriminator"], plain.system["loss"]
    penalty, r1 = plain.system.get("gradient_penalty", 10.0), plain.system.get("r1", 0.0)

    def slope(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(d(x).sum(), x, create_graph=True)[0].flatten(1)

    def verdict(on_real: Tensor, on_fake: Tensor) -> Tensor:
        if kind == "non_saturating":
            return -F.logsigmoid(on_real).mean() - F.logsigmoid(-on_fake).mean()
        if kind == "hinge":
            return (1 - on_real).clamp(min=0).mean() + (1 + on_fake).clamp(min=0).mean()
        if kind == "least_squares":
            return 0.5 * ((on_real - 1).square() + on_fake.square()).mean()
        return (on_fake - on_real).mean()

    def of_discriminator(indices: Tensor) -> tuple[Tensor, Terms]:
        image = plain.data["image"][indices]
        with torch.no_grad():
            fake = g(torch.randn(len(image), LATENT, dtype=plain.dtype))
        on_real, on_fake = d(image), d(fake)
        terms = {"real": on_real.mean(), "fake": on_fake.mean()}
        value = verdict(on_real, on_fake)
        if kind == "wasserstein":
            share = torch.rand(len(image), 1, 1, 1, dtype=plain.dtype)
            terms["penalty"] = (
                penalty * (slope(share * image + (1 - share) * fake).norm(dim=1) - 1).square().mean()
            )
            value = value + terms["penalty"]
        if r1:
            terms["r1"] = 0.5 * r1 * slope(image).square().sum(1).mean()
            value = value + terms["r1"]
        return value, terms

    def of_generator(indices: Tensor) -> tuple[Tensor, Terms]:
        on_fake = d(g(torch.randn(len(indices), LATENT, dtype=plain.dtype)))
        if kind == "non_saturating":
            return -F.logsigmoid(on_fake).mean(), {}
        if kind == "least_squares":
            return 0.5 * (on_fake - 1).square().mean(), {}
        return -on_fake.mean(), {}

    for _ in plain.steps():
        for _ in range(plain.system["critic_steps"]):
            plain.update("discriminator", loss=of_discriminator)
        plain.update("generator", loss=of_generator)

    def judged(indices: Tensor) -> Terms:
        fake = plain.averages["generator"](torch.randn(len(indices), LATENT, dtype=plain.dtype))
        on_real, on_fake = d(plain.data["image"][indices]), d(fake)
        return {"loss": verdict(on_real, on_fake), "real": on_real.mean(), "fake": on_fake.mean()}

    return plain.result() | evaluated(plain, judged)


IMPORTED = {
    "Normed": functools.partial(Normed, width=4),
    "HalfFrozen": functools.partial(HalfFrozen, width=4),
}


def train_classifier(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    kind = recipe["models"]["classifier"].get("kind")
    model = {None: classifier, **IMPORTED}[kind and kind.partition(":")[2]]()
    plain = Reference(recipe, data, first, {"classifier": model})
    smoothing = plain.system.get("label_smoothing", 0.0)

    def loss(indices: Tensor) -> tuple[Tensor, Terms]:
        label = plain.data["label"][indices]
        logits = model(plain.data["image"][indices])
        surprise = logits.logsumexp(1, keepdim=True) - logits  # (N, classes)
        right = surprise.gather(1, label[:, None]).mean()
        accuracy = (logits.argmax(1) == label).to(plain.dtype).mean()
        return (1 - smoothing) * right + smoothing * surprise.mean(), {"accuracy": accuracy}

    for _ in plain.steps():
        plain.update("classifier", loss=loss)
    mean = plain.averages["classifier"]
    return plain.result() | evaluated(plain, lambda indices: class_terms(plain, mean, indices))


def evaluated(plain: Reference, terms: Callable[[Tensor], Terms]) -> Numbers:
    """Means over all examples at the end, as stored, with averaged weights and without dropout."""
    for name, mean in plain.averages.items():
        for buffer, own in zip(mean.buffers(), plain.models[name].buffers(), strict=True):
            buffer.copy_(own)
    for model in (*plain.models.values(), *plain.averages.values()):
        model.eval()
    means: dict[str, float] = {}
    for number, first in enumerate(range(0, EXAMPLES, MICRO)):
        indices = torch.arange(first, min(first + MICRO, EXAMPLES))
        torch.default_generator.manual_seed(seed_of(SEED, "evaluate", number))
        with torch.no_grad():
            for term, value in terms(indices).items():
                means[term] = means.get(term, 0.0) + value.item() * len(indices) / EXAMPLES
    return {f"curve:evaluate/{term}": np.array([value]) for term, value in means.items()}


def class_terms(plain: Reference, model: nn.Module, indices: Tensor) -> Terms:
    """Loss and accuracy of a classifier."""
    logits, label = model(plain.data["image"][indices]), plain.data["label"][indices]
    accuracy = (logits.argmax(1) == label).to(plain.dtype).mean()
    return {"loss": F.nll_loss(logits.log_softmax(1), label), "accuracy": accuracy}


def train_whole_batches(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    """A classifier without accumulation: one forward, so one power iteration, an update."""
    plain = Reference(recipe, data, first, {"classifier": Spectral(out=4)})
    model = plain.models["classifier"]
    parameters = list(model.parameters())
    for _ in plain.steps():
        batch = torch.cat([indices for indices, _ in plain.micro_batches()])
        terms = class_terms(plain, model, batch)
        gradient = torch.autograd.grad(terms["loss"], parameters)
        plain.finish(
            {"classifier": parameters}, gradient, {term: value.item() for term, value in terms.items()}
        )
    mean = plain.averages["classifier"]
    return plain.result() | evaluated(plain, lambda indices: class_terms(plain, mean, indices))


def train_speaker(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    """The tokens of the whole batch in one forward, the padding cut off: their plain mean."""
    plain = Reference(recipe, data, first, {"speaker": speaker()})
    model = plain.models["speaker"]
    parameters = list(model.parameters())
    for _ in plain.steps():
        batch = torch.cat([indices for indices, _ in plain.micro_batches()])
        sentences = [plain.data["token"][i, : plain.data["length"][i]] for i in batch]
        before = torch.cat([sentence[:-1] for sentence in sentences])
        after = torch.cat([sentence[1:] for sentence in sentences])
        logits = model(before)
        loss = F.nll_loss(logits.log_softmax(1), after)
        terms = {"loss": loss.item(), "accuracy": (logits.argmax(1) == after).double().mean().item()}
        plain.finish({"speaker": parameters}, torch.autograd.grad(loss, parameters), terms)
    return plain.result()


def train_autoencoder(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    made_of = {"encoder": encoder(), "decoder": decoder(), "judge": judge()}
    plain = Reference(recipe, data, first, made_of)
    encode, decode, judged_by = made_of["encoder"], made_of["decoder"], made_of["judge"]

    def reconstruct(indices: Tensor) -> tuple[Tensor, Terms]:
        image = plain.data["image"][indices]
        x = image.clone().requires_grad_()
        statistics = [buffer.clone() for buffer in encode.buffers()]
        (slope,) = torch.autograd.grad(encode(x).square().sum(), x)
        for buffer, value in zip(encode.buffers(), statistics, strict=True):
            buffer.copy_(value)
        hard = image + 0.05 * slope + 0.1 * torch.randn(image.shape, dtype=plain.dtype)
        made = decode(encode(hard))
        picture = F.mse_loss(made, image)
        judged = F.mse_loss(judged_by(made), judged_by(image))
        return picture + 0.5 * judged, {"picture": picture, "judged": judged}

    def dream(indices: Tensor) -> tuple[Tensor, Terms]:
        code = torch.randn(len(indices), LATENT, dtype=plain.dtype)
        return F.mse_loss(encode(decode(code)), code), {}

    for step in plain.steps():
        plain.update("encoder", "decoder", loss=reconstruct)
        if step % 2 == 0:
            plain.update("decoder", loss=dream)
            plain.update("decoder", loss=dream)
    return plain.result()
