"""Every way to start dtrain gives the world asked for, or is refused; nothing outlives its launcher."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GAN, written
from launching import (
    ACCELERATE,
    PROGRAM,
    ROOT,
    TORCHRUN,
    launch,
    launch_ranks,
    read_pids,
    start,
    survivors,
    wait,
)

import dtrain
from dtrain.errors import LaunchError
from dtrain.recipe.values import Train
from dtrain.world.launcher import contradictions
from dtrain.world.world import read_world

pytestmark = pytest.mark.alone

ELASTIC = [*TORCHRUN, "--standalone", "--nproc_per_node", "2"]

TORCHELASTIC = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE"
OPEN_MPI = " ".join(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
MPICH = "PMI_RANK PMI_SIZE MPI_LOCALRANKID MPI_LOCALNRANKS"
SLURM = "SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID SLURM_STEP_TASKS_PER_NODE"


def ranks(size: int, names: str) -> list[dict[str, str]]:
    """The variables of each process of a world on this machine, with a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    values = [(str(rank), str(size)) * 2 for rank in range(size)]
    return [{"MASTER_PORT": port, **dict(zip(names.split(), each, strict=True))} for each in values]


@pytest.mark.parametrize(
    ("launcher", "name"),
    [
        ([*ACCELERATE, "--config_file", "launch/cpu-2.yaml", "--mixed_precision", "bf16"], "accelerate"),
        (ELASTIC, "torchrun"),
    ],
    ids=["cpu-2.yaml", "torchrun"],
)
def test_two_processes_of_a_launcher_train_together(launcher: list[str], name: str) -> None:
    ended = wait([launch(launcher, "train")])
    assert ended.code == 0, ended.errors
    assert [seen["rank"] for seen in ended.seen] == [0, 1]
    for seen in ended.seen:
        assert (seen["launcher"], seen["size"]) == (name, 2)
        assert seen["accelerate"] == [2, seen["rank"]]
        assert seen["gradient"] == 1.5  # the mean over ranks of rank + 1
        assert list(seen["asked"]) == (["mixed_precision"] if name == "accelerate" else [])
        assert seen["mixed_precision"] == "no"
        assert seen["torch_threads"] == 1


def test_the_number_of_processes_is_the_one_asked_for() -> None:
    forms = [["--multi_gpu", "--main_process_port", "0"], ["--config_file", "launch/ddp.yaml"]]
    for started in [launch([*ACCELERATE, *form, "--num_processes", "3"], "read") for form in forms]:
        ended = wait([started])
        assert ended.code == 0, ended.errors
        assert [(seen["rank"], seen["size"]) for seen in ended.seen] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("names", [OPEN_MPI, MPICH, SLURM], ids=["openmpi", "mpich", "slurm"])
def test_ranks_of_mpirun_and_srun_are_read(names: str) -> None:
    worlds = [read_world(each) for each in ranks(3, names)]
    assert [(world.rank, world.size, world.local_rank) for world in worlds] == [(n, 3, n) for n in range(3)]
    assert {world.launcher for world in worlds} == {"srun" if names == SLURM else "mpirun"}


@pytest.fixture
def cached(tmp_path: Path) -> str:
    """A home of Accelerate whose `accelerate config` has asked for two processes on the CPU."""
    folder = tmp_path / "accelerate"
    folder.mkdir()
    text = (
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\n"
    )
    (folder / "default_config.yaml").write_text(text)
    return str(tmp_path)


def test_another_world_than_the_one_asked_for_is_refused(cached: str) -> None:
    file = str(Path(cached, "accelerate", "default_config.yaml"))
    here = ["--main_process_ip", "127.0.0.1", "--main_process_port", "29511"]
    two = "asks for 2 processes, but Accelerate started 1"
    cases = [  # options, where Accelerate keeps its cached file, what the message says
        (["--cpu", "--num_processes", "2"], "/nonexistent", f"`accelerate launch` {two}"),
        (["--num-processes=2"], "/nonexistent", f"`accelerate launch` {two}"),
        (["--cpu", "--num_machines", "2", *here], "/nonexistent", f"`accelerate launch` {two}"),
        (["--config_file", file], "/nonexistent", f"{file} {two}"),
        ([], cached, f"{file} {two}"),
    ]
    started = [launch([*ACCELERATE, *options], "read", HF_HOME=home) for options, home, _ in cases]
    for process, (_, _, message) in zip(started, cases, strict=True):
        ended = wait([process])
        assert ended.code != 0
        assert ended.seen == []
        assert f"LaunchError: {message}" in ended.errors
        assert "launch/cpu-2.yaml" in ended.errors or "launch/ddp.yaml" in ended.errors


