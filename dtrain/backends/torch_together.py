"""Several torch optimizers that are one for whoever steps, schedules and saves them."""

from collections.abc import Callable, Sequence

import torch


class Together(torch.optim.Optimizer):
    """Optimizers of a model's parts that step as one; they share this one's groups and states."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]):
        self.parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.defaults = self.parts[0].defaults  # by which schedulers tell what there is to be moved
        self._share()

    def __setstate__(self, state: dict[str, object]) -> None:
        """Take up a state, but nothing of a parameter that another part trained when it was saved."""
        super().__setstate__(state)
        self._share()
        for part in self.parts:
            for parameter in (parameter for group in part.param_groups for parameter in group["params"]):
                has_sum = "momentum_buffer" in self.state.get(parameter, {})
                if has_sum != isinstance(part, torch.optim.Muon):
                    self.state.pop(parameter, None)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step every part. The loss is never evaluated again."""
        assert closure is None
        for part in self.parts:
            part.step()

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            count = len(part.param_groups)
            part.state, part.param_groups = self.state, self.param_groups[first : first + count]
            first += count
