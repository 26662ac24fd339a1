"""Variational autoencoders. Source: Kingma & Welling 2013 (arXiv:1312.6114)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from dtrain.data.source import Field
from dtrain.spec.models import Model, input_of, output_of
from dtrain.spec.schedules import Constant, OfSteps
from dtrain.spec.table import Positive, Rate, Wrong, kind
from dtrain.systems.autoencoder import beside, check_range, decoder_problems, difference, like_data
from dtrain.systems.base import Array, Batch, Logs, Loss, Models, Ops, Phase, System


@kind(System, "vae")
class VAE(System):
    """An encoder gives the mean and the log variance of a code z, a decoder makes a picture of z.

    The loss is the negative evidence lower bound in nats: what the reconstruction misses, summed over the
    values of an example, and beta times the divergence of z from N(0, 1), summed over the code; both
    averaged over the examples. Beta: Higgins et al. 2017, "beta-VAE"; its warm-up: Sønderby et al. 2016
    (arXiv:1602.02282).
    """

    latent: Positive  # length of z; the encoder gives twice as many numbers
    # bce: of logits, and data from 0 to 1; mse: half the squared error, as of a variance of 1
    loss: Literal["bce", "mse"] = "bce"
    beta: Rate = 1.0  # weight of the divergence; 1 is the bound itself
    schedule: OfSteps = Constant()  # factor of beta over the run
    input: str = "image"  # the field of the data that is encoded

    evaluates = MappingProxyType({"loss": "min", "reconstruction": "min", "kl": None})

    def phases(self) -> Sequence[Phase]:
        return (Phase(("encoder", "decoder"), self.bound),)

    def reads(self) -> Mapping[str, str | None]:
        return {self.input: "encoder"}

    def check(self, models: Mapping[str, Model]) -> Iterator[ValueError]:
        code, takes = output_of(models["encoder"]), input_of(models["decoder"])
        if code not in (None, (2 * self.latent,)):
            said = (
                f"gives {code}, but must give ({2 * self.latent}): a mean and a log variance for each latent"
            )
            yield Wrong("models.encoder", said)
        if takes not in (None, (self.latent,)):
            said = f"is {list(takes or ())}, but system.latent is {self.latent}"
            yield Wrong("models.decoder.input", said)
        yield from decoder_problems(models)

    def check_data(self, models: Mapping[str, Model], fields: Mapping[str, Field]) -> None:
        check_range(self.loss, fields[self.input])

    def bound(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        terms = self.terms(models, batch, ops)
        beta = self.beta * ops.factor(self.schedule)
        return Loss(terms["reconstruction"] + beta * terms["kl"], terms)

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Logs:
        terms = self.terms(models, batch, ops)
        return {"loss": terms["reconstruction"] + self.beta * terms["kl"], **terms}

    def terms(self, models: Models, batch: Batch, ops: Ops) -> Logs:
        """Both parts of the bound: sums over an example, means over the examples."""
        image = batch[self.input]
        mean, log_variance = ops.split(models.encoder(image), 2)  # (N, latent) each
        z = mean + ops.exp(log_variance / 2) * ops.normal(*mean.shape)
        missed = math.prod(image.shape[1:]) * difference(self.loss, models.decoder(z), image, ops)
        if self.loss == "mse":
            missed = missed / 2
        return {"reconstruction": missed, "kl": ops.kl_normal(mean, log_variance)}

    def predict(self, models: Models, batch: Batch, ops: Ops) -> tuple[Array, Array]:
        mean, _ = ops.split(models.encoder(batch[self.input]), 2)
        return like_data(self.loss, models.decoder(mean), ops), batch[self.input]

    def samples(self, models: Models, batch: Batch, ops: Ops) -> Mapping[str, Array]:
        made, image = self.predict(models, batch, ops)
        drawn = models.decoder(ops.normal(64, self.latent))
        return {
            "prior": like_data(self.loss, drawn, ops),
            "reconstruction": beside(image, made, ops=ops),
        }
