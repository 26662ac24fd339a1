"""What `dtrain launch` prints and the files under launch/: in step, fit for where they go, of one engine."""

import copy
import itertools
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from conftest import Said, only_run
from kubernetes_schemas import mistakes
from launching import ACCELERATE, ROOT, start, wait

from dtrain.format.files import MANIFEST
from dtrain.launch.filling import ENGINES, LEAVES
from dtrain.scale import settings
from dtrain.scale.asked import engine_asked, read_scale
from dtrain.scale.tables import FSDP, ZeRO

pytestmark = pytest.mark.alone

Here = Callable[..., Said]

LAUNCH = ROOT / "launch"
SIZE = ["--nodes", "2", "--devices", "8"]
EXAMPLE = ["recipes/gan.toml", "train.micro_batch_size=4", *SIZE]
IN_CLUSTER = ["--image", "dtrain:latest", "--claim", "dtrain"]
FILES = {
    "slurm.sbatch": ["slurm", *EXAMPLE],
    "kubernetes/jobset.yaml": ["kubernetes", *EXAMPLE, *IN_CLUSTER],
    "kubernetes/trainjob.yaml": ["kubernetes", *EXAMPLE, *IN_CLUSTER, "--kind", "trainjob"],
}


def printed(dtrain_here: Here, *arguments: str) -> str:
    said = dtrain_here("launch", *arguments)
    assert said.code == 0, said.errors
    return said.out


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", FILES)
def test_the_files_under_launch_are_what_the_command_prints(
    name: str, at_root: None, dtrain_here: Here
) -> None:
    assert (LAUNCH / name).read_text() == printed(dtrain_here, *FILES[name])


@pytest.mark.parametrize("kind", ["jobset", "trainjob"])
def test_every_job_of_kubernetes_is_one_that_it_takes(kind: str, at_root: None, dtrain_here: Here) -> None:
    for engine, where in itertools.product(("ddp", "zero3-offload"), ([], ["--cpu"])):
        arguments = ["kubernetes", *EXAMPLE, *IN_CLUSTER, "--kind", kind, "--engine", engine, *where]
        document = yaml.safe_load(printed(dtrain_here, *arguments))
        assert list(mistakes(document)) == [], arguments


WRONG: list[tuple[str, tuple[str | int, ...], Any, str]] = [  # file, where, what, what is said of it
    ("jobset", ("spec", "replicaJobs"), [], "'replicaJobs' was unexpected"),
    ("jobset", ("spec", "failurePolicy", "maxRestarts"), "ten", "'ten' is not of type 'integer'"),
    ("jobset", ("spec", "failurePolicy", "rules", 0, "name"), None, "None is not of type 'string'"),
    ("jobset", ("spec", "replicatedJobs", 0, "template", "spec", "completion"), 2, "'completion' was unexp"),
    ("jobset", ("spec", "replicatedJobs", 0, "template", "spec", "parallelism"), "2", "'2' is not of type"),
    ("jobset", ("kind",), "Jobset", "there is no"),
    ("trainjob", ("spec", "podTemplateOverrides"), [], "'podTemplateOverrides' was unexpected"),
    ("trainjob", ("spec", "trainer", "numNodes"), "two", "'two' is not of type 'integer'"),
    ("trainjob", ("spec", "trainer", "resourcesPerNode", "limit"), {}, "'limit' was unexpected"),
    ("trainjob", ("spec", "runtimePatches", 0, "manager"), 3, "3 is not of type 'string'"),
    ("trainjob", ("spec", "trainer", "env", 0, "valueFrom"), "x", "'x' is not"),
]


@pytest.mark.parametrize(("name", "place", "value", "said"), WRONG, ids=lambda value: str(value)[:40])
def test_the_validation_finds_what_is_wrong(
    name: str, place: tuple[str | int, ...], value: Any, said: str
) -> None:
    document = yaml.safe_load((LAUNCH / "kubernetes" / f"{name}.yaml").read_text())
    assert list(mistakes(document)) == []
    wrong: Any = copy.deepcopy(document)
    table = wrong
    for step in place[:-1]:
        table = table[step]
    table[place[-1]] = value
    assert any(said in mistake for mistake in mistakes(wrong)), list(mistakes(wrong))


