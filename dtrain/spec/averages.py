"""Averages of weights as data: which weights they take in, and when."""

from typing import Annotated

from dtrain.spec.table import Fraction, Natural, OneOf, Positive, Table, kind, table


@table
class Average(Table):
    """What every average of a model's weights has."""

    evaluate: bool = True  # whether it, and not the model, is evaluated and sampled


@kind(Average, "ema")
class ExponentialAverage(Average):
    """An exponential moving average over the updates of the model; the kind where none is named.

    After the t-th update that it takes in, t from 0, it keeps the share min(decay, (1 + t) / (warmup + t)) of
    itself. Source of the warm-up: TensorFlow's ExponentialMovingAverage, where it is 10.
    """

    decay: Fraction  # share of the average that stays at each update that it takes in
    warmup: Natural = 0  # the larger, the longer its first weights count less; 0: no warm-up
    every: Positive = 1  # it takes in each so-many-th update of the model

    def share(self, taken: int) -> float:
        """How much of the average stays, after `taken` updates that it took in before."""
        return min(self.decay, (1 + taken) / (self.warmup + taken)) if self.warmup else self.decay


@kind(Average, "swa")
class StochasticAverage(Average):
    """The equal average of the weights after many steps; the model itself until the first of them.

    Statistics of batch normalisations are taken anew, from training batches, before it is used or saved.
    Source: Izmailov et al. 2018 (arXiv:1803.05407).
    """

    start: Natural  # steps, after which it begins: weights after step start + 1 are the first that count
    every: Positive = 1  # steps from one to the next that count
    batches: Positive | None = None  # of training, for the statistics; as many as an epoch has, if left out

    def takes(self, step: int) -> bool:
        """Whether weights after this step, counted from 0, count."""
        return step >= self.start and (step - self.start) % self.every == 0


AnyAverage = Annotated[Average, OneOf(Average, imported=None, otherwise=ExponentialAverage)]
