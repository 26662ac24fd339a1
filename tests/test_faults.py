"""Planted faults: the first message names rank and cause, all ranks end within a minute, no process stays."""

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import launching
import psutil
import pytest
from conftest import Life, start
from faulty import write

pytestmark = pytest.mark.alone

LONGEST = 60  # seconds from the fault to the end of all
STARTING = 120  # seconds until the fault, on a busy machine
SOON = 8  # seconds of patience
MARK = "gone-wrong"  # the file that is made at that moment
AT_ONCE = 3  # worlds
TIMES = 5 if "DTRAIN_TEST_LONG" in os.environ else 1


@dataclass(frozen=True)
class Plan:
    """A fault on one of some ranks, and the first that must be said: after "dtrain: "."""

    name: str
    says: str
    fault: str = "none"
    rank: int = 1
    status: int = 1
    world: int = 3
    absent: int | None = None  # a rank that is never started
    workers: int | None = None  # the data has the fault, and so many workers fetch it
    recipe: Sequence[str] = ()  # overrides
    module: str = "faulty"  # of the system; on that rank alone one letter is another
    examples: int = 18  # of that rank alone
    overrides: Sequence[str] = ()  # the same
    environment: Mapping[str, str] = field(default_factory=dict)  # the same
    port_in_use: bool = False
    engine: str = '"ddp"'
    traceback: str = ""  # what its last line, or its stack, has

    @property
    def hang_timeout(self) -> int:
        """Short where it is waited for; it bounds, twice, how late a rank may come on a busy machine."""
        if self.absent is not None or self.port_in_use:
            return SOON // 2
        return SOON if self.fault in ("hang", "lock", "stop") else 30


HERE = r"step 4, phase left \(left\), update 3, "
LOSS, DATA = f"{HERE}forward and backward", f"{HERE}waiting for its data"
KILLED = r"; it was killed \(SIGKILL"
FAILING = 'evaluate.metrics.failing={ kind = "faulty_metric:Failing", rank = 1 }'
PLANS = [
    Plan("exception", rf"rank 1 .* failed in {LOSS}: ZeroDivisionError: this rank", "exception"),
    Plan("exception of rank 0", rf"rank 0 .* failed in {LOSS}: ZeroDivisionError", "exception", 0),
    Plan("sys.exit", rf"rank 1 .* failed in {LOSS}: SystemExit: 0", "exit"),
    Plan("interrupt", rf"rank 1 .* failed in {LOSS}: it was interrupted", "interrupt", status=130),
    Plan("out of memory", rf"rank 1 .* failed in {LOSS}: it ran out of memory \(RuntimeError", "memory"),
    Plan("not a number", r"step 4, .*the loss .* is nan \(micro-batch 1, of rank 1\)", "nan", status=2),
    Plan("evaluation", "rank 1 .* failed in .*evaluating.*: ArithmeticError: this rank cannot", "evaluate"),
    Plan("metric", "rank 1 .* failed in .*: this rank cannot measure", recipe=[FAILING], status=2),
    Plan("saving", r".* cannot be written \(rank 1: .*\); earlier checkpoints", "files", status=2),
    Plan("hang", rf"rank 1 .* hangs in {LOSS}: no move for \d+ s", "hang", traceback="time.sleep(1000)"),
    Plan("hang of rank 0", rf"rank 0 .* hangs in {LOSS}", "hang", 0, traceback="time.sleep(1000)"),
    Plan("FSDP", f"rank 1 .* hangs in {LOSS}", "hang", engine='"fsdp"', world=2),
    Plan("ZeRO", f"rank 1 .* in {LOSS}: Zero", "exception", engine='"zero", stage = 3', world=2),
    Plan("lock", r"rank 1 .* gave no sign of life for \d+ s, .* its process is sleeping", "lock"),
    Plan("SIGSTOP", r"rank 1 .* gave no sign of life for \d+ s, .*stopped \(SIGSTOP\)", "stop"),
    Plan("SIGSTOP of rank 0", r"rank 0 .* gave no sign of life for .*stopped \(SIGSTOP\)", "stop", 0),
    Plan("SIGKILL", f"rank 1 .* ended without a word in .*{KILLED}", "kill"),
    Plan("SIGKILL of rank 0", f"rank 0 .* ended without a word in .*{KILLED}", "kill", 0),
    Plan("data hang", f"rank 1 .* hangs in {DATA}", "hang", workers=0, traceback="time.sleep(1000)"),
    Plan("worker hangs", f"rank 1 .* hangs in {DATA}", "hang", workers=1, traceback="in go_wrong"),
    Plan("worker killed", "rank 1 .* a data worker was killed by SIGKILL", "kill", workers=1, status=2),
    Plan(
        "recipe",
        r"rank 1 \(host .*\) differs from rank 0 .*: recipe train.batch_size: 12 instead of 6\n",
        overrides=["train.batch_size=12"],
        status=2,
    ),
    Plan(
        "data",
        "rank 1 .* differs from rank 0 .*: data examples: 24 instead of 18",
        examples=24,
        status=2,
    ),
    Plan(
        "code",
        "rank 1 .* differs from rank 0 .*: code own_faulty: ",
        module="own_faulty",
        status=2,
    ),
    Plan(
        "world size",
        r"rank 1 \(host .*\) was started in a world of 4 processes, and rank 0 in one of 3",
        environment={"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"},
        status=2,
    ),
    Plan("rank twice", "two processes say that they are rank 1", rank=2, environment={"RANK": "1"}, status=2),
    Plan("absent", r"rank 2 of 3 did not come to 127.0.0.1:\d+ within \d+ s", absent=2, status=2),
    Plan("unreachable", r"rank 1: rank 0 cannot be reached at 127.0.0.1:\d+ \(", absent=0, world=2, status=2),
    Plan("port in use", r"port \d+ of 127.0.0.1 is in use by another program", port_in_use=True, status=2),
]


