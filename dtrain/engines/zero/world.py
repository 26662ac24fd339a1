"""DeepSpeed among the processes of a run: how it is met, kept quiet, and left."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from dtrain.errors import LaunchError


class DeepSpeedWorld:
    """DeepSpeed in this process, from the first model that it keeps to the last."""

    def __init__(self, device: torch.device, local_rank: int, local_size: int):
        """Import DeepSpeed for a device of this machine, and let it join the process group that is open.

        Raises LaunchError where it cannot be had.
        """
        try:
            # Or it guesses, and warns of what it found.
            with variables(DS_ACCELERATOR=device.type), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import deepspeed
        except ImportError as error:
            raise LaunchError(
                f"DeepSpeed cannot be imported here ({error}); it is for Linux: pip install deepspeed"
            ) from error
        _leave()  # where a run ended in the middle, it is still there
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # Otherwise it compiles C++ for a minute, of use in inference alone.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, dist_init_required=False)
        # torch 2.13 has renamed what it calls.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+_tensor` is deprecated", FutureWarning)
        self.models = 0
        # What it looks up in the middle of a step. On CPUs it would start a program to count them, each time.
        self.told = ExitStack()
        self.told.enter_context(variables(LOCAL_RANK=str(local_rank), LOCAL_SIZE=str(local_size)))

    def joined(self) -> None:
        """One more model is kept."""
        self.models += 1

    def left(self) -> None:
        """One less is; with the last of them, undo what DeepSpeed did to this process."""
        self.models -= 1
        if not self.models:
            self.told.close()
            _leave()


def _leave() -> None:
    """Forget the process group, which is not DeepSpeed's to destroy, and put back torch's own `linear`."""
    from deepspeed.comm import comm
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses
    from deepspeed.utils import groups

    comm.cdb = None
    groups._release_process_group_references()
    parameter_offload.FWD_MODULE_STACK.clear()
    own_linear = getattr(InsertPostInitMethodToModuleSubClasses, "linear_bk", None)
    if own_linear is not None:
        torch.nn.functional.linear = own_linear


@contextmanager
def variables(**wanted: str) -> Iterator[None]:
    """Environment variables for a while."""
    kept = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
