"""Features from two views of the same picture. Source: Chen et al. 2020 (arXiv:2002.05709), SimCLR."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated

from dtrain.data.source import Field
from dtrain.spec.models import Model, input_of, output_of
from dtrain.spec.table import Above0, Natural, Rate, Within, Wrong, kind
from dtrain.systems.base import Array, Batch, Evaluation, Loss, Models, Ops, Phase, System
from dtrain.systems.classifier import accuracy

OWN = 1e9  # taken from the similarity of a view to itself, which is no candidate


@kind(System, "contrastive")
class Contrastive(System):
    """An `encoder` whose features, through a `projector`, tell two views of a picture from those of others.

    Views are changes of a picture: enlarged, moved, mirrored, of another contrast. The loss is NT-Xent: the
    cross-entropy of finding a view's partner among all views by their cosine. The candidates are those of the
    micro-batch, so `train.micro_batch_size` is part of the method, and results are the same on any number of
    processes. The projector is thrown away; what is learned is the encoder, which recipes/composed/probe.toml
    judges.
    """

    temperature: Above0 = 0.2  # that cosines are divided by
    zoom: Annotated[float, Within(at_least=1)] = 1.6  # a view is enlarged by up to this; 1 leaves it
    shift: Natural = 2  # and moved by up to so many pixels both ways
    flip: bool = True  # and mirrored, or not
    contrast: Rate = 0.4  # and multiplied by a number of up to so much more or less than 1
    input: str = "image"  # the field of the data with pictures

    evaluates = MappingProxyType({"loss": "min", "matched": "max"})

    def phases(self) -> Sequence[Phase]:
        return (Phase(("encoder", "projector"), self.tell_apart),)

    def reads(self) -> Mapping[str, str | None]:
        return {self.input: "encoder"}

    def check(self, models: Mapping[str, Model]) -> Iterator[ValueError]:
        made, takes = output_of(models["encoder"]), input_of(models["projector"])
        out = output_of(models["projector"])
        if made and takes and made != takes:
            said = f"is {list(takes)}, but models.encoder gives {made}; they must agree"
            yield Wrong("models.projector.input", said)
        if out is not None and len(out) != 1:
            said = f"gives {out}, but must give (features); end it with a linear layer"
            yield Wrong("models.projector", said)

    def check_data(self, models: Mapping[str, Model], fields: Mapping[str, Field]) -> None:
        if len(fields[self.input].shape) != 3:
            raise ValueError(f'the field "{self.input}" must hold pictures: (channels, height, width)')

    def view(self, image: Array, ops: Ops) -> Array:
        """A picture (N, C, H, W) as it might as well have been."""
        if self.zoom > 1:
            image = ops.random_zoom(image, self.zoom)
        if self.shift:
            image = ops.random_shift(image, self.shift)
        if self.flip:
            image = ops.random_flip(image)
        if self.contrast:
            image = image * (1 + self.contrast * (2 * ops.uniform(len(image), 1, 1, 1) - 1))
        return image

    def candidates(self, models: Models, batch: Batch, ops: Ops) -> tuple[Array, Array]:
        """Of both views, how alike each is to the others: to those of the other view first, (N, 2N)."""
        one, two = self.features(models, batch, ops), self.features(models, batch, ops)
        own = OWN * ops.eye(ops.matmul(one, ops.transpose(one)))
        across, among_one, among_two = (
            ops.matmul(x, ops.transpose(y)) / self.temperature
            for x, y in ((one, two), (one, one), (two, two))
        )  # (N, N)
        return ops.concat(across, among_one - own), ops.concat(ops.transpose(across), among_two - own)

    def features(self, models: Models, batch: Batch, ops: Ops) -> Array:
        """Of a new view of each picture, (N, features), of length 1."""
        return ops.normalize(models.projector(models.encoder(self.view(batch[self.input], ops))))

    def tell_apart(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        one, two = self.candidates(models, batch, ops)
        partner = ops.positions(one)  # that of view i is the i-th candidate
        value = (ops.cross_entropy(one, partner) + ops.cross_entropy(two, partner)) / 2
        return Loss(value, {"matched": (accuracy(one, partner) + accuracy(two, partner)) / 2})

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Evaluation:
        """The loss, and the share of views whose partner is the most alike of all in the micro-batch."""
        loss = self.tell_apart(models, batch, ops)
        return Evaluation({"loss": loss.value, **loss.terms})
