"""docs/recipe.md: its tables are those of the code, its recipes are good, its printed output is real."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import Said

import dtrain
from dtrain.data.dataset import Reading
from dtrain.errors import DtrainError
from dtrain.recipe.descriptions import descriptions, paragraphs
from dtrain.recipe.keys import tables
from dtrain.recipe.reference import parts, renewed
from dtrain.recipe.values import Recipe
from dtrain.scale.tables import Parallel
from dtrain.spec.decode import fields_of, own_keys
from dtrain.spec.layers import ImportedLayer
from dtrain.spec.optimizers import ImportedOptimizer
from dtrain.spec.rates import ImportedSchedule
from dtrain.spec.table import KINDS

ROOT = Path(dtrain.__file__).parents[1]
DOCUMENT = ROOT / "docs" / "recipe.md"
TEXT = DOCUMENT.read_text()
EXTENDED = "garments.toml"  # what the pieces of recipes are pieces of
OF_RECIPES = [family for base, family in KINDS.items() if base is not Parallel]  # that is what launches say
TABLES = [*(cls for _, cls in tables()), *(cls for family in OF_RECIPES for cls in family.values())]
Here = Callable[..., Said]


class Block(NamedTuple):
    """A block of code of the document."""

    line: int
    language: str
    text: str

    @property
    def name(self) -> str | None:
        """The file that it is, which a comment at its top says."""
        found = re.match(r"(?:#:schema .*\n)?# ([\w-]+\.\w+)\n", self.text)
        return found[1] if found else None


BLOCKS = [
    Block(TEXT.count("\n", 0, found.start()) + 1, found[1], found[2])
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_cpu: None) -> Path:
    """A folder with the data and every file that the document has."""
    (tmp_path / "data").symlink_to(ROOT / "recipes" / "data")
    for block in BLOCKS:
        if block.name is not None:
            (tmp_path / block.name).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("cls", dict.fromkeys([Recipe, Reading, *TABLES]), ids=lambda cls: cls.__qualname__)
def test_every_table_and_key_says_what_it_is(cls: type) -> None:
    assert paragraphs(cls), f"{cls} has no docstring of its own"
    lacking = fields_of(cls).keys() - descriptions(cls).keys()
    assert not lacking, f"write a comment beside {cls.__name__}.{lacking}"


@pytest.mark.parametrize("cls", [ImportedLayer, ImportedOptimizer, ImportedSchedule])
def test_every_key_of_ours_among_arguments_says_what_it_is(cls: type) -> None:
    assert own_keys(cls).keys() <= descriptions(cls).keys()


def test_the_tables_of_the_reference_are_those_of_the_code() -> None:
    assert renewed(TEXT, parts()) == TEXT, "python -m dtrain.recipe.reference docs/recipe.md"


def test_every_key_and_kind_stands_in_the_reference() -> None:
    everything = "".join(parts().values())
    for cls in TABLES:
        assert all(f"| `{key}` |" in everything for key in fields_of(cls))
    assert all(f"**`{kind}`**" in everything for family in OF_RECIPES for kind in family)


def test_a_part_that_is_not_there_is_missed() -> None:
    with pytest.raises(DtrainError, match="look at track"):
        renewed(TEXT.replace("<!-- generated: track -->", ""), parts())


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= anchors


def test_no_line_is_long_but_for_tables() -> None:
    prose = re.sub(r"<!-- generated.*?<!-- end -->|^```console.*?^```|^\|.*?$", "", TEXT, flags=re.M | re.S)
    assert max(len(line) for line in prose.splitlines()) <= 110


PIECES = [block for block in BLOCKS if block.language == "toml"]


@pytest.mark.parametrize("block", PIECES, ids=lambda block: block.name or f"line {block.line}")
def test_every_recipe_is_good(dtrain_here: Here, folder: Path, block: Block) -> None:
    name = block.name or "piece.toml"
    if block.name is None:
        (folder / name).write_text(f'extends = "{EXTENDED}"\n\n{block.text}')
    is_here = "torchvision" not in block.text  # the one package that the tests do not install
    said = dtrain_here("check", name, *(["--imports"] if is_here else []))
    assert (said.code, said.errors) == (0, "")


def commands() -> Iterator[tuple[int, str, str]]:
    """Every command of the document: its line, itself, and what it is to say; `...` is any lines."""
    for block in BLOCKS:
        if block.language == "console":
            for found in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
                yield block.line + block.text.count("\n", 0, found.start()), found[1], found[2]


@pytest.mark.parametrize(("line", "command", "output"), list(commands()), ids=lambda value: str(value)[:50])
def test_every_command_says_what_the_reference_prints(
    dtrain_here: Here, folder: Path, line: int, command: str, output: str
) -> None:
    program, *arguments = shlex.split(command)
    assert program == "dtrain"
    said = dtrain_here(*arguments)
    pattern = "".join(
        r"(?:.*\n)*" if part == "..." else re.escape(part) + r"\n" for part in narrow(output).splitlines()
    )
    found = narrow(said.out + said.errors).replace(str(folder), "/home/you/recipes")
    assert re.fullmatch(pattern, found), f"{DOCUMENT}:{line}: {found}"


def narrow(text: str) -> str:
    """A text without the spaces that keep columns, whose width depends on the folder's name."""
    return re.sub(" {2,}", "  ", text)


@pytest.mark.parametrize("name", [EXTENDED, "resnet.toml", "wider.toml"])
def test_its_recipes_train(dtrain_here: Here, folder: Path, name: str) -> None:
    length = [] if name == "wider.toml" else ["train.epochs=${unset}"]
    schedule = [] if name == EXTENDED else ["optimizers.classifier.schedule.warmup=1"]
    rest = ["train.steps=2", "every.evaluate=0", 'track.kinds=["jsonl"]']
    said = dtrain_here("run", name, *length, *schedule, *rest)
    assert (said.code, said.errors) == (0, "")
