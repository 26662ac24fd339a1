"""A real Slurm of two machines on this one: munged, slurmctld and two slurmd, in a folder of their own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")

# Two slurmd under names of their own, the first of which leads here, each with a GPU in name alone.
# GraceTime and KillWait: seconds from SIGTERM to SIGKILL, of a job that is preempted and one that is ended.
# cred_expire: a job that queues itself again waits as long, and Slurm's own 120 s are too long for a test.
CONFIG = """\
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmctldPort={controller}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=1,sched_interval=1
SchedulerTimeSlice=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=30
MinJobAge=600
InactiveLimit=0
GresTypes=gpu
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 Gres=gpu:1 State=UNKNOWN
NodeName={host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 Gres=gpu:1 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF
"""


def missing() -> str:
    """Why no cluster can be had here; empty if one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"no {', '.join(absent)} here (Debian: apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "only root may run a Slurm of its own"


@dataclass(frozen=True)
class Cluster:
    """The commands of a user of it."""

    folder: Path

    def call(self, *command: str, stdin: str = "", environment: Mapping[str, str] | None = None) -> str:
        """What a command of Slurm prints; it must end with 0."""
        ended = self.ended(command, stdin, {} if environment is None else environment)
        assert ended.returncode == 0, f"{command}: {ended.stderr}"
        return ended.stdout

    def ended(
        self, command: Sequence[str], stdin: str, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """A command when it has ended."""
        return subprocess.run(
            command,
            input=stdin,
            env={**os.environ, **self.variables, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def is_idle(self) -> bool:
        """Whether all machines have said that they are there and have nothing to do."""
        ended = self.ended(["sinfo", "-hN", "-p", "low", "-o", "%T"], "", {})
        return ended.stdout == "idle\n" * 2

    @property
    def variables(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job: JobState, Restarts, ..."""
        said = self.call("scontrol", "show", "job", number, "--oneliner")
        return dict(word.split("=", 1) for word in said.split() if "=" in word)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start it, wait until both machines are idle, and end it with all that it started."""
    host = socket.gethostname()
    controller, first, second = _free_ports(3)
    config = CONFIG.format(folder=folder, host=host, controller=controller, first=first, second=second)
    (folder / "slurm.conf").write_text(config)
    (folder / "gres.conf").write_text(f"NodeName={host},{host}-2 Name=gpu File=/dev/null\n")
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    made = Cluster(folder)
    with ExitStack() as stack:
        for name, command in {
            "munged": munge,
            "slurmctld": ["slurmctld", "-D"],
            "slurmd.first": ["slurmd", "-D", "-N", host],
            "slurmd.second": ["slurmd", "-D", "-N", f"{host}-2"],
        }.items():
            stack.enter_context(_running(name, command, made))
            if name == "munged":
                wait_for((folder / "munge.socket").exists, seconds=10, what="munged")
        wait_for(made.is_idle, seconds=60, what="both machines are idle")
        try:
            yield made
        finally:
            made.ended(["scancel", "--user=root", "--signal=KILL", "--full"], "", {})


@contextmanager
def _running(name: str, command: Sequence[str], made: Cluster) -> Iterator[None]:
    environment = {**os.environ, **made.variables}
    with (made.folder / f"{name}.said").open("wb") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=environment, cwd=made.folder
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(happened: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Wait until something has happened. Raises TimeoutError that says what did not."""
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {seconds} s: {what}")
        time.sleep(0.1)


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin"


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
