"""docs/systems.md: what it shows is what its files say, and both ways give the same losses."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Said, metrics_of

import dtrain

ROOT = Path(dtrain.__file__).parents[1]
TEXT = (ROOT / "docs" / "systems.md").read_text()
FOUND = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
SHORT = (
    "train.steps=20",
    "train.epochs=${unset}",
    "every.log=1",
    "every.evaluate=20",
    'track.kinds=["jsonl"]',
)
Here = Callable[..., Said]


class Piece(NamedTuple):
    """A block of code, and the file that it is a part of."""

    file: str
    text: str


PIECES = [
    Piece(*text.removeprefix("# ").split("\n", 1)) for kind, text in FOUND if kind in ("toml", "python")
]
COMMANDS = [
    found.groups()
    for kind, text in FOUND
    if kind == "console"
    for found in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipes, the systems of the page and a teacher that was trained for 20 steps."""
    home = tmp_path_factory.mktemp("systems")
    shutil.copytree(ROOT / "recipes", home / "recipes")
    shutil.copytree(ROOT / "docs" / "systems", home / "docs" / "systems")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train(home, home / "recipes" / "classifier.toml", "optimizers.classifier.schedule.warmup=5")
    return home


def train(home: Path, recipe: Path, *overrides: str) -> Path:
    """Train a recipe for some steps; return the folder of its run."""
    loaded = dtrain.load(recipe, [*SHORT, *overrides])
    with dtrain.setup(loaded, runs=home / "runs", fresh=True) as run, dtrain.watch(run) as observe:
        for event in dtrain.train(run):
            observe(event)
    return run.folder


@pytest.mark.parametrize(
    "piece", PIECES, ids=lambda piece: f"{piece.file}, {piece.text[:30].splitlines()[0]}"
)
def test_every_piece_of_code_stands_in_its_file(piece: Piece) -> None:
    assert piece.text in (ROOT / piece.file).read_text()


def test_the_page_shows_the_whole_system_in_python() -> None:
    shown = [piece.text for piece in PIECES if piece.file.endswith(".py")]
    assert shown == [(ROOT / "docs/systems/distillation.py").read_text()]


@pytest.mark.parametrize("name", ["distillation.toml", "python.toml"])
def test_its_recipes_are_good(dtrain_here: Here, folder: Path, name: str) -> None:
    said = dtrain_here("check", folder / "docs" / "systems" / name, "--imports")
    assert (said.code, said.errors) == (0, "")


@pytest.mark.parametrize(("command", "output"), COMMANDS)
def test_every_command_says_what_the_page_prints(
    dtrain_here: Here, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, output: str
) -> None:
    monkeypatch.chdir(folder)
    program, *arguments = shlex.split(command)
    assert program == "dtrain"
    said = dtrain_here(*arguments)
    lines = [r"(?:.*\n)*" if line == "..." else re.escape(line) + r"\n" for line in output.splitlines()]
    assert re.fullmatch("".join(lines), said.out + said.errors), said


def test_both_ways_give_the_same_losses(folder: Path, on_cpu: None) -> None:
    in_toml, in_python = (
        dict(
            metrics_of(
                train(folder, folder / "docs" / "systems" / name, "optimizers.student.schedule.warmup=5")
            )
        )
        for name in ("distillation.toml", "python.toml")
    )
    assert list(in_toml) == list(in_python) == list(range(1, 21))
    for step, values in in_toml.items():
        assert in_python[step] == pytest.approx(values, rel=1e-6), step
    assert {"evaluate/agreement", "evaluate/top3"} <= in_toml[20].keys()


def test_links_lead_somewhere() -> None:
    for path, anchor in re.findall(r"\]\(([^)#]*)#?([\w-]*)\)", TEXT.replace("\n", "")):
        page = ROOT / "docs" / (path or "systems.md")
        assert page.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