def test_options_of_the_program_are_not_the_launchers() -> None:
    folders = os.pathsep.join([str(ROOT), str(PROGRAM.parent)])
    program = ["-m", "launching", "train", "--num_processes", "2"]
    ended = wait([start([*ACCELERATE, "--cpu", *program], {"PYTHONPATH": folders})])
    assert ended.code == 0, ended.errors
    assert [(seen["launcher"], seen["size"], seen["cpu"]) for seen in ended.seen] == [("accelerate", 1, True)]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "not set: LOCAL_RANK, LOCAL_WORLD_SIZE"),
        ({**ranks(2, TORCHELASTIC)[0], "RANK": "2"}, "RANK=2, WORLD_SIZE=2"),
        ({**ranks(2, TORCHELASTIC)[0], "RANK": "one"}, "RANK is 'one'"),
        ({**ranks(2, SLURM)[0], "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, "MASTER_ADDR is not set"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_contradictions_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError) as caught:
        read_world(environment)
    assert message in str(caught.value)


def test_what_the_launcher_asks_for_is_read_with_its_source(tmp_path: Path) -> None:
    settings = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 1\n"
    settings += "mixed_precision: fp16\ndeepspeed_config:\n  gradient_clipping: 0.5\n"
    file = tmp_path / "accelerate" / "default_config.yaml"
    file.parent.mkdir()
    file.write_text(settings)
    variable = "the environment variable ACCELERATE_MIXED_PRECISION is"
    of_file = [f"{variable} fp16, by {file}", f"{file} says gradient_clipping 0.5"]
    steps = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    cases: list[tuple[list[str], dict[str, str], list[str]]] = [
        (["--mixed_precision", "bf16"], {}, [f"{variable} bf16, by the option --mixed_precision of `acc"]),
        (["--mixed_precision=no"], {}, []),
        (["--config_file", str(file)], {}, of_file),
        ([], {"HF_HOME": str(tmp_path)}, of_file),
        (["--mixed-precision", "no", "--config_file", str(file)], {}, of_file[1:]),
        (["--gradient_accumulation_steps", "2"], {}, ["the option --gradient_accumulation_steps of `acc"]),
        ([], {steps: "4"}, [f"the environment variable {steps} is 4"]),
    ]
    started = [launch([*ACCELERATE, *options], "read", **environment) for options, environment, _ in cases]
    for process, (_, _, said) in zip(started, cases, strict=True):
        ended = wait([process])
        assert ended.code == 0, ended.errors
        (seen,) = ended.seen
        found = [asked["said"] for asked in seen["asked"].values()]
        assert [text[: len(start)] for text, start in zip(found, said, strict=True)] == said


@pytest.mark.parametrize(
    ("size", "variable", "value", "keys"),
    [
        (1, "MIXED_PRECISION", "no", []),
        (1, "MIXED_PRECISION", "BF16", []),
        (1, "MIXED_PRECISION", "fp16", ["train.precision"]),
        (1, "MIXED_PRECISION", "fp8", ["train.precision"]),
        (1, "GRADIENT_ACCUMULATION_STEPS", "1", []),
        (1, "GRADIENT_ACCUMULATION_STEPS", "auto", []),
        (1, "GRADIENT_ACCUMULATION_STEPS", "4", []),
        (2, "GRADIENT_ACCUMULATION_STEPS", "2", []),
        (2, "GRADIENT_ACCUMULATION_STEPS", "4", ["train.micro_batch_size"]),
        (1, "GRADIENT_CLIPPING", "none", []),
        (1, "GRADIENT_CLIPPING", "1.0", ["optimizers.critic.clip"]),
        (1, "GRADIENT_CLIPPING", "2", ["optimizers.actor.clip", "optimizers.critic.clip"]),
    ],
)
def test_a_recipe_and_its_launcher_agree(size: int, variable: str, value: str, keys: list[str]) -> None:
    world = read_world({f"ACCELERATE_{variable}": value})
    train = Train(steps=1, batch_size=32, micro_batch_size=8, precision="bf16")
    found = list(contradictions(train, {"actor": 1.0, "critic": None}, size, world.asked))
    assert [error.key for error in found] == keys
    for error in found:
        assert f"in the recipe, but the environment variable ACCELERATE_{variable} is {value};" in str(error)
        assert str(error).endswith("; make them agree, or leave it out there")


def test_a_number_of_the_launcher_that_is_none_is_refused() -> None:
    asked = read_world({"ACCELERATE_GRADIENT_CLIPPING": "much"}).asked
    with pytest.raises(LaunchError, match="GRADIENT_CLIPPING is much, which is not a number"):
        list(contradictions(Train(steps=1, batch_size=1), {"actor": None}, 1, asked))


def test_a_script_is_refused_where_its_launcher_says_otherwise(
    tmp_path: Path, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    recipe = dtrain.load(written(tmp_path, "gan.toml", GAN))
    with pytest.raises(dtrain.errors.RecipeError, match=r"^train\.precision: is fp32 in the recipe, but"):
        dtrain.setup(recipe, runs=tmp_path)


def test_a_run_is_refused_where_its_launcher_says_otherwise(tmp_path: Path) -> None:
    recipe = written(tmp_path, "gan.toml", GAN)
    options = ["--cpu", "--mixed_precision", "bf16", "-m"]
    ended = wait([start([*ACCELERATE, *options, "dtrain", "run", str(recipe), "--runs", str(tmp_path)], {})])
    assert ended.code != 0
    assert "train.precision: is fp32 in the recipe, but the environment variable" in ended.errors
    assert "ACCELERATE_MIXED_PRECISION is bf16, by the option --mixed_precision of" in ended.errors
    assert not (tmp_path / "tiny-gan").exists()


def test_a_mistake_is_said_before_the_launcher_ends_all(tmp_path: Path) -> None:
    gan = str(written(tmp_path, "gan.toml", GAN))
    for _ in range(3):
        ended = wait([start([*ELASTIC, "-m", "dtrain", "run", gan, "train.stepz=10"], {})])
        assert ended.code != 0
        assert ended.errors.count("train.stepz: unknown key") == 1


def test_a_rank_that_fails_takes_the_others_along() -> None:
    ended = wait(launch_ranks(ranks(2, TORCHELASTIC), "fail"))
    assert ended.code == 1
    assert "ArithmeticError: rank 1 gives up\nTraceback" in ended.errors
    assert "rank 0 ends with rank 1" in ended.errors
    assert ended.errors.count("Traceback") == 1


def test_two_processes_join_twice_and_leave_with_zero_every_time() -> None:
    times = 40 if "DTRAIN_TEST_LONG" in os.environ else 4
    failed = []
    for number in range(times):
        ended = wait(launch_ranks(ranks(2, (TORCHELASTIC, OPEN_MPI)[number % 2]), "twice"))
        seen = [(each["rank"], each["gradient"]) for each in ended.seen]
        if ended.code or seen != [(0, 1.5), (0, 1.5), (1, 1.5), (1, 1.5)]:
            failed.append((ended.code, seen, ended.errors))
    assert failed == []


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=lambda end: end.name)
@pytest.mark.parametrize(
    ("launcher", "size"), [([*ACCELERATE, "--cpu"], 1), (ELASTIC, 2)], ids=["accelerate", "torchelastic"]
)
def test_no_process_outlives_its_launcher(launcher: list[str], size: int, end: signal.Signals) -> None:
    with launch(launcher, "stay") as started:
        pids = read_pids(started, size)
        started.send_signal(end)
        assert survivors([*pids, started.pid], seconds=5) == []


def test_a_plain_run_outlives_its_shell() -> None:
    command = f"{sys.executable} {PROGRAM} stay & wait"
    with start(["sh", "-c", command], {}) as shell:
        (pid,) = read_pids(shell, 1)
        shell.kill()
        shell.wait()
        assert survivors([pid], seconds=1) == [pid]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with the real __main__.py, and a file named like a module of the standard library."""
    folder = tmp_path / "dtrain"
    (folder / "cli").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "__main__.py").write_text((ROOT / "dtrain" / "__main__.py").read_text())
    (folder / "random.py").write_text("raise ImportError('this is not the standard library')\n")
    lines = "import random, sys\ndef main(arguments):\n    print(arguments, random.__name__)\n    return 5\n"
    (folder / "cli" / "app.py").write_text(lines)
    return tmp_path


@pytest.mark.parametrize("command", [["dtrain"], ["-m", "dtrain"], ["dtrain/__main__.py"], ["-P", "dtrain"]])
def test_the_package_runs_by_every_name_and_shadows_no_module(package: Path, command: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, *command, "run", "a"], cwd=package, capture_output=True, text=True
    )
    assert (ended.stdout, ended.returncode) == ("['run', 'a'] random\n", 5), ended.stderr
