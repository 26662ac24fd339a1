"""The way to keep models that a launch asks for."""

from functools import partial

from accelerate import Accelerator

from dtrain.engines.held import Hold
from dtrain.scale.tables import DDP, FSDP, Parallel, ZeRO


def hold(parallel: Parallel, accelerator: Accelerator, *, lanes: int | None, local_size: int) -> Hold:
    """What keeps a model among these ranks, of which `local_size` are on this machine.

    With `lanes`, which only whole models have, gradients are added up in them.
    """
    # Imports of what is not asked for would cost seconds.
    if lanes is not None:
        from dtrain.engines.lanes import InLanes

        assert isinstance(parallel, DDP)
        return partial(InLanes, accelerator=accelerator, lanes=lanes)
    if isinstance(parallel, DDP):
        from dtrain.engines.replicated import Replicated

        return partial(Replicated, accelerator=accelerator, options=parallel)
    if isinstance(parallel, FSDP):
        from torch.distributed.device_mesh import init_device_mesh

        from dtrain.engines.sharded import Sharded

        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        return partial(Sharded, mesh=mesh, options=parallel)
    assert isinstance(parallel, ZeRO)
    from dtrain.engines.zero.world import DeepSpeedWorld

    # First: it says for which device DeepSpeed is imported.
    world = DeepSpeedWorld(accelerator.device, accelerator.local_process_index, local_size)
    from dtrain.engines.zero.held import hold_by_zero

    return partial(hold_by_zero, accelerator=accelerator, options=parallel, world=world)
