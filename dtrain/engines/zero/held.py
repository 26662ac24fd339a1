"""A model of which ranks keep parts by DeepSpeed's ZeRO: of optimizer state, of gradients, of weights."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dtrain.backends.torch_backend import trained_parameters
from dtrain.engines.held import Build, Held, Named
from dtrain.engines.replicated import Replicated
from dtrain.engines.torch_state import begin_buffers
from dtrain.engines.zero.pieces import Piece
from dtrain.engines.zero.setup import build_engine, check_model
from dtrain.engines.zero.stages import Names, Slices, Stage, Stretches
from dtrain.engines.zero.state import SINGLE, joined_state
from dtrain.engines.zero.world import DeepSpeedWorld
from dtrain.errors import CheckpointError, LaunchError
from dtrain.scale.tables import DDP, ZeRO


def hold_by_zero(
    name: str,
    module: nn.Module,
    build: Build | None,
    accelerator: Accelerator,
    options: ZeRO,
    world: DeepSpeedWorld,
) -> Held:
    """A model of which ranks keep parts if it is trained; what is not is whole on all of them."""
    if build is None:
        return Replicated(name, module, None, accelerator, DDP())
    return Zero(module, build, accelerator, options, world)


class Zero:
    """A DeepSpeed engine for one model and its optimizer, of which nothing but the keeping of parts is used.

    Gradients are rescaled, clipped and looked through outside it, and it is told where a backward begins and
    ends: so one backward serves several models, and an update has any number of micro-batches. Source:
    Rajbhandari et al. 2020 (arXiv:1910.02054).
    """

    is_trained = True
    is_split = True
    needs_rehearsal = False

    def __init__(
        self, module: nn.Module, build: Build, accelerator: Accelerator, options: ZeRO, world: DeepSpeedWorld
    ):
        module.to(accelerator.device)
        trained = trained_parameters(module)
        self.optimizer = build(trained)
        check_model(self.optimizer.model, module, self.optimizer.optimizer, options)
        self.parameters = dict(module.named_parameters())
        self.trained = list(trained.values())
        self.engine = build_engine(module, self.optimizer.optimizer, options)
        self.world = world
        self.mean_over = accelerator.num_processes
        world.joined()
        names: Names = {parameter: name for name, parameter in self.parameters.items()}
        stage = Slices if options.stage == 3 else Stretches
        self.stage: Stage = stage(self.engine.optimizer, names)
        self._take_own_optimizer()
        if options.half_parameters:
            module.register_forward_pre_hook(in_half, with_kwargs=True)
        # Never DeepSpeed's engine: it would begin and end a backward by itself, at every slope in the input.
        self.module = self.wrapped = module

    def train(self, on: bool) -> None:
        self.stage.release()
        for parameter in self.trained:
            parameter.requires_grad_(on)

    @contextmanager
    def accumulating(self, number: int, is_last: bool) -> Iterator[None]:
        """Gradients go over the ranks during the backward; of stage 1 after the last alone."""
        optimizer = self.engine.optimizer
        self.engine.set_gradient_accumulation_boundary(is_last)
        optimizer.clear_backward_seen_flag()
        optimizer.backward_prologue()
        optimizer.enter_backward()
        try:
            yield
            self._check_all_reached()
            self.engine.allreduce_gradients()
            optimizer.backward_epilogue()
        finally:
            optimizer.exit_backward()
            self.stage.release()

    def kept_whole(self) -> AbstractContextManager[Any]:
        """Stage 3 sees for itself where a backward is differentiated; the others have whole weights."""
        return nullcontext()

    def reduce(self) -> None:
        """It was done with each micro-batch."""

    def gradients(self) -> Named:
        named = list(self.stage.gradients())
        if (
            not named
        ):  # of a small model a rank may have nothing, and norms must be on one device all the same
            name = next(iter(self.stage.pieces))
            named = [(name, self._weight(name)[:0])]
        return named

    def weights(self) -> Named:
        return [(name, self._weight(name)) for name in self.parameters]

    def refresh(self) -> None:
        self.stage.refresh()

    def step(self, settings: Mapping[str, Any]) -> None:
        self.optimizer.set(settings)
        self.engine.optimizer.step()

    def clear(self) -> None:
        self.stage.clear()

    def size(self, name: str, part: Tensor) -> int:
        piece = self._piece(name, part)
        return part.nbytes if piece is None else piece.size * part.itemsize

    def whole(self, name: str, part: Tensor) -> Tensor:
        piece = self._piece(name, part)
        return part if piece is None else piece.joined(part)

    def part(self, name: str, whole: Tensor) -> Tensor:
        piece = self._piece(name, whole)
        return whole if piece is None else piece.cut(whole)

    def shape(self, name: str) -> tuple[int, ...]:
        piece = self.stage.piece(name, self.parameters[name])
        return tuple(self.parameters[name].shape) if piece is None else piece.shape

    def state(self) -> Iterator[tuple[str, str, Any]]:
        own = self.optimizer.optimizer.state
        for name, piece in self.stage.pieces.items():
            for key, value in own.get(self.stage.masters[piece.group], {}).items():
                if not isinstance(value, Tensor):
                    yield name, key, value
                else:  # no two in one memory, as what a group has in common would be
                    yield name, key, value.clone() if key in SINGLE else piece.of(value)

    @torch.no_grad()
    def restore(self, state: Mapping[str, dict[str, Any]]) -> None:
        if more := state.keys() - self.stage.pieces.keys():
            said = ", ".join(f"{self.optimizer.model}/{name}" for name in sorted(more)[:8])
            raise CheckpointError(f"optimizer state of parameters that the recipe lacks: {said}")
        optimizer = self.optimizer.optimizer
        settings = optimizer.param_groups[0]  # where a number lies, groups have alike
        for group, flat in enumerate(self.stage.masters):
            own = {name: piece for name, piece in self.stage.pieces.items() if piece.group == group}
            made = joined_state(self.optimizer.model, flat, own, state, settings)
            begin_buffers(optimizer, settings, made, flat)
            optimizer.state[flat] = made

    def close(self) -> None:
        self.engine.destroy()
        self.world.left()
        del self.engine, self.stage, self.optimizer, self.module, self.wrapped
        self.parameters, self.trained = {}, []

    def _take_own_optimizer(self) -> None:
        """Go on with the optimizer that DeepSpeed steps, as it makes Adagrad anew."""
        made = self.engine.optimizer.optimizer
        for group, said in zip(made.param_groups, self.optimizer.first, strict=True):
            group.update(said)
        self.optimizer.optimizer = made

    def _check_all_reached(self) -> None:
        """Raise LaunchError where a backward left parameters out: ZeRO would give them slopes of zero."""
        reached = self.engine.optimizer._hooks_fired_this_backward
        if reached != len(self.trained):
            raise LaunchError(
                f"{len(self.trained) - reached} of {len(self.trained)} parameters of {self.optimizer.model} "
                "took no part in the loss, and ZeRO would move them by their momentum all the same; freeze "
                "them, or train on one process"
            )

    def _weight(self, name: str) -> Tensor:
        """This rank's part of a parameter."""
        if name not in self.stage.pieces:
            return self.stage.frozen(self.parameters[name])
        piece = self.stage.pieces[name]
        return piece.of(self.stage.masters[piece.group])

    def _piece(self, name: str, tensor: Tensor) -> Piece | None:
        """How what belongs to a parameter is cut; None of what is whole: buffers, and single numbers."""
        if name not in self.parameters:
            return None
        piece = self.stage.piece(name, self.parameters[name])
        is_single = tensor.ndim == 0 and piece is not None and piece.shape != ()
        return None if is_single else piece


def in_half(
    module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a model in bf16 is given, in bf16 where it is fractions: a hook before its forward."""
    return tuple(map(_halved, inputs)), {key: _halved(value) for key, value in options.items()}


def _halved(value: Any) -> Any:
    is_fraction = isinstance(value, Tensor) and value.is_floating_point()
    return value.bfloat16() if is_fraction else value