def test_a_script_for_slurm_keeps_every_word(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    odd = tmp_path / "a b's"
    odd.mkdir()
    recipe = gan.rename(odd / "it's a gan.toml")
    gan.with_name("pictures.npz").rename(odd / "pictures.npz")
    text = printed(
        dtrain_here,
        *("slurm", str(recipe), "seed=7", "train.steps=9", "--nodes", "1", "--devices", "2", "--cpu"),
        *("--before", "module load cuda", "--sbatch=--mem=0", "--partition", "long", "--runs", "my runs"),
    )
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    lines = text.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    last_option = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last_option])
    assert {"#SBATCH --nodes=1", "#SBATCH --mem=0", "#SBATCH --partition=long"} <= set(lines)
    assert "gpus" not in text.lower()
    assert lines.index("module load cuda") > last_option
    (command,) = (line for line in lines if line.strip().startswith("-m dtrain"))
    words = [
        "-m",
        "dtrain",
        "run",
        str(recipe),
        "seed=7",
        "train.steps=9",
        "--once",
        "--runs",
        "my runs",
        "&",
    ]
    assert shlex.split(command) == words


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (
            ["slurm", *EXAMPLE[:1], *SIZE],
            2,
            r"gan\.toml:\d+:\d+: train\.micro_batch_size: .* of 16 processes",
        ),
        (["slurm", *EXAMPLE, "train.batch=3"], 2, r"train\.batch: unknown key"),
        (
            ["slurm", *EXAMPLE, "--time", "a day"],
            2,
            r"--time 'a day' is none of Slurm's; 24:00:00 .* would do",
        ),
        (["slurm", *EXAMPLE, "--time", "2:59"], 2, r"--time '2:59' leaves nothing of --grace 120"),
        (["slurm", *EXAMPLE, "--time", "3"], 0, ""),
        (["slurm", *EXAMPLE, "--time", "1-0"], 0, ""),
        (["slurm", *EXAMPLE, "--sbatch", "mem=3"], 2, r"--sbatch 'mem=3' is no option of sbatch"),
        (["slurm", *EXAMPLE, "--engine", "zero2", "--config", "x"], 2, r"--engine and --config both say"),
        (["slurm", *EXAMPLE, "--config", "launch/zero4.yaml"], 2, r"zero4\.yaml is not there"),
        (["slurm", *EXAMPLE, "--name", "a;b"], 2, r"--name 'a;b' cannot be that of a job"),
        (["slurm", *EXAMPLE, "--engine", "zero4"], 2, r"'zero4' is not one of"),
        (["slurm", "recipes/gan.toml"], 2, r"Missing option '--nodes'"),
        (["kubernetes", *EXAMPLE, *IN_CLUSTER, "--name", "9"], 2, r"'9' cannot be the name of a job of Kub"),
        (["kubernetes", *EXAMPLE], 2, r"Missing option '--image'"),
        (["kubernetes", *EXAMPLE, *IN_CLUSTER, "--claim", "My_Claim"], 2, r"--claim 'My_Claim' cannot be"),
        (["kubernetes", *EXAMPLE, *IN_CLUSTER, "--claim", "a" * 254], 2, r"--claim 'a+' cannot be the name"),
        (["kubernetes", *EXAMPLE, *IN_CLUSTER, "--claim", "-a"], 2, r"--claim '-a' cannot be the name"),
        (["kubernetes", *EXAMPLE, *IN_CLUSTER, "--claim", "our-data.v2"], 0, ""),
        (
            ["kubernetes", *EXAMPLE, *IN_CLUSTER, "--image", "a b"],
            2,
            r"--image 'a b' cannot be that of a cont",
        ),
        (["kubernetes", *EXAMPLE, *IN_CLUSTER, "data.path=/x.npz"], 2, r"data\.path: /x\.npz does not exist"),
        (["kubernetes", *EXAMPLE, *IN_CLUSTER, "data.path=/x.npz", "--data-elsewhere"], 0, ""),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
)
def test_a_job_that_would_not_run_is_refused(
    arguments: list[str], code: int, said: str, at_root: None, dtrain_here: Here
) -> None:
    ended = dtrain_here("launch", *arguments)
    assert ended.code == code, ended.errors
    assert re.search(said, ended.errors), ended.errors
    assert bool(ended.out) == (code == 0)


