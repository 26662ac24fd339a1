"""The templates filled in: a job on some machines, with some processes on each, of one engine."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dtrain.errors import DtrainError

LAST_WORDS = 20  # seconds of the grace that are left for launchers and scheduler once the ranks have ended
LABEL = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"  # what Kubernetes takes, as of RFC 1123; several stand between dots
TEMPLATES = Path(__file__).parent / "templates"

_ZERO = ("--use_deepspeed", "--deepspeed_multinode_launcher", "standard", "--zero_stage")
_ON_CPU = ("--offload_optimizer_device", "cpu", "--offload_param_device", "cpu")

# What `accelerate launch` is told of each engine: the same as by the file launch/NAME.yaml. "ddp" is left to
# torchrun, which starts one process as it starts several: Accelerate's way to start one hands no signal on.
ENGINES: Mapping[str, Sequence[str]] = {
    "ddp": (),
    "fsdp": ("--use_fsdp", "--fsdp_version", "2", "--fsdp_reshard_after_forward", "true"),
    "zero1": (*_ZERO, "1"),
    "zero2": (*_ZERO, "2"),
    "zero3": (*_ZERO, "3"),
    "zero3-offload": (*_ZERO, "3", *_ON_CPU),
}

_OF_ZERO = {"ACCELERATE_USE_DEEPSPEED": "true"}
_OF_OFFLOAD = {
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu",
}
# What these leave in the environment of the processes, of what chooses the engine.
LEAVES: Mapping[str, Mapping[str, str]] = {
    "ddp": {},
    "fsdp": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"},
    "zero1": {**_OF_ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
    "zero2": {**_OF_ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {**_OF_ZERO, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    "zero3-offload": {**_OF_ZERO, **_OF_OFFLOAD, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}


@dataclass(frozen=True)
class Job:
    """What all schedulers need to know."""

    name: str
    recipe: str  # as the command names it
    command: Sequence[str]  # after `python -m`: dtrain run ...
    nodes: int
    devices: int  # processes on each machine
    cores: int  # of each process
    cpu: bool  # no GPUs
    grace: int  # seconds from the signal to the end
    engine: Sequence[str]  # options of `accelerate launch`; none for torchrun

    def launcher(self, *, rank: str, address: str, port: str) -> str:
        """What a shell carries out on each machine, with $NODES and $DEVICES set, and the command after it.

        `rank` is how that shell calls the number of its machine, `address` and `port` where machine 0 is.
        """
        if not self.engine:
            size = 'torchrun --nnodes "$NODES" --nproc_per_node "$DEVICES"'
            return f'exec {size} --node_rank "{rank}" --master_addr "{address}" --master_port "{port}" "$@"'
        size = 'accelerate launch --num_machines "$NODES" --num_processes "$((NODES * DEVICES))"'
        where = f'--machine_rank "{rank}" --main_process_ip "{address}" --main_process_port "{port}"'
        return f'exec {size} {where} {shlex.join(self.engine)} "$@"'


def fill(template: str, values: Mapping[str, str | int]) -> str:
    """The text of a template with values in place of `{{name}}`; a line that is one of them may fall away."""
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines(keepends=True):
        found = re.fullmatch(r" *\{\{(\w+)\}\}\n", line)
        if found and not values[found[1]]:
            continue  # a line that only some jobs have
        lines.append(re.sub(r"\{\{(\w+)\}\}", lambda name: str(values[name[1]]), line))
    return "".join(lines)


def slurm(job: Job, *, time: str, options: Sequence[str], before: Sequence[str]) -> str:
    """A script for sbatch; `options` are more of its own, `before` is what makes dtrain available."""
    return fill(
        "slurm.sbatch",
        {
            **_common(job),
            "gpus": "" if job.cpu else f"#SBATCH --gpus-per-node={job.devices}",
            "devices": job.devices if job.cpu else "$SLURM_GPUS_ON_NODE",
            "device_option": "DEVICES below (processes" if job.cpu else "--gpus-per-node (processes",
            "time": time,
            "options": "\n".join(f"#SBATCH {option}" for option in options),
            "before": "\n".join(before),
            "launcher": shlex.quote(
                job.launcher(rank="$SLURM_NODEID", address="$MASTER_ADDR", port="$MASTER_PORT")
            ),
            "command": shlex.join(["-m", *job.command]),
        },
    )


def slurm_array(
    name: str,
    recipe: str,
    command: Sequence[str],
    *,
    tasks: int,
    time: str,
    output: str,
    options: Sequence[str],
    before: Sequence[str],
) -> str:
    """A script for sbatch of so many tasks that carry out one command side by side: a sweep."""
    return fill(
        "sweep.sbatch",
        {
            "what": f"A sweep of {recipe}, {tasks} trial{'s' * (tasks > 1)} at a time",
            "name": name,
            "last": tasks - 1,
            "time": time,
            "output": output,
            "options": "\n".join(f"#SBATCH {option}" for option in options),
            "before": "\n".join(before),
            "command": shlex.join(command),
        },
    )


def kubernetes(job: Job, *, kind: str, image: str, claim: str, restarts: int) -> str:
    """A JobSet or a TrainJob; recipe, data and runs lie on the volume that is claimed.

    Raises DtrainError for names that Kubernetes would not take.
    """
    if len(claim) > 253 or not re.fullmatch(rf"{LABEL}(\.{LABEL})*", claim):
        raise DtrainError(
            f"--claim {claim!r} cannot be the name of a PersistentVolumeClaim; small letters, digits and "
            "dashes inside (RFC 1123) would do"
        )
    if not re.fullmatch(r"[A-Za-z0-9][\w./:@-]*", image, re.ASCII):
        raise DtrainError(f"--image {image!r} cannot be that of a container; registry/name:tag would do")
    job = replace(job, name=host_name(job.name))
    if kind == "trainjob":
        machine = {"rank": "$PET_NODE_RANK", "address": "$PET_MASTER_ADDR", "port": "$PET_MASTER_PORT"}
    else:
        machine = {"rank": "$JOB_COMPLETION_INDEX", "address": f"{job.name}-machine-0-0.{job.name}"}
        machine["port"] = "29500"
    return fill(
        f"{kind}.yaml",
        {
            **_common(job),
            "image": json.dumps(image),
            "claim": json.dumps(claim),
            "restarts": restarts,
            "devices": job.devices,
            "limits": "" if job.cpu else f"limits: {{nvidia.com/gpu: {job.devices}}}",
            "command": json.dumps(["bash", "-c", f"cd /work && {job.launcher(**machine)}", "launch"]),
            "arguments": json.dumps(["-m", *job.command]),
        },
    )


def _common(job: Job) -> dict[str, str | int]:
    processes = f"{job.nodes * job.devices} process{'es' * (job.nodes * job.devices > 1)}"
    machines = f"{job.nodes} machine{'s' * (job.nodes > 1)}"
    return {
        "name": job.name,
        "what": " ".join(f"{job.recipe}: {processes} on {machines}".split()),
        "nodes": job.nodes,
        "cores": job.devices * job.cores,
        "grace": job.grace,
        "patience": job.grace - LAST_WORDS,
    }


def host_name(name: str) -> str:
    """A name as Kubernetes takes one for a host: a recipe may be called otherwise. Raises DtrainError."""
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not found or len(found) > 40 or found[0].isdigit():
        raise DtrainError(
            f"{name!r} cannot be the name of a job of Kubernetes; --name with at most 40 letters, digits and "
            "dashes, the first a letter, would do"
        )
    return found