@dataclass(frozen=True)
class Ended:
    """What is left of a world."""

    codes: Sequence[int | None]  # None of a process that did not end
    said: Sequence[str]  # by rank
    orphans: Sequence[int]
    seconds: float


def begin(plan: Plan, folder: Path, port: int) -> list[Life]:
    """Start the ranks of a plan, as torchrun would."""
    lives, mark = [], {"FAULT_MARK": str(folder / MARK)}
    for rank in range(plan.world):
        if rank == plan.absent:
            continue
        is_it = rank == plan.rank
        home = folder / f"rank-{rank}"
        recipe = write(
            home,
            fault=plan.fault,
            rank=plan.rank,
            module=plan.module,
            workers=plan.workers,
            examples=plan.examples if is_it else 18,
        )
        own = f"from faulty import Faulty as Base\n\nclass Faulty(Base):\n    is_it = {is_it}\n"
        (home / "own_faulty.py").write_text(own)
        size = str(plan.world)
        world = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | (plan.environment if is_it else {})
        overrides = [*plan.recipe, *(plan.overrides if is_it else ())]
        (home / "scale.toml").write_text(f"engine = {{ kind = {plan.engine} }}")
        options = ["--runs", str(folder / "runs"), "--hang-timeout", str(plan.hang_timeout)]
        options += ["--scale", str(home / "scale.toml")]
        lives.append(
            start("run", recipe, *overrides, *options, log=folder / f"log.{rank}", environment=world | mark)
        )
    return lives


