"""dtrain new: what it writes is a good recipe that trains, with all that one may want to change."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tomli
from conftest import Said
from PIL import Image

import dtrain
from dtrain.recipe.schema import schema_text
from dtrain.recipe.starting import starts
from dtrain.recipe.values import Recipe
from dtrain.spec.decode import fields_of
from dtrain.systems.base import System

Here = Callable[..., Said]
DATA = Path(dtrain.__file__).parents[1] / "recipes" / "data" / "fashion-mnist-7k.npz"
SHORT = {  # what makes the run of each template one of two steps
    "gan": ["train.steps=2"],
    "classifier": ["train.epochs=${unset}", "train.steps=2", "optimizers.classifier.schedule.warmup=1"],
    "resnet": ["train.epochs=${unset}", "train.steps=2", "optimizers.classifier.schedule.warmup=1"],
}


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_templates_are_these() -> None:
    assert {"gan", "classifier", "resnet"} <= set(starts())
    assert all(about.endswith(".") for about in starts().values())


@pytest.mark.parametrize("template", starts())
def test_a_new_recipe_passes_its_check_and_trains(dtrain_here: Here, template: str) -> None:
    said = dtrain_here("new", "mine", "--from", template, "--data", DATA)
    assert said == Said(
        0, "wrote  mine.toml\nthen   dtrain check mine.toml\nthen   dtrain run mine.toml\n", ""
    )
    text = Path("mine.toml").read_text()
    assert text.startswith("#:schema ./recipe.schema.json\n")
    assert "@" not in text
    assert dtrain_here("check", "mine.toml").code == 0
    short = [*SHORT[template], "every.log=1", "every.evaluate=0", 'track.kinds=["jsonl"]']
    ran = dtrain_here("run", "mine.toml", *short)
    assert (ran.code, ran.errors) == (0, "")
    assert list(Path("runs/mine").glob("*/checkpoints/step-00000002"))


@pytest.mark.parametrize("template", starts())
def test_a_folder_of_pictures_will_do(dtrain_here: Here, template: str) -> None:
    for label in range(10):
        folder = Path("pictures") / str(label)
        folder.mkdir(parents=True)
        for number in range(20):
            Image.fromarray(np.full((30, 32), number, np.uint8)).save(folder / f"{number}.png")
    assert dtrain_here("new", "mine", "--from", template, "--data", "pictures").code == 0
    said = dtrain_here("check", "mine.toml", *SHORT[template])
    assert (said.code, said.errors) == (0, "")


def keys_of(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """The keys of every table of a recipe that is no layer, with the name of the table."""
    tables = {"system": recipe.system, "data": recipe.data}
    tables |= {key: getattr(recipe, key) for key in ("train", "every", "evaluate", "checkpoint", "track")}
    tables |= dict(recipe.optimizers) | {"a schedule": next(iter(recipe.optimizers.values())).schedule}
    tables |= {"averages": next(iter(recipe.averages.values()), None)}
    for name, table in tables.items():
        for key in fields_of(type(table)) if table is not None else ():
            if key != "metrics" or type(recipe.system).predict is not System.predict:
                yield name, key


@pytest.mark.parametrize("template", starts())
def test_every_key_of_every_table_stands_in_it(dtrain_here: Here, template: str) -> None:
    dtrain_here("new", "mine", "--from", template, "--data", DATA)
    text = Path("mine.toml").read_text()
    for table, key in keys_of(dtrain.load("mine.toml")):
        assert re.search(rf"\b{key}\b(\.\w+)? =", text), f"{table}.{key}"


@pytest.mark.parametrize("template", starts())
def test_what_stands_in_a_comment_may_be_written_out(dtrain_here: Here, template: str) -> None:
    dtrain_here("new", "mine", "--from", template, "--data", DATA)
    text = Path("mine.toml").read_text()
    lines = re.findall(r"^# (?=\[|\w[\w.]* = )", text, re.MULTILINE)
    assert lines
    more = re.sub(r"^# (?=\[|\w[\w.]* = )", "", text, flags=re.MULTILINE)
    more = more.replace("label_smoothing = 0.1", "label_smoothing = 0.0")  # has no meaning for other losses
    tomli.loads(more)
    Path("mine.toml").write_text(more)
    said = dtrain_here("check", "mine.toml", "--imports")
    assert (said.code, said.errors) == (0, "")


def test_the_schema_is_written_beside_it_unless_it_is_there(dtrain_here: Here) -> None:
    dtrain_here("new", "one", "--from", "gan")
    schema = Path("recipe.schema.json")
    assert schema.read_text() == schema_text()
    schema.write_text("{}")
    dtrain_here("new", "two", "--from", "gan")
    assert schema.read_text() == "{}"


def test_without_data_it_says_what_is_to_be_filled_in(dtrain_here: Here) -> None:
    said = dtrain_here("new", "mine.toml", "--from", "gan")
    assert "wrote  mine.toml\nthen   set data.path in it, which is 'data/pictures.npz' now\n" in said.out
    assert "data.path: " in dtrain_here("check", "mine.toml").errors


def test_data_is_named_as_seen_from_the_recipe(dtrain_here: Here) -> None:
    Path("deep").mkdir()
    np.savez("p.npz", image=np.zeros((2, 28, 28), np.uint8))
    dtrain_here("new", "deep/mine", "--from", "gan", "--data", "p.npz")
    assert 'path = "../p.npz"' in Path("deep/mine.toml").read_text()
    assert 'name = "mine"' in Path("deep/mine.toml").read_text()
    assert Path("deep/recipe.schema.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mine"], ["--from says what to start from", "\n  gan ", "\n  resnet "]),
        (["mine", "--from"], ["--from says what to start from", "\n  gan ", "\n  resnet "]),
        (
            ["mine", "--from", "resnt"],
            ['there is no "resnt" to start from; did you mean "resnet"?', "\n  gan "],
        ),
        (["there", "--from", "gan"], ["there.toml is there already; another name would do"]),
        (["a b", "--from", "gan"], ['"a b" cannot be the name of a recipe; letters, digits, dots']),
        (["none/x", "--from", "gan"], ["none/x.toml cannot be written: No such file or directory"]),
        (
            ["x", "--from", "gan", "--data", "ther.npz"],
            ['ther.npz does not exist; did you mean "there.npz"?'],
        ),
        (["x", "--from", "gan", "--data", "there.toml"], ["there.toml is no data; an .npz or .safetensors"]),
        (["--from", "gan"], ["Missing argument 'NAME'"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_what_cannot_be_written_is_said(dtrain_here: Here, arguments: list[str], words: list[str]) -> None:
    for name in ("there.toml", "there.npz"):
        Path(name).write_text("as it was")
    said = dtrain_here("new", *arguments)
    assert (said.code, said.out) == (2, "")
    for word in words:
        assert word in said.errors
    assert Path("there.toml").read_text() == "as it was"
    assert not Path("x.toml").exists()
    assert not Path("recipe.schema.json").exists()
