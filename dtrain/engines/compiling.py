"""torch.compile of what phases minimise, or of models' repeated blocks."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from dtrain.engines.blocks import repeated
from dtrain.errors import LaunchError
from dtrain.scale.tables import Compile
from dtrain.systems.base import Loss, Models, Ops

Compute = Callable[[Models, Mapping[str, Any], Ops], Loss]
MOST = 64  # compilations of one function: of each kind of block, in training and not, of each size


class Compiling:
    """Compiles what a launch asks for: each phase's loss at its first update, or the models' blocks.

    Phases that take slopes inside their losses (a gradient penalty, R1) are left out: torch cannot take the
    slope of a slope of what it compiled (its AOTAutograd, 2.13).

    Raises LaunchError where a backend or its compiler is not there, or where no model has blocks.
    """

    def __init__(self, options: Compile | None, models: Mapping[str, nn.Module], device: torch.device):
        self.is_on = options is not None
        self.left_out: set[str] = set()  # labels of phases
        self.losses: dict[Compute, Compute] | None = None
        self.blocks: list[Block] = []
        if options is None:
            return
        check_compiler(options, device)
        self.compile = _compiler(options)
        if options.what == "losses":
            self.losses = {}
            return
        for block in (block for module in models.values() for _, block in repeated(module)):
            self.blocks.append(Block(block.forward, self.compile))
            block.forward = self.blocks[-1]
        if not self.blocks:
            said = "no model is made of repeated blocks, as transformers are"
            raise LaunchError(f'compile.what is "blocks", but {said}; "losses" would do')

    def leave_out(self, label: str, *, says: bool) -> None:
        """Compile nothing of a phase, which is said once."""
        if self.is_on and says:
            said = f"{label}: a slope inside its loss, which torch cannot compile; this phase stays as it is"
            warnings.warn(said, stacklevel=2)
        self.left_out.add(label)

    def of(self, loss: Compute, label: str) -> Compute:
        """What computes the loss of a phase."""
        if self.losses is None or label in self.left_out:
            return loss
        if loss not in self.losses:
            self.losses[loss] = self.compile(loss)
        return self.losses[loss]

    @contextmanager
    def blocks_of(self, label: str) -> Iterator[None]:
        """Inside, forward and backward of a phase, compiled blocks stand in; evaluation goes without.

        So a text that grows while it is drawn is not compiled at each length.
        """
        for block in self.blocks:
            block.is_compiled = label not in self.left_out
        try:
            yield
        finally:
            for block in self.blocks:
                block.is_compiled = False


class Block:
    """The forward of a block: compiled, or as it was."""

    def __init__(self, forward: Callable[..., Any], compiler: Callable[[Any], Any]):
        self.forward, self.compiled = forward, compiler(forward)
        self.is_compiled = False

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return (self.compiled if self.is_compiled else self.forward)(*inputs, **options)


def _compiler(options: Compile) -> Callable[[Any], Any]:
    # Noise from torch's own generators, as without compilation; in the backend's own they would be others.
    torch._inductor.config.fallback_random = True
    torch._dynamo.config.recompile_limit = MOST
    mode = None if options.backend != "inductor" or options.mode == "default" else options.mode
    return partial(torch.compile, backend=options.backend, mode=mode, dynamic=options.dynamic)


def check_compiler(options: Compile, device: torch.device) -> None:
    """Raise LaunchError where a backend is not there, or lacks the compiler that it needs."""
    there = torch._dynamo.list_backends(None)
    if options.backend not in there:
        raise LaunchError(f"compile.backend: there is no {options.backend!r}; torch has {', '.join(there)}")
    if options.backend != "inductor":
        return
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise LaunchError('compile.backend: "inductor" needs Triton on a GPU; pip install triton')
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        said = 'needs a C++ compiler on a CPU; apt-get install g++, or set CXX; or backend = "aot_eager"'
        raise LaunchError(f'compile.backend: "inductor" {said}') from None
