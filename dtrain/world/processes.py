"""Joining the other processes of a run and leaving them: what is done once, before and after training."""

import atexit
import gc
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedDataParallelKwargs
from torch import distributed
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]  # torch makes these names at import
from torch.distributed.distributed_c10d import _abort_process_group

from dtrain.errors import LaunchError
from dtrain.world.hub import listen
from dtrain.world.lookout import UNWINDING, Lookout
from dtrain.world.meeting import meet
from dtrain.world.world import World

_REWRITTEN = ("ACCELERATE_", "OMPI_COMM_WORLD_", "PMI_", "MPI_LOCAL", "MV2_COMM_WORLD_")


@contextmanager
def join(
    world: World, timeout: timedelta, lookout: Lookout, *, grouped: bool = False
) -> Iterator[Accelerator]:
    """Meet the other processes of `world`, and part from them in good order when the block ends well.

    `timeout` bounds each collective operation: a last resort, as the lookout ends a world that cannot go on.
    Late ranks are waited for twice its patience. After an exception the others are told, and not waited for.
    A world of one has no process group unless it is to be `grouped`. Raises LaunchError where this machine
    has fewer GPUs than processes, and where the ranks do not find each other.
    """
    torch.set_num_threads(world.threads)  # two threads a rank were 50 times slower than one on a busy machine
    on_cpu = world.cpu or not torch.cuda.is_available()
    if not on_cpu:
        _take_gpu(world)
    is_grouped = grouped or world.size > 1
    store = _meet(world, lookout) if world.size > 1 else HashStore()
    try:
        if is_grouped:
            distributed.init_process_group(
                "gloo" if on_cpu else "cuda:nccl,cpu:gloo",
                store=store,
                rank=world.rank,
                world_size=world.size,
                timeout=timeout,
            )
        accelerator = _open_accelerator(world, on_cpu)
        yield accelerator
        # DDP keeps the process group alive; gloo's threads then abort the interpreter on its way out in 10 to
        # 40 % of runs ("terminate called without an active exception", torch 2.13), unless DDP goes first.
        accelerator.free_memory()
        del accelerator
        gc.collect()
        if is_grouped:
            distributed.barrier()  # without it the first to leave cuts off those still reading its last words
            distributed.destroy_process_group()
        lookout.leave()
    except BaseException as error:
        try:
            lookout.failed(error)  # before the others see their connections to this process end
        finally:
            if distributed.is_initialized():
                _abort_process_group()  # destroying would wait for what NCCL still has to do with the others
        raise
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # or the next world would be this one
        GradientState._reset_state()


def leave(code: int) -> NoReturn:
    """End the process as the interpreter would, but without taking it apart: see the comment in `join`.

    After a failure, whatever other threads are about, in some seconds.
    """
    if code:
        giving_up = threading.Timer(UNWINDING, os._exit, (code,))
        giving_up.daemon = True
        giving_up.start()
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads and executors
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _take_gpu(world: World) -> None:
    gpus = torch.cuda.device_count()
    if world.local_size > gpus:
        raise LaunchError(
            f"{world.local_size} processes were started on a machine with {gpus} GPU{'s' * (gpus > 1)}, but "
            f"each needs its own; ask for {gpus}, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    torch.cuda.set_device(world.local_rank)


def _meet(world: World, lookout: Lookout) -> Store:
    """Meet the others, and look out from then on; return the store where all of them are."""
    is_one_machine = world.local_size == world.size or world.address in ("127.0.0.1", "localhost")
    if is_one_machine:  # gloo looks up its own host name, which in a container may lead nowhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    listener = listen(is_one_machine) if world.rank == 0 else None
    port = 0 if listener is None else listener.getsockname()[1]
    meeting = meet(world, 2 * lookout.patience, port)
    lookout.open(meeting, world.rank, listener, world.address)
    return meeting.store


def _open_accelerator(world: World, on_cpu: bool) -> Accelerator:
    # torch 2.13 renamed the argument; Accelerate 1.15 knows the old name only.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    kept = dict(os.environ)
    try:
        _rewrite_environment(world)
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="no",  # precision is the engine's
            # Two forwards of a model with buffers before one backward otherwise raise the in-place error.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    finally:
        os.environ.clear()
        os.environ.update(kept)
    found = (accelerator.num_processes, accelerator.process_index, accelerator.local_process_index)
    assert found == (world.size, world.rank, world.local_rank), f"Accelerate sees {found} instead of {world}"
    return accelerator


def _rewrite_environment(world: World) -> None:
    """Show Accelerate the world under the one set of names that it reads for CPUs and GPUs alike.

    What its launcher asks for beyond that (precision, compilation, accumulation) is the recipe's to say.
    """
    for name in list(os.environ):
        if name.startswith(_REWRITTEN) and name != "ACCELERATE_CPU_AFFINITY":
            del os.environ[name]
    numbers = {
        "RANK": world.rank,
        "WORLD_SIZE": world.size,
        "LOCAL_RANK": world.local_rank,
        "LOCAL_WORLD_SIZE": world.local_size,
    }
    for name, number in numbers.items():
        os.environ.pop(name, None)
        if world.size > 1:  # Accelerate opens a process group of one where it sees LOCAL_RANK
            os.environ[name] = str(number)
    os.environ["OMP_NUM_THREADS"] = str(world.threads)  # unset, Accelerate sets torch's threads, and warns
    os.environ.setdefault("MASTER_ADDR", world.address)  # unset, it refuses several machines
