"""`Ops` whose calls are noted."""

from typing import Any

import torch

from dtrain.explain.record import Recorder
from dtrain.spec.schedules import Schedule


class RecordedOps:
    """`Ops` whose calls a recorder notes."""

    def __init__(self, ops: Any, recorder: Recorder):
        self._ops = ops
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        return self._recorder.wrapped(name, getattr(self._ops, name))

    def factor(self, schedule: Schedule) -> Any:
        """The factor at the first step, as an array: so it is noted where it is used."""
        name = f"{schedule.kind}_schedule"
        return self._recorder.wrapped(name, lambda: torch.tensor(self._ops.factor(schedule)))()
