"""The commands: what they print, and how they end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Said, cut_off, metrics_of, only_run, start

import dtrain
from dtrain.backends.torch_backend import build_model
from dtrain.checkpoint.read import checkpoints_in
from dtrain.spec.models import ModelSpec

Here = Callable[..., Said]
RECIPES = sorted((Path(dtrain.__file__).parents[1] / "recipes").glob("*.toml"))


def assert_mistake(said: Said, *words: str) -> None:
    """Exit status 2, nothing on stdout, one line on stderr with these words."""
    assert said.code == 2
    assert said.out == ""
    assert said.errors.count("\n") == 1, said.errors
    assert "Traceback" not in said.errors
    for word in words:
        assert word in said.errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], ["Missing", "dtrain run --help"]),
        (["launch", "slurm", "r.toml", "--nodes", "x"], ["'x' is not", "dtrain launch slurm --help says"]),
        (["fly"], ["No such command 'fly'", "dtrain --help says"]),
        (
            ["check", "r.toml", "--prosesses", "2"],
            ["No such option '--prosesses'. Did you mean '--processes'?"],
        ),
        (["run", "r.toml", "--resume"], ["requires an argument"]),
        (["check", "r.toml", "--processes", "0"], ["--processes", "0 is not in the range x>=1"]),
        (["check", "nowhere.toml"], ["nowhere.toml: there is no such recipe"]),
        (["show", "nowhere.toml"], ["nowhere.toml: there is no such recipe"]),
        (["run", "nowhere.toml"], ["nowhere.toml: there is no such recipe"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_wrong_command_is_said_in_a_line(dtrain_here: Here, arguments: list[str], words: list[str]) -> None:
    assert_mistake(dtrain_here(*arguments), "dtrain: ", *words)


@pytest.mark.parametrize("command", ["run", "check", "show"])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stebs=3", ['train.stebs: unknown key; did you mean "steps"?']),
        ("train.steps", ["'train.steps' is not an override"]),
        (
            "models.generator.layers[0].out=33",
            [
                "argument 1:32: models.generator.layers[0].out: found 33; 32 would fit",
                "takes 32 values, not 33",
            ],
        ),
        ("system.latent=5", ["argument 1:15: system.latent: found 5; 4 would fit"]),
    ],
)
def test_a_mistake_in_the_recipe_is_said_in_a_line(
    dtrain_here: Here, gan: Path, command: str, override: str, words: list[str]
) -> None:
    assert_mistake(dtrain_here(command, gan, override), *words)


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.path=gone.npz"], ["gone.npz does not exist"]),
        (["system.input=picture"], ['system.input: the data has no field "picture"; it has image, label']),
        (["models.discriminator.input=[1, 9, 8]"], ["models.generator makes (1, 8, 8)"]),
        (["data.path=wide.npz"], ["models.discriminator.input: is [1, 8, 8], but the data's image is"]),
    ],
    ids=lambda value: value[0][:30],
)  # fmt: skip
def test_data_that_does_not_fit_is_said_in_a_line(
    dtrain_here: Here,
    gan: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    overrides: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(gan.parent)
    np.savez("wide.npz", image=np.zeros((20, 8, 9), np.uint8))
    assert_mistake(dtrain_here(command, gan, *overrides), *words)
    assert not list(Path("runs").glob("*/*"))


def test_two_mistakes_are_two_lines(dtrain_here: Here, gan: Path) -> None:
    said = dtrain_here("check", gan, "train.steps=0", "seed=-1")
    assert (said.code, len(said.errors.splitlines())) == (2, 2)
    assert [line[:21] for line in said.errors.splitlines()] == [
        "argument 1:13: train.",
        "argument 2:6: seed: f",
    ]


def test_a_loss_that_is_no_number_ends_the_run_with_what_to_do(
    dtrain_here: Here, gan: Path, tmp_path: Path
) -> None:
    overrides = ["optimizers.*.lr=1e30", "optimizers.discriminator.lr=1e30", "every.save=1"]
    said = dtrain_here("run", gan, *overrides, "--runs", tmp_path / "runs")
    assert (said.code, said.out) == (2, "")
    bad, terms, help_, saved, again = said.errors.splitlines()
    assert bad.startswith("dtrain: step 1, phase discriminator (update 2 of 2): the loss that discriminator")
    assert bad.endswith("is nan (micro-batch 0)")
    assert terms == "  its terms: real nan, fake nan"
    assert help_ == '  a lower lr or a clip may help, or train.on_nonfinite = "skip"'
    assert saved == "  nothing was saved before"
    assert again.startswith(f"  to see it again: dtrain run {gan} 'optimizers.*.lr=1e30' ")
    assert not list(only_run(tmp_path / "runs").glob("checkpoints/*"))


def test_help_says_every_command_and_option(dtrain_here: Here) -> None:
    said = dtrain_here("--help")
    assert said.code == 0
    assert all(command in said.out for command in ("run", "check", "show"))
    options = dtrain_here("run", "--help").out
    assert all(option in options for option in ("--fresh", "--resume", "--runs", "KEY=VALUE"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_check_counts_parameters_as_torch_does(dtrain_here: Here, shipped: Path, path: Path) -> None:
    said = dtrain_here("check", shipped / path.name)
    assert said.code == 0
    for name, spec in dtrain.load(shipped / path.name).models.items():
        assert isinstance(spec, ModelSpec)
        module = build_model(name, replace(spec, weights_from=None), seed=0)
        total = sum(value.numel() for value in module.parameters())
        block = next(part for part in said.out.split("\n\n") if part.startswith(f"model {name}:"))
        assert f", {total:,} parameters" in block.splitlines()[0]
        rows = spec.rows()
        for line, row in zip(block.splitlines()[1:], rows, strict=True):
            inside = [f"{other.name}." for other in rows if other.name.startswith(f"{row.name}.")]
            own = module.get_submodule(row.name).named_parameters(prefix=row.name)
            count = sum(value.numel() for key, value in own if not key.startswith(tuple(inside)))
            shape = "x".join(map(str, row.after))
            assert line.split() == [row.name, row.layer.kind, shape, *([f"{count:,}"] if count else [])]


def test_check_counts_inside_blocks_without_counting_twice(dtrain_here: Here, gan: Path) -> None:
    inside = "{kind='residual', layers=[{kind='linear', out=32}]}"  # projected the first time alone
    block = f"{{kind='repeat', times=2, layers=[{inside}]}}"
    said = dtrain_here("check", gan, f"models.generator.layers[0]={block}")
    assert said.code == 0, said.errors
    lines = [line.split() for line in said.out.split("\n\n")[0].splitlines()[1:]]
    counts = [int(line[-1].replace(",", "")) for line in lines if len(line) == 4]
    (total,) = re.findall(r"model generator: .*, ([\d,]+) parameters", said.out)
    assert sum(counts) == int(total.replace(",", ""))


@pytest.mark.parametrize(
    ("processes", "batch", "micro", "lines"),
    [
        (1, 8, 4, ["8 examples, 2 micro-batches of 4", "on 1 process: 2 micro-batches each"]),
        (2, 8, 4, ["on 2 processes: 1 micro-batch each"]),
        (2, 12, 4, ["3 micro-batches of 4", "on 2 processes: 2 micro-batches each, 1 process one"]),
        (3, 16, 2, ["on 3 processes: 3 micro-batches each, 1 process one fewer"]),
    ],
)  # fmt: skip
def test_check_plans_for_any_number_of_processes(
    dtrain_here: Here, gan: Path, processes: int, batch: int, micro: int, lines: list[str]
) -> None:
    sizes = [f"train.batch_size={batch}", f"train.micro_batch_size={micro}"]
    said = dtrain_here("check", gan, *sizes, "--processes", str(processes))
    assert (said.code, said.errors) == (0, "")
    for line in (*lines, "whole run: 8 steps over 20 examples, in fp32"):
        assert line in said.out
    assert "1. 2 updates of discriminator (sgd lr 0.05 constant, clip 1)" in said.out
    assert "2. 1 update of generator (adam lr 0.002 cosine)" in said.out


def test_check_turns_epochs_into_steps(dtrain_here: Here, classifier: Path) -> None:
    assert "whole run: 6 steps over 20 examples" in dtrain_here("check", classifier).out


def test_more_processes_than_micro_batches_are_refused(dtrain_here: Here, gan: Path) -> None:
    said = dtrain_here("check", gan, "--processes", "3")
    assert_mistake(
        said, "train.micro_batch_size", "leaves some of 3 processes without work; set it to 2 or less"
    )
    assert dtrain_here("check", gan, "train.micro_batch_size=2", "--processes", "3").code == 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_show_prints_is_a_recipe_that_means_the_same(
    dtrain_here: Here, shipped: Path, path: Path, tmp_path: Path
) -> None:
    override, path = "every.log=7", shipped / path.name
    said = dtrain_here("show", path, override)
    assert (said.code, said.errors) == (0, "")
    (tmp_path / "shown.toml").write_text(said.out)
    assert dtrain.load(tmp_path / "shown.toml") == dtrain.load(path, [override])
    assert dtrain_here("show", tmp_path / "shown.toml").out == said.out
    assert "${" not in said.out


def test_show_prints_what_a_run_keeps(dtrain_here: Here, gan: Path, tmp_path: Path) -> None:
    run = cut_off(gan, tmp_path / "runs", 2)
    shown = dtrain_here("show", gan).out
    assert (run / "recipe.toml").read_text() == shown
    assert (checkpoints_in(run)[-1] / "recipe.toml").read_text() == shown


def test_a_run_ends_with_where_everything_lies(
    dtrain_here: Here, gan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = dtrain_here("run", gan, "every.sample=3")
    assert (said.code, said.errors) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in said.out.splitlines() if line)
    run = only_run(tmp_path / "runs").relative_to(tmp_path)
    best, metric, value = lines.pop("best").split()
    step, least = json.loads((run / "checkpoints/step-00000008/state.json").read_bytes())["best"]["at"]
    assert (best, metric) == (f"{run}/checkpoints/step-{step:08d}", "evaluate/loss")
    assert float(value) == pytest.approx(least, rel=1e-5)
    assert lines == {
        "run": str(run),
        "checkpoint": f"{run}/checkpoints/step-00000008",
        "pictures": f"{run}/samples/step-00000008-generator.png",
    }
    assert all(Path(place).exists() for place in lines.values())
    pictures = sorted(path.name for path in (run / "samples").iterdir())
    assert pictures == [f"step-{step:08d}-generator.png" for step in (3, 6, 8)]


def test_an_interrupted_run_says_so_and_carries_on(gan: Path, tmp_path: Path) -> None:
    command = ["run", gan, "train.steps=40", "--runs", tmp_path / "runs"]
    life = start(*command, log=tmp_path / "log")
    until = time.monotonic() + 60
    while not any(tmp_path.glob("runs/*/*/checkpoints/*")) and time.monotonic() < until:
        time.sleep(0.001)
    os.kill(life.process.pid or 0, signal.SIGINT)
    assert life.end() == 130, life.said
    asked, stopped = life.said.strip().splitlines()
    assert asked == "dtrain: SIGINT: stops after this step and saves; once more ends at once"
    assert re.fullmatch(
        r"dtrain: stopped by SIGINT at step \d+; saved \S+; the same command carries on", stopped
    )
    again = start(*command, log=tmp_path / "again")
    assert again.end() == 0, again.said
    assert again.said.startswith("carrying on from")
    steps = [step for step, values in metrics_of(only_run(tmp_path / "runs")) if "generator/loss" in values]
    assert steps == list(range(1, 41))


def test_the_program_itself_runs_and_refuses(gan: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    for arguments, code, out, errors in (
        (
            ["run", gan, "--runs", tmp_path / "runs"],
            0,
            r"\nrun +\S+\ncheckpoint +\S+\nbest +\S+ .*\npictures +\S+\n",
            "",
        ),
        (["run", gan, "seed=-1"], 2, "", r"argument 1:6: seed: found -1; a number at least 0 would do\n"),
    ):
        command = [sys.executable, "-m", "dtrain", *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert ended.returncode == code, ended.stderr
        assert re.fullmatch(out, ended.stdout), ended.stdout
        assert re.fullmatch(errors, ended.stderr), ended.stderr
