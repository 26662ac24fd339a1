"""Autoencoders. Source: Rumelhart, Hinton & Williams 1986; denoising: Vincent et al. 2008."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from dtrain.data.source import Field
from dtrain.spec.models import Model, input_of, output_of
from dtrain.spec.table import Fraction, Rate, Wrong, kind
from dtrain.systems.base import Array, Batch, Evaluation, Loss, Models, Ops, Phase, System

SHOWN = 25  # examples in a grid of reconstructions


@kind(System, "autoencoder")
class Autoencoder(System):
    """An encoder to a short code and a decoder back; denoising where the encoder sees pictures made worse.

    Masking is the noise of Vincent, Larochelle, Bengio & Manzagol 2008, "Extracting and composing robust
    features with denoising autoencoders". Losses are means over all values of an example.
    """

    # of what the decoder gives; for bce these are logits, and the data goes from 0 to 1
    loss: Literal["mse", "l1", "bce"] = "mse"
    noise: Rate = 0.0  # standard deviation of the normal noise that is added to what the encoder sees
    masked: Fraction = 0.0  # share of the values that the encoder sees as 0
    input: str = "image"  # the field of the data that is encoded

    evaluates = MappingProxyType({"loss": "min"})

    def phases(self) -> Sequence[Phase]:
        return (Phase(("encoder", "decoder"), self.reconstruct),)

    def reads(self) -> Mapping[str, str | None]:
        return {self.input: "encoder"}

    def check(self, models: Mapping[str, Model]) -> Iterator[ValueError]:
        code, takes = output_of(models["encoder"]), input_of(models["decoder"])
        if code and takes and code != takes:
            said = f"models.encoder gives {code}, but models.decoder takes {takes}; they must agree"
            yield Wrong("models.decoder.input", said)
        yield from decoder_problems(models)

    def check_data(self, models: Mapping[str, Model], fields: Mapping[str, Field]) -> None:
        check_range(self.loss, fields[self.input])

    def reconstruct(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        made = models.decoder(models.encoder(self.spoil(batch[self.input], ops)))
        return Loss(difference(self.loss, made, batch[self.input], ops))

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Evaluation:
        image = batch[self.input]
        made = models.decoder(models.encoder(self.spoil(image, ops)))
        terms = {"loss": difference(self.loss, made, image, ops)}
        return Evaluation(terms, predicted=(like_data(self.loss, made, ops), image))

    def predict(self, models: Models, batch: Batch, ops: Ops) -> tuple[Array, Array]:
        made = models.decoder(models.encoder(self.spoil(batch[self.input], ops)))
        return like_data(self.loss, made, ops), batch[self.input]

    def samples(self, models: Models, batch: Batch, ops: Ops) -> Mapping[str, Array]:
        image = batch[self.input]
        seen = self.spoil(image, ops)
        made = like_data(self.loss, models.decoder(models.encoder(seen)), ops)
        shown = (image, seen, made) if self.noise or self.masked else (image, made)
        return {"reconstruction": beside(*shown, ops=ops)}

    def spoil(self, image: Array, ops: Ops) -> Array:
        """What the encoder sees in place of the data."""
        seen = image
        if self.noise:
            seen = seen + self.noise * ops.normal(*image.shape)
        if self.masked:
            seen = seen * ops.bernoulli(1 - self.masked, *image.shape)
        return seen


def decoder_problems(models: Mapping[str, Model]) -> Iterator[ValueError]:
    """Where the decoder does not give what the encoder takes."""
    takes, gives = input_of(models["encoder"]), output_of(models["decoder"])
    if takes and gives and takes != gives:
        said = f"gives {gives}, but must give {takes}, as models.encoder takes"
        yield Wrong("models.decoder", said)


def check_range(loss: str, field: Field) -> None:
    """Raise Wrong if a cross-entropy is asked of pictures that do not go from 0 to 1."""
    if loss == "bce" and field.range not in (None, (0.0, 1.0)):
        low, high = field.range
        said = (
            f"bce is of values from 0 to 1, and the data goes from {low:g} to {high:g}; range = [0, 1] there"
        )
        raise Wrong("system.loss", f'{said} would do, or loss = "mse" here')


def difference(loss: str, made: Array, image: Array, ops: Ops) -> Array:
    """How far what the decoder gives is from the data: a mean over all values."""
    match loss:
        case "bce":
            return ops.bce(made, image)
        case "l1":
            return ops.l1(made, image)
        case _:
            return ops.mse(made, image)


def like_data(loss: str, made: Array, ops: Ops) -> Array:
    """What the decoder gives, in the range of the data."""
    return ops.sigmoid(made) if loss == "bce" else made


def beside(*pictures: Array, ops: Ops) -> Array:
    """The first pictures of each, (N, channels, height, width), side by side along the width."""
    return ops.concat(*(ops.slice(each, 0, SHOWN, axis=0) for each in pictures), axis=-1)