def carry_out(plan: Plan, folder: Path) -> Ended:
    """Start a plan's world and wait for its end; what is left of it is then ended."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        if plan.port_in_use:
            taken.listen()
        else:
            taken.close()
        folder.mkdir(exist_ok=True)
        since, limit = time.monotonic(), STARTING
        lives = begin(plan, folder, port)
        family: set[psutil.Process] = set()
        while any(life.process.is_alive() for life in lives) and time.monotonic() - since < limit:
            if limit == STARTING and (folder / MARK).exists():
                since, limit = time.monotonic(), LONGEST
            for life in lives:
                with suppress(psutil.NoSuchProcess):
                    family |= {*psutil.Process(life.process.pid).children(recursive=True)}
            time.sleep(0.2)
        seconds = time.monotonic() - since
        codes = [life.end(0) for life in lives]
        for life in lives:
            life.kill()
    _, orphans = psutil.wait_procs(family, timeout=5)
    for orphan in orphans:
        orphan.kill()
    return Ended(codes, [life.said for life in lives], [orphan.pid for orphan in orphans], seconds)


@pytest.fixture(scope="module")
def ended(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[Ended]]]:
    """The ends of those plans that are asked for, some carried out at once: most of the time they wait."""
    asked = {
        item.callspec.params["plan"].name for item in request.session.items if "ended" in item.fixturenames
    }
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            plan.name: pool.submit(carry_out, plan, tmp_path_factory.mktemp("fault"))
            for plan in PLANS
            if plan.name in asked
        }


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_the_first_message_names_the_rank_and_the_cause(
    plan: Plan, ended: Mapping[str, Future[Ended]], tmp_path: Path
) -> None:
    assert_told(plan, ended[plan.name].result())
    for number in range(1, TIMES):
        assert_told(plan, carry_out(plan, tmp_path / str(number)))


ELASTIC = [*launching.TORCHRUN, "--standalone", "--nproc_per_node", "2", "-m"]
OF_ACCELERATE = [*launching.ACCELERATE, "--config_file", "launch/cpu-2.yaml", "-m"]


@pytest.mark.parametrize(
    ("launcher", "fault", "says"),
    [
        (ELASTIC, "exception", f"rank 1 .* failed in {LOSS}: ZeroDivisionError: this rank"),
        (ELASTIC, "kill", f"rank 1 .* ended without a word in .*{KILLED}"),
        (OF_ACCELERATE, "hang", f"rank 1 .* hangs in {LOSS}"),
    ],
    ids=["torchrun, exception", "torchrun, SIGKILL", "accelerate, hang"],
)
def test_a_launcher_that_ends_the_others_leaves_the_first_message(
    launcher: list[str], fault: str, says: str, tmp_path: Path
) -> None:
    recipe, tests = write(tmp_path, fault=fault, rank=1), str(Path(__file__).parent)
    options = ["--runs", str(tmp_path / "runs"), "--hang-timeout", str(SOON)]
    environment = {
        "FAULT_MARK": str(tmp_path / MARK),
        "PYTHONPATH": os.pathsep.join([str(launching.ROOT), tests]),
        "ACCELERATE_USE_CPU": "true",
    }
    command = [*launcher, "dtrain", "run", str(recipe), *options]
    with launching.start(command, environment) as started:
        family = set()
        until = time.monotonic() + STARTING + LONGEST
        while started.poll() is None and time.monotonic() < until:
            with suppress(psutil.NoSuchProcess):
                family |= {*psutil.Process(started.pid).children(recursive=True)}
            time.sleep(0.2)
        started.kill()
        said = "" if started.stderr is None else started.stderr.read()
    ours = [line for line in said.splitlines() if line.startswith("dtrain: ")]
    assert ours, said
    assert re.match(f"dtrain: {says}", ours[0]), said
    assert started.returncode == 1
    assert psutil.wait_procs(family, timeout=5)[1] == []


def assert_told(plan: Plan, found: Ended) -> None:
    """One rank at least says who and why before all else, and no other says otherwise."""
    shown = "\n--\n".join([*found.said, f"{found.codes} after {found.seconds:.1f} s"])
    print(shown)
    firsts = [text for text in found.said if re.match(rf"dtrain: {plan.says}", text)]
    assert firsts, shown
    assert plan.traceback in firsts[0], shown
    assert sum("Traceback" in text for text in found.said) <= 1, shown
    assert None not in found.codes, shown
    assert found.orphans == []
    by_itself = [code for code in found.codes if code is not None and code >= 0]  # not by a signal
    assert by_itself
    assert set(by_itself) == {plan.status}, shown
