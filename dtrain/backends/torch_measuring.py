"""The metrics of a recipe at work: updated with each micro-batch, computed once, over all ranks.

torchmetrics takes two seconds to import, so this is imported where a recipe names metrics.
"""

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from dtrain.backends.torch_measures import Measure, build_measure, measured
from dtrain.backends.torch_metrics import Setting, Summing, build_metric
from dtrain.errors import RecipeError
from dtrain.spec.arguments import call_found
from dtrain.spec.imports import find
from dtrain.spec.metrics import Metric as Table
from dtrain.spec.table import Imported, Wrong
from dtrain.spec.trust import ImportPathError, Trust

Gather = Callable[[Tensor], list[Tensor]]  # every rank's array, by rank, on every rank


class Measuring:
    """Metrics by name, each with the predictions and targets of every evaluated example.

    `range` is that of the data; `features` are the models that tables ask for, by the metrics' names;
    `gather` brings the states of all ranks together. What a metric is to be built for is seen with the first
    predictions. Raises RecipeError where one cannot be had, or cannot be computed from what is predicted.
    """

    def __init__(
        self,
        tables: Mapping[str, Table | Imported],
        *,
        range: float,
        features: Mapping[str, nn.Module],
        gather: Gather,
        trust: Trust,
    ):
        self.tables, self.range, self.features = tables, range, features
        self.gather, self.trust = gather, trust
        self.metrics: dict[str, Metric] = {}

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, *, idle: bool) -> None:
        """Take in a micro-batch; an idle one counts for nothing."""
        for name, table in self.tables.items():
            said = table.path if isinstance(table, Imported) else table.kind
            at = f"evaluate.metrics.{name}"
            try:
                if name not in self.metrics:
                    self.metrics[name] = self._built(name, table, prediction)
                if not idle:
                    self.metrics[name].update(*self._given(self.metrics[name], prediction, target))
            except RecipeError:
                raise
            except Wrong as error:
                raise RecipeError(f"{at}.{error.at}", str(error)) from None
            except Exception as error:  # a user's class, or arrays that a metric cannot take
                shapes = f"{list(prediction.shape)} and {list(target.shape)}"
                raise RecipeError(at, f"{said} failed with arrays of {shapes}: {error}") from error

    def compute(self) -> dict[str, float]:
        """The metrics of all that came since the last time, on every rank; the only wait for the device."""
        values = {}
        for name, metric in self.metrics.items():
            with warnings.catch_warnings():  # of a rank without work: that it computes without an update
                warnings.simplefilter("ignore")
                values[name] = self._one_number(name, metric.compute())
            metric.reset()
        return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True)) if values else {}

    def _built(self, name: str, table: Table | Imported, prediction: Tensor) -> Metric:
        if isinstance(table, Imported):
            metric = self._imported(f"evaluate.metrics.{name}", table, prediction)
        else:
            features = self.features[name].to(prediction.device) if name in self.features else None
            setting = Setting(classes=prediction.shape[-1], range=self.range, features=features)
            metric = build_metric(table, setting, prediction)
        metric.to(prediction.device)
        for each in metric.modules():
            if isinstance(each, Metric):  # a metric may be made of others
                each.dist_sync_fn = lambda tensor, group=None: self.gather(tensor)
        return metric

    def _imported(self, at: str, imported: Imported, prediction: Tensor) -> Metric:
        """A class of torchmetrics' kind, or the mean of what a function or a loss says of micro-batches."""
        try:
            found = find(imported.path, "metric", self.trust)
        except ImportPathError as error:
            raise RecipeError(f"{at}.kind", error.message, suggestion=error.suggestion) from error
        if not (isinstance(found, type) and issubclass(found, Metric)):
            measure = build_measure(
                imported, prediction.device, prediction.dtype, at=at, trust=self.trust, role="metric"
            )
            return Mean(measure, imported, at)
        try:
            metric: Metric = call_found(found, imported.arguments, "metric", self.trust)
        except Exception as error:  # the class is the user's
            raise RecipeError(at, f"{imported.path}: {error}") from error
        if state := unjoined(metric):
            said = f"{imported.path} keeps a list ({state}) that cannot be joined over ranks"
            raise RecipeError(f"{at}.kind", f'{said}; dist_reduce_fx="cat" would do')
        return metric if has_weights(metric) else metric.set_dtype(torch.float64)

    @staticmethod
    def _given(metric: Metric, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Fractions in double precision for a class of torchmetrics' that has no weights."""
        if isinstance(metric, Summing) or has_weights(metric):
            return prediction, target
        prediction, target = (x.double() if x.is_floating_point() else x for x in (prediction, target))
        return prediction, target

    def _one_number(self, name: str, value: object) -> Tensor:
        found = value if isinstance(value, Tensor) else torch.tensor(torch.nan)
        if found.numel() == 1 and isinstance(value, Tensor):
            return found.reshape(()).double()
        gives = (
            f"an array of {list(found.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        )
        table = self.tables[name]
        said = table.path if isinstance(table, Imported) else table.kind
        raise RecipeError(f"evaluate.metrics.{name}", f"{said} gives {gives}; one number would do")


def has_weights(metric: Metric) -> bool:
    """Whether a metric goes by a network, which is made for single precision."""
    return any(True for _ in metric.parameters())


def unjoined(metric: Metric) -> str | None:
    """A state that is a list which torchmetrics does not concatenate: ranks have more items or fewer."""
    for each in (module for module in metric.modules() if isinstance(module, Metric)):
        joins: Mapping[str, object] = vars(each)[
            "_reductions"
        ]  # how states become one; there is no public way
        for name, default in each._defaults.items():
            if isinstance(default, list) and joins[name] is not dim_zero_cat:
                return name
    return None


class Mean(Summing):
    """The mean over the examples of what a function says of micro-batches."""

    total: Tensor
    count: Tensor

    def __init__(self, measure: Measure, imported: Imported, at: str):
        super().__init__()
        self.measure, self.imported, self.at = measure, imported, at
        self.sums("total")
        self.sums("count", whole=True)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        value = measured(self.measure, self.imported, prediction, target, at=self.at)
        self.total += value.double() * len(prediction)
        self.count += len(prediction)

    def compute(self) -> Tensor:
        return self.total / self.count
