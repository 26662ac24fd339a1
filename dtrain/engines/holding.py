"""The way to keep models that a launch asks for."""

from functools import partial

from accelerate import Accelerator

from dtrain.engines.held import Hold
from dtrain.engines.scale import DDP, FSDP, Parallel
from dtrain.errors import LaunchError


def hold(parallel: Parallel, accelerator: Accelerator) -> Hold:
    """What keeps a model among these ranks."""
    # Imports of what is not asked for would cost seconds.
    if isinstance(parallel, DDP):
        from dtrain.engines.replicated import Replicated

        return partial(Replicated, accelerator=accelerator)
    if isinstance(parallel, FSDP):
        from torch.distributed.device_mesh import init_device_mesh

        from dtrain.engines.sharded import Sharded

        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        return partial(Sharded, mesh=mesh, options=parallel)
    raise LaunchError(f"dtrain has no engine {parallel.kind} yet")
