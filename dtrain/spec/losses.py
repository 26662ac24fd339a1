"""Losses as data: an expression, and how much it counts."""

from collections.abc import Mapping
from typing import Annotated

from dtrain.spec.schedules import Constant, Schedule
from dtrain.spec.table import Finite, Frozen, OneOf, Table, table

Expression = str  # of the language of `dtrain.systems.expressions`


@table
class Term(Table):
    """One term of a loss: the mean of an expression, times a weight that may change over the steps."""

    of: Expression  # what is minimised; its mean, where it is an array
    weight: Finite = 1.0  # factor of the term in the loss
    schedule: Annotated[Schedule, OneOf(Schedule, imported=None)] = Constant()  # factor of the weight


Terms = Frozen[Expression | Term]  # by name


def terms(given: Mapping[str, Expression | Term]) -> dict[str, Term]:
    """Each as a term, those that are expressions alone too, and these first.

    TOML is written in this order: so a recipe that was written out computes and draws in the same one.
    """
    ordered = sorted(given.items(), key=lambda item: isinstance(item[1], Term))
    return {name: Term(of=one) if isinstance(one, str) else one for name, one in ordered}