IN_PARTS = 'engine = { kind = "fsdp" }'
WHOLE = 'engine = { kind = "ddp" }'
FLAT = "compile = { what = 'blocks', backend = 'eager' }"
LANES = "train.lanes=16"
MUON = 'optimizers.generator={kind="muon", lr=1e-3, others={lr=1e-3}}'


@pytest.mark.parametrize("scheduler", [["slurm"], ["kubernetes", *IN_CLUSTER]], ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("scale", "given", "said"),
    [
        (IN_PARTS, [LANES], r"argument \d:\d+: train\.lanes: .*fsdp keeps parts"),
        ("", [LANES, "--engine", "fsdp"], r"argument \d:\d+: train\.lanes: .*fsdp keeps parts"),
        ("", [LANES, "--config", "launch/zero2.yaml"], r"train\.lanes: .*zero keeps parts"),
        ("", [LANES, "--engine", "ddp"], ""),
        ("", [MUON, "--engine", "zero1"], r"optimizers\.generator\.kind: muon may go by the shapes"),
        (FLAT, [], r"scale\.toml:1:20: compile\.what: no model is made of repeated blocks"),
        (WHOLE, ["--engine", "fsdp"], r"scale\.toml says engine\.kind = 'ddp', but .* asks for 'fsdp'"),
        (WHOLE, ["--config", "launch/zero3.yaml"], r"says engine\.kind = 'ddp', but .* asks for 'zero'"),
        (IN_PARTS, ["--engine", "ddp"], r"scale\.toml says engine\.kind = 'fsdp', and --engine says 'ddp'"),
        (IN_PARTS, ["--config", "launch/multi-node.yaml"], ""),
        (IN_PARTS, ["--engine", "fsdp"], ""),
        (IN_PARTS, [], ""),
        ("", ["--config", "launch/scale.toml"], r"scale\.toml is TOML, .*; --scale launch/scale\.toml does"),
    ],
    ids=str,
)
def test_a_job_whose_engine_cannot_run_the_recipe_is_refused(
    scheduler: list[str],
    scale: str,
    given: list[str],
    said: str,
    tmp_path: Path,
    at_root: None,
    dtrain_here: Here,
) -> None:
    (tmp_path / "scale.toml").write_text(scale)
    of_scale = ["--scale", str(tmp_path / "scale.toml")] if scale else []
    ended = dtrain_here("launch", *scheduler, *EXAMPLE, *given, *of_scale)
    assert ended.code == (2 if said else 0), ended.errors
    assert re.search(said, ended.errors), ended.errors
    assert bool(ended.out) == (not said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}", "first version of FSDP"),
        ("distributed_type: MEGATRON_LM", "Megatron-LM"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: x.json}", "does not read"),
        (
            "distributed_type: MULTI_GPU\nmixed_precision: bf16",
            "train.precision: is .* bf16; make them agree",
        ),
        ("num_machines: 2", "has no distributed_type"),
        ("just words", "has no distributed_type"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_what_a_file_of_accelerate_asks_for_is_checked_before_it_is_submitted(
    text: str, said: str, tmp_path: Path, at_root: None, dtrain_here: Here
) -> None:
    (tmp_path / "a.yaml").write_text(text)
    ended = dtrain_here("launch", "slurm", *EXAMPLE, "--config", str(tmp_path / "a.yaml"))
    assert ended.code == 2
    assert re.search(said, ended.errors), ended.errors


def environment_of(options: Sequence[str]) -> dict[str, str]:
    """What `accelerate launch` with these options leaves in the environment of its processes."""
    given = launch_command_parser().parse_args(
        [*options, "--num_processes", "2", "--main_process_port", "0", "program.py"]
    )
    arguments, _, _ = _validate_launch_command(given)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ""  # as the launcher itself sets it, for others
        return dict(prepare_deepspeed_cmd_env(arguments)[1])
    return dict(prepare_multi_gpu_env(arguments))


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "ddp"])
def test_an_engine_is_the_same_by_its_file_and_by_the_options_of_a_job(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    on_cpu = name.endswith("offload")
    meant = (
        FSDP()
        if name == "fsdp"
        else ZeRO(stage=int(name[4]), offload_optimizer=on_cpu, offload_parameters=on_cpu)
    )
    assert engine_asked(environment_of(["--config_file", str(LAUNCH / f"{name}.yaml")])) == meant
    assert engine_asked(environment_of(ENGINES[name])) == meant
    assert engine_asked(LEAVES[name]) == meant


MORE = """
distributed_type: FSDP
fsdp_config: {fsdp_version: 2, fsdp_offload_params: true, fsdp_activation_checkpointing: true}
dynamo_config: {dynamo_backend: EAGER, dynamo_use_regional_compilation: true, dynamo_use_dynamic: true}
"""


def test_a_file_of_accelerate_is_understood_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", "/nonexistent")
    (tmp_path / "more.yaml").write_text(MORE)
    for path in (tmp_path / "more.yaml", *LAUNCH.glob("*.yaml")):
        meant = read_scale(environment_of(["--config_file", str(path)]), None)
        assert read_scale(settings.environment_of(path), None) == meant, path


def test_every_file_of_accelerate_says_how_many_machines_and_what_engine() -> None:
    kinds = {"ddp": "MULTI_GPU", "cpu-2": "MULTI_GPU", "multi-node": "MULTI_GPU", "fsdp": "FSDP"}
    for path in LAUNCH.glob("*.yaml"):
        settings = yaml.safe_load(path.read_text())
        assert settings["distributed_type"] == kinds.get(path.stem, "DEEPSPEED")
        assert settings["num_machines"] == (2 if path.stem == "multi-node" else 1)
        assert "mixed_precision" not in settings, "precision is the recipe's"
    assert set(ENGINES) <= {path.stem for path in LAUNCH.glob("*.yaml")}
    assert os.access(LAUNCH / "torchrun-elastic.sh", os.X_OK)


# Starting DeepSpeed takes seconds; stages 1 to 3 differ in a number of their files alone.
STARTED = [name for name in ENGINES if name in ("fsdp", "zero3-offload") or "DTRAIN_TEST_LONG" in os.environ]


@pytest.mark.parametrize("name", STARTED)
def test_a_file_starts_the_engine_that_it_names(name: str, gan: Path, tmp_path: Path) -> None:
    options = ["--config_file", f"launch/{name}.yaml", "--num_processes", "2", "-m", "dtrain"]
    command = [
        "run",
        str(gan),
        "train.steps=4",
        "every.evaluate=0",
        "every.save=0",
        "--runs",
        str(tmp_path / "runs"),
    ]
    ended = wait([start([*ACCELERATE, *options, *command], {})])
    assert ended.code == 0, ended.errors
    (checkpoint,) = only_run(tmp_path / "runs").glob("checkpoints/*")
    environment = json.loads((checkpoint / MANIFEST).read_text())["environment"]
    kind = {"ddp": "ddp", "fsdp": "fsdp"}.get(name, "zero")
    assert environment["engine"]["kind"] == kind
    assert environment["world"] == 2
