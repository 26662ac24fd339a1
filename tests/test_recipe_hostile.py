"""A stranger's recipe imports only what is on the list, reads nothing outside its folder, and ends soon."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import GAN, cut_off, written
from hostile import FILES, HOSTILE, IMPORTS, SIZES

from dtrain.checkpoint.read import checkpoints_in
from dtrain.format.files import MANIFEST, RECIPE, hash_of, sealed

SECONDS, BYTES = 1.0, 200_000_000  # of the processor, and of memory
PROGRAM = Path(__file__).with_name("hostile_process.py")
NAMED = re.compile(r'kind = "([a-z_]+)[\w.]*:')
TEXTS = [str(text) for each in IMPORTS.values() for text in each.files.values()]
FORBIDDEN = {name for text in TEXTS for name in NAMED.findall(text)} - {"torch", "dtrain"}
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")  # what a terminal would carry out
SECRET = "not for strangers"
# What is said of recipes of whose models there are none: of others a checkpoint's models may be had.
NO_MODELS = ("models.", "references", "stacks", "more than 10,000", "deep", "circle")


def carried_out(folder: Path, cases: Mapping[str, Sequence[str | Path]], *modules: str) -> dict[str, Any]:
    """Carry out commands in one process, which has done so once before; what became of each, by its name."""
    folder.mkdir(exist_ok=True)
    wrong = written(folder, "wrong.toml", GAN.replace("seed = 3", "seed = -1"))
    commands = [[*next(iter(cases.values()))[:-1], wrong], *cases.values()]
    listed = folder / "cases.json"
    listed.write_text(json.dumps([modules, [[str(part) for part in command] for command in commands]]))
    environment = {
        **os.environ,
        "XDG_CONFIG_HOME": str(folder),
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    program = [sys.executable, PROGRAM, listed]
    ended = subprocess.run(program, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"code"')]
    assert len(lines) == len(commands), (ended.stderr[-2000:], list(cases)[len(lines) - 1 :][:1])
    return dict(zip(cases, lines[1:], strict=True))


def wrong_with(name: str, ended: Mapping[str, Any], *, is_refused: bool = True) -> list[str]:
    """What is not as it should be in how a command on a hostile recipe ended."""
    words, seconds, memory = ended["words"], ended["seconds"], ended["memory"]
    problems = {
        "a secret": SECRET in words,
        "a traceback": "Traceback" in words,
        "a terminal's command": UNSEEN.search(words),
        f"status {ended['code']}": is_refused and ended["code"] != 2,
        f"does not say {HOSTILE[name].says}": is_refused and HOSTILE[name].says not in words,
        f"{seconds:.2f} s": seconds > SECONDS,
        f"{memory:,} bytes": memory > BYTES,
    }
    found = [problem for problem, is_there in problems.items() if is_there]
    imported = [f"imported {module}" for module in FORBIDDEN & set(ended["imported"])]
    return [f"{name}: {problem}; {words[:300]!r}" for problem in (*ended["seen"], *imported, *found)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every hostile recipe, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    return {name: each.write(folder / str(number)) for number, (name, each) in enumerate(HOSTILE.items())}


def test_there_are_enough_of_them() -> None:
    assert len(HOSTILE) == len(IMPORTS) + len(FILES) + len(SIZES) >= 60
    assert {"builtins", "os", "subprocess", "pickle", "antigravity"} <= FORBIDDEN


@pytest.mark.parametrize("command", [["check"], ["run", "--runs", "runs"]], ids=["check", "run"])
def test_a_hostile_recipe_is_refused_before_torch_comes(
    tmp_path: Path, paths: Mapping[str, Path], command: list[str]
) -> None:
    soon = [name for name in paths if not HOSTILE[name].is_found_late]
    ended = carried_out(tmp_path, {name: [*command, "--untrusted", paths[name]] for name in soon})
    assert not [line for name in soon for line in wrong_with(name, ended[name])]
    assert not [name for name in soon if "torch" in ended[name]["imported"]]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", [["check", "--imports"], ["run", "--runs", "runs"]], ids=["check", "run"])
def test_a_hostile_recipe_is_refused_where_imports_are_made(
    tmp_path: Path, paths: Mapping[str, Path], command: list[str]
) -> None:
    cases = {name: [*command, "--untrusted", paths[name]] for name in IMPORTS}
    ended = carried_out(tmp_path, cases, "torch", "dtrain.loop")
    assert not [line for name in cases for line in wrong_with(name, ended[name])]


def test_a_look_at_a_hostile_recipe_does_nothing(tmp_path: Path, paths: Mapping[str, Path]) -> None:
    ended = carried_out(tmp_path, {n: ["show", "--origin", "--untrusted", path] for n, path in paths.items()})
    assert not [line for name in paths for line in wrong_with(name, ended[name], is_refused=False)]


def test_models_of_a_hostile_checkpoint_are_refused(tmp_path: Path, on_cpu: None) -> None:
    run = cut_off(written(tmp_path, "gan.toml", GAN), tmp_path / "runs", 2)
    checkpoint = checkpoints_in(run)[-1]
    texts = {name: each.files["r.toml"] for name, each in HOSTILE.items() if "r.toml" in each.files}
    copies = {
        name: with_recipe(checkpoint, tmp_path / str(number), text)
        for number, (name, text) in enumerate(texts.items())
        if len(text) < 1_000_000
    }
    ended = carried_out(
        tmp_path / "all", {n: ["load_models", copy] for n, copy in copies.items()}, "dtrain.checkpoint.models"
    )
    problems = [line for name in copies for line in wrong_with(name, ended[name], is_refused=False)]
    assert not problems, "\n".join(problems)
    refused = [name for name in copies if HOSTILE[name].says.startswith(NO_MODELS)]
    assert len(refused) > 30
    assert not [name for name in refused if ended[name]["code"] != 2]


def with_recipe(checkpoint: Path, copy: Path, content: str | bytes) -> Path:
    """A copy of a checkpoint with another recipe, sealed as if nothing had happened."""
    copy.mkdir()
    data = content.encode() if isinstance(content, str) else content
    for file in checkpoint.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / RECIPE).write_bytes(data)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest.pop("checksum")
    manifest["files"][RECIPE] = {"size": len(data), "hash": hash_of(data)}
    (copy / MANIFEST).write_bytes(sealed(manifest))
    return copy
