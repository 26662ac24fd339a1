"""Generative adversarial networks. Source: Goodfellow et al. 2014 (arXiv:1406.2661)."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from dtrain.spec.models import Model, input_of, output_of
from dtrain.spec.table import Positive, Rate, Wrong, kind
from dtrain.systems.base import Array, Batch, Evaluation, Loss, Models, Ops, Phase, System


@kind(System, "gan")
class GAN(System):
    """A generator of pictures against a discriminator of real and made ones.

    Losses: non_saturating (the paper's own), hinge (Lim & Ye 2017, arXiv:1705.02894), least_squares
    (Mao et al. 2017, arXiv:1611.04076), wasserstein with gradient penalty (Gulrajani et al. 2017,
    arXiv:1704.00028). R1: Mescheder et al. 2018 (arXiv:1801.04406).
    """

    latent: Positive  # length of z ~ N(0, 1)
    # what generator and discriminator play for
    loss: Literal["non_saturating", "hinge", "least_squares", "wasserstein"] = "non_saturating"
    critic_steps: Positive = 1  # updates of the discriminator for one of the generator
    gradient_penalty: Rate = 10.0  # weight of the penalty; of loss = "wasserstein" alone
    r1: Rate = 0.0  # weight of the squared slope at real examples, halved
    input: str = "image"  # the field of the data that is imitated

    evaluates = MappingProxyType({"loss": "min", "real": None, "fake": None})

    def phases(self) -> Sequence[Phase]:
        return (
            Phase(("discriminator",), self.discriminator_loss, repeat=self.critic_steps),
            Phase(("generator",), self.generator_loss),
        )

    @property
    def has_slopes(self) -> bool:
        return bool(self.r1 or (self.loss == "wasserstein" and self.gradient_penalty))

    def reads(self) -> Mapping[str, str | None]:
        return {self.input: "discriminator"}

    def check(self, models: Mapping[str, Model]) -> Iterator[ValueError]:
        generator, discriminator = models["generator"], models["discriminator"]
        takes, makes, judges = input_of(generator), output_of(generator), input_of(discriminator)
        if takes not in (None, (self.latent,)):
            said = f"is {self.latent}, but models.generator.input is {list(takes or ())}"
            yield Wrong("system.latent", said)
        if makes and judges and makes != judges:
            yield Wrong(
                "models.discriminator.input",
                f"models.generator makes {makes}, but models.discriminator takes {judges}: "
                f"the last layer of the one and the input of the other must agree",
            )
        verdict = output_of(discriminator)
        if verdict not in (None, (1,)):
            said = f"gives {verdict}, but must give (1), one verdict an example"
            yield Wrong("models.discriminator", said)

    def make(self, models: Models, count: int, ops: Ops) -> Array:
        """Generate `count` examples."""
        return models.generator(ops.normal(count, self.latent))

    def discriminator_loss(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        image = batch[self.input]
        made = ops.detach(self.make(models, len(image), ops))
        real, fake = models.discriminator(image), models.discriminator(made)  # (N, 1)
        value = self.critic(real, fake, ops)
        terms = {"real": real.mean(), "fake": fake.mean()}
        if self.loss == "wasserstein" and self.gradient_penalty:
            share = ops.uniform(len(image), *(1,) * (image.ndim - 1))
            between = share * image + (1 - share) * made
            terms["penalty"] = self.gradient_penalty * ops.gradient_penalty(models.discriminator, between)
            value = value + terms["penalty"]
        if self.r1:
            terms["r1"] = self.r1 / 2 * ops.gradient_penalty(models.discriminator, image, target=0.0)
            value = value + terms["r1"]
        return Loss(value, terms)

    def critic(self, real: Array, fake: Array, ops: Ops) -> Array:
        """What the discriminator minimises, given its verdicts."""
        match self.loss:
            case "non_saturating":
                return ops.softplus(-real).mean() + ops.softplus(fake).mean()
            case "hinge":
                return ops.relu(1 - real).mean() + ops.relu(1 + fake).mean()
            case "least_squares":
                return ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2
            case "wasserstein":
                return fake.mean() - real.mean()

    def generator_loss(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        fake = models.discriminator(self.make(models, len(batch[self.input]), ops))
        match self.loss:
            case "non_saturating":
                return Loss(ops.softplus(-fake).mean())
            case "least_squares":
                return Loss(((fake - 1) ** 2).mean() / 2)
            case "hinge" | "wasserstein":
                return Loss(-fake.mean())

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Evaluation:
        made, image = self.predict(models, batch, ops)
        real, fake = models.discriminator(image), models.discriminator(made)
        terms = {"loss": self.critic(real, fake, ops), "real": real.mean(), "fake": fake.mean()}
        return Evaluation(terms, predicted=(made, image))

    def predict(self, models: Models, batch: Batch, ops: Ops) -> tuple[Array, Array]:
        image = batch[self.input]
        return self.make(models, len(image), ops), image

    def samples(self, models: Models, batch: Batch, ops: Ops) -> Mapping[str, Array]:
        return {"generator": self.make(models, 64, ops)}
