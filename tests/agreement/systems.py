"""Systems and models of a user's own, for the recipes in cases.py."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from dtrain import Loss, Ops, Phase, System
from dtrain.systems.base import Batch, Models


@dataclass(frozen=True)
class Speech(System):
    """Predicts each token of a sentence from the one before; weighs a micro-batch by its tokens."""

    def phases(self) -> Sequence[Phase]:
        return (Phase(("speaker",), self.loss),)

    def loss(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        before, after = batch["token"][:, :-1], batch["token"][:, 1:]  # (N, 5)
        logits = models.speaker(before)  # (N, 5, tokens)
        surprise = F.cross_entropy(logits.transpose(1, 2), after, reduction="none")
        position = before.new_ones(before.shape).cumsum(1)
        is_said = position < batch["length"][:, None]
        count = is_said.sum()  # may be 0
        total = count.clamp(min=1)
        hits = ((logits.argmax(-1) == after) & is_said).sum().to(surprise.dtype) / total
        return Loss((surprise * is_said).sum() / total, {"accuracy": hits}, weight=count)


@dataclass(frozen=True)
class Autoencoder(System):
    """Encoder and decoder in one update, from pictures made harder; then the decoder alone, every other step.

    A judge that nobody trains compares the pictures.
    """

    def phases(self) -> Sequence[Phase]:
        return (
            Phase(("encoder", "decoder"), self.reconstruct, prepare=self.attack),
            Phase(("decoder",), self.dream, repeat=2, every=2),
        )

    def attack(self, models: Models, batch: Batch, ops: Ops) -> Batch:
        """Move each picture to where its code is longer, and add noise."""
        image = batch["image"]
        slope = ops.gradient(lambda x: models.encoder(x) ** 2, image)
        return {"image": image, "hard": image + 0.05 * slope + 0.1 * ops.normal(*image.shape)}

    def reconstruct(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        made = models.decoder(models.encoder(batch["hard"]))
        picture = ((made - batch["image"]) ** 2).mean()
        judged = ((models.judge(made) - models.judge(batch["image"])) ** 2).mean()
        return Loss(picture + judged / 2, {"picture": picture, "judged": judged})

    def dream(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        code = ops.normal(len(batch["image"]), 5)
        return Loss(((models.encoder(models.decoder(code)) - code) ** 2).mean())


@dataclass(frozen=True)
class Loud(System):
    """A classifier whose loss is `factor` times too large for the first loss scale of fp16."""

    factor: float

    def phases(self) -> Sequence[Phase]:
        return (Phase(("classifier",), self.loss),)

    def loss(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        return Loss(self.factor * ops.cross_entropy(models.classifier(batch["image"]), batch["label"]))


class Normed(nn.Module):
    """An imported model with batch normalisations, one of them used twice in a forward."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width, momentum=0.3)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.body = nn.Sequential(
            nn.Conv2d(width, 3, 2, stride=2, bias=False), nn.BatchNorm2d(3, momentum=None)
        )
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.first(x)))
        x = F.silu(self.norm(self.second(x)))
        out: Tensor = self.head(F.silu(self.body(x)).flatten(1))
        return out


class HalfFrozen(Normed):
    """The same with parts that are not to be trained."""

    def __init__(self, width: int):
        super().__init__(width)
        self.first.requires_grad_(False)
        self.norm.bias.requires_grad_(False)


class Spectral(nn.Module):
    """An imported model whose forward moves buffers of its own: one power iteration for each weight."""

    def __init__(self, out: int):
        super().__init__()
        self.body = spectral_norm(nn.Conv2d(1, 4, 4, stride=2))
        self.head = spectral_norm(nn.Linear(36, out))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.silu(self.body(x)).flatten(1))
        return out
