"""What DeepSpeed is told, and what it cannot do."""

import warnings
from typing import Any

import torch
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import distributed, nn

from dtrain.engines.elementwise import check_elementwise
from dtrain.errors import LaunchError
from dtrain.scale.tables import ZeRO


class Engine(DeepSpeedEngine):  # type: ignore[misc]  # DeepSpeed says nothing of types
    """DeepSpeed's own, but for how first weights go to all ranks: it cannot send a single number."""

    def _broadcast_model(self) -> None:
        for parameter in self.module.parameters():
            if not hasattr(parameter, "ds_id"):
                distributed.broadcast(parameter.data, 0)


def build_engine(module: nn.Module, optimizer: torch.optim.Optimizer, options: ZeRO) -> DeepSpeedEngine:
    """A DeepSpeed engine around a module, for its optimizer. Collective."""
    trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    told = configuration(options, trained, on_gpu=next(module.parameters()).is_cuda)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        engine = Engine(
            args=None, model=module, optimizer=optimizer, config=told, config_class=DeepSpeedConfig(told)
        )
    assert engine.gradient_clipping() == 0  # its default is 1, and its norms are not ours
    engine.optimizer.unregister_grad_acc_post_hooks()  # we say ourselves where a backward ends
    return engine


def configuration(options: ZeRO, trained: int, *, on_gpu: bool) -> dict[str, Any]:
    """What DeepSpeed is told for a model of which `trained` numbers are trained."""
    is_offloaded = {"device": "cpu", "pin_memory": options.pin_memory and on_gpu}
    zero: dict[str, Any] = {
        "stage": options.stage,
        "contiguous_gradients": True,
        "overlap_comm": options.overlap_comm,
        # Buckets are as large as they are said to be, however small the model is.
        "reduce_bucket_size": min(options.reduce_bucket_size, trained),
        "allgather_bucket_size": options.allgather_bucket_size,
    }
    if options.offload_optimizer:
        zero["offload_optimizer"] = is_offloaded
    elif options.stage < 3:
        zero["compute_grad_norm"] = False
    if options.stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": options.persistence_threshold,
            "stage3_prefetch_bucket_size": options.prefetch_bucket_size,
            "stage3_max_live_parameters": options.max_live_parameters,
            "stage3_max_reuse_distance": options.max_reuse_distance,
        }
        if options.offload_parameters:
            zero["offload_param"] = is_offloaded
    told: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # it asks for these two, and we say where an update ends
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "timers": {"throughput": {"enabled": False}},  # it would wait for the device in every forward
    }
    if options.half_parameters:
        told |= {
            "bf16": {"enabled": True, "check_grad_overflow": False},
            "data_types": {"grad_accum_dtype": "fp32"},
        }
    return told


def check_model(name: str, module: nn.Module, optimizer: torch.optim.Optimizer, options: ZeRO) -> None:
    """Raise LaunchError for what ZeRO would do otherwise than one process, or not at all."""
    place = f"ZeRO cannot train {name}: "
    check_elementwise(name, optimizer, "ZeRO")
    if isinstance(optimizer, torch.optim.Adagrad) and len(optimizer.param_groups) > 1:
        raise LaunchError(f"{place}DeepSpeed drops the groups of Adagrad; rmsprop would do, or no groups")
    parameters = dict(module.named_parameters())
    if options.stage == 3 and (single := [key for key, own in parameters.items() if own.ndim == 0]):
        raise LaunchError(
            f"{place}{single[0]} is a single number without a shape, which DeepSpeed cannot cut; "
            "shape (1,) would do, or stage 2"
        )
