"""Translation between two kinds of pictures without pairs. Source: Zhu et al. 2017 (arXiv:1703.10593)."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from dtrain.spec.models import Model, input_of, output_of
from dtrain.spec.table import Rate, Wrong, kind
from dtrain.systems.autoencoder import beside
from dtrain.systems.base import Array, Batch, Evaluation, Loss, Models, Ops, Phase, System

WAYS = (("a", "b"), ("b", "a"))


@kind(System, "cycle")
class Cycle(System):
    """CycleGAN: `a_to_b` and `b_to_a` translate, `discriminator_a` and `discriminator_b` judge.

    Discriminators give a verdict on the whole picture, or one on each of its parts. They judge what the
    translators make now; the paper's pool of older pictures would be a state of its own.
    """

    cycle: Rate = 10.0  # weight of coming back: the distance of b_to_a(a_to_b(a)) from a, and the reverse
    identity: Rate = 5.0  # weight of leaving alone what is of the other kind already: a_to_b(b) is b
    a: str = "a"  # the field of the data with pictures of the one kind
    b: str = "b"  # and of the other; those of an example are no pair

    evaluates = MappingProxyType({"loss": "min", "fooled": None, "cycle": "min", "identity": "min"})

    def phases(self) -> Sequence[Phase]:
        return (
            Phase(("discriminator_a", "discriminator_b"), self.judge),
            Phase(("a_to_b", "b_to_a"), self.translate),
        )

    def reads(self) -> Mapping[str, str | None]:
        return {self.a: "a_to_b", self.b: "b_to_a"}

    def check(self, models: Mapping[str, Model]) -> Iterator[ValueError]:
        for own, other in WAYS:
            takes, made = input_of(models[f"{own}_to_{other}"]), output_of(models[f"{own}_to_{other}"])
            wanted, judged = input_of(models[f"{other}_to_{own}"]), input_of(models[f"discriminator_{other}"])
            if made and wanted and made != wanted:
                said = f"gives {made}, but models.{other}_to_{own} takes {wanted}; they must agree"
                yield Wrong(f"models.{own}_to_{other}", said)
            if judged and wanted and judged != wanted:
                said = (
                    f"is {list(judged)}, but models.{other}_to_{own} takes {list(wanted)}; both read {other}"
                )
                yield Wrong(f"models.discriminator_{other}.input", said)
            if self.identity and takes and wanted and takes != wanted:
                yield Wrong("system.identity", "pictures of the two kinds differ in shape; 0 would do")
                return

    def judge(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        """What the discriminators minimise: how far from 1 what is real is, and from 0 what is made."""
        real_a, real_b = batch[self.a], batch[self.b]
        made_a, made_b = ops.detach(models.b_to_a(real_b)), ops.detach(models.a_to_b(real_a))
        terms = {
            "a": apart(models.discriminator_a(real_a), models.discriminator_a(made_a)),
            "b": apart(models.discriminator_b(real_b), models.discriminator_b(made_b)),
        }
        return Loss(terms["a"] + terms["b"], terms)

    def translate(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        """What the translators minimise: to be taken for real, to come back, to leave alone what is right."""
        terms = self.measured(models, batch, ops)
        value = terms["fooled"] + self.cycle * terms["cycle"]
        return Loss(value + self.identity * terms["identity"] if self.identity else value, terms)

    def measured(self, models: Models, batch: Batch, ops: Ops) -> Mapping[str, Array]:
        """The terms of the translators' loss, each the sum of both ways."""
        a, b = batch[self.a], batch[self.b]
        made_a, made_b = models.b_to_a(b), models.a_to_b(a)
        on_a, on_b = models.discriminator_a(made_a), models.discriminator_b(made_b)
        terms = {
            "fooled": ((on_a - 1) ** 2).mean() + ((on_b - 1) ** 2).mean(),
            "cycle": ops.l1(models.b_to_a(made_b), a) + ops.l1(models.a_to_b(made_a), b),
        }
        if self.identity:  # or the two kinds may differ in shape
            terms["identity"] = ops.l1(models.b_to_a(a), a) + ops.l1(models.a_to_b(b), b)
        return terms

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Evaluation:
        loss = self.translate(models, batch, ops)
        return Evaluation({"loss": loss.value, **loss.terms}, predicted=self.predict(models, batch, ops))

    def predict(self, models: Models, batch: Batch, ops: Ops) -> tuple[Array, Array]:
        return models.a_to_b(batch[self.a]), batch[self.b]  # no pairs: for distances between whole sets

    def samples(self, models: Models, batch: Batch, ops: Ops) -> Mapping[str, Array]:
        """Each picture, what it was translated to, and that translated back."""
        a, b = batch[self.a], batch[self.b]
        to_b, to_a = models.a_to_b(a), models.b_to_a(b)
        return {
            "a_to_b": beside(a, to_b, models.b_to_a(to_b), ops=ops),
            "b_to_a": beside(b, to_a, models.a_to_b(to_a), ops=ops),
        }


def apart(real: Array, made: Array) -> Array:
    """Least squares (Mao et al. 2017, arXiv:1611.04076) of verdicts on real and on made pictures."""
    return ((real - 1) ** 2).mean() / 2 + (made**2).mean() / 2
