"""The JSON Schema of recipes: Taplo passes good ones and finds mistakes at their lines."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSIFIER, GAN, Said, written

import dtrain
from dtrain.recipe.keys import tables
from dtrain.recipe.schema import recipe_schema, schema_text
from dtrain.recipe.starting import start, starts
from dtrain.recipe.write import to_toml
from dtrain.spec.decode import fields_of
from dtrain.spec.table import KINDS
from dtrain.systems.base import System

RECIPES = Path(dtrain.__file__).parents[1] / "recipes"
FIRST = "#:schema ./recipe.schema.json"
TAPLO = Path(sys.executable).with_name("taplo")

REFERENCES = """\
[hyperparameters]
width = 4
one = 1
rates = { kind = "cosine", warmup = 2 }
body = [{ kind = "use", stack = "block", width = "${hyperparameters.width}" }, { kind = "flatten" }]
loss = "hinge"
more = { any = ["thing", 1, true] }

[layers.block]
parameters = ["width"]
defaults = { slope = 0.2 }
layers = [
    { kind = "conv", out = "${width}", kernel = 3, padding = [1, "${hyperparameters.one}"] },
    { kind = "repeat", times = 2, layers = [
        { kind = "residual", layers = [
            { kind = "activation", function = "leaky_relu", slope = "${slope}" },
        ] },
    ] },
]
"""
IMPORTS = {  # what stands in the classifier's recipe, and an imported kind in its place
    'kind = "classifier"\nlabel_smoothing = 0.1': 'kind = "classifier"\nloss = { kind = "torch.nn:NLLLoss" }',
    '{ kind = "batch_norm" }': '{ kind = "torch.nn:PReLU", num_parameters = 4, output = [4, 8, 8] }',
    'kind = "adamw"\nlr = 1e-2': 'kind = "torch.optim:NAdam"\nlr = 1e-2\nmomentum_decay = 4e-3\nclip = 1.0\n'
    'schedule = { kind = "torch.optim.lr_scheduler:ReduceLROnPlateau", monitor = "evaluate/loss", eps = 0 }',
    "[train]\n": '[evaluate]\ndata = { kind = "arrays", path = "pictures.npz" }\n'
    'metrics.top = { kind = "torch.nn:NLLLoss" }\n\n[train]\n',
}
OWN = [  # the same for whole tables
    ('kind = "classifier"\nlabel_smoothing = 0.1', 'kind = "./mine.py:MySystem"\nwhatever = [1, { a = 2 }]'),
    ('kind = "arrays"\npath = "pictures.npz"', 'kind = "torchvision.datasets:CIFAR10"\nroot = "data"\n'
     'examples = { fields = ["image", "label"], train = { train = true }, evaluate = { train = false } }'),
    ("input = [1, 8, 8]\n" + CLASSIFIER.split("input = [1, 8, 8]\n")[1].split("\n\n")[0],
     'kind = "torchvision.models:resnet18"\nlayers = [3, 4]\ninput = "any"'),
]  # fmt: skip
PARTS = [  # files that extend the GAN's recipe, and leave to it what it says
    "[train]\nsteps = 4\n",
    '[optimizers."*"]\nlr = 1e-4\nschedule = { warmup = 2 }\n',
    '[optimizers.discriminator]\nkind = "adam"\nmomentum = "${unset}"\n',
    '[averages]\ngenerator = "${unset}"\n\n[checkpoint]\nbest = "${unset}"\nmode = "${unset}"\n',
    "[system]\ncritic_steps = 1\n\n[data]\nchannels = \"first\"\n",
    '[models.discriminator]\nlayers = [{ kind = "flatten" }, { kind = "linear", out = 1 }]\n',
    '[models.generator]\nkind = "mine:Net"\nlayers = [2, 2]\ninput = "${unset}"\n',
    "[every]\nlog = 2\n\n[track]\nproject = \"${env:PROJECT:mine}\"\n",
]  # fmt: skip


def schemed(text: str) -> str:
    """A recipe that names its schema, in a line of its own."""
    return f"{FIRST}\n{text}"


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """A text with some of it replaced, each piece found once."""
    for old, new in pairs:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def goods() -> Iterator[tuple[str, str]]:
    """Good recipes that use all that the language has, by name."""
    yield "gan", GAN
    yield "classifier", CLASSIFIER
    layers = re.search(r"\[models.discriminator\]\ninput = \[1, 8, 8\]\n(layers = .*?\n\])", GAN, re.DOTALL)
    assert layers is not None
    body = 'layers = [{ kind = "use", stack = "block", width = 2 }, { kind = "flatten" }, '
    body += '{ kind = "linear", out = 1, initial = { kind = "normal", std = 0.02 } }]'
    rest = ('schedule = { kind = "cosine", warmup = 4 }', 'schedule = "${hyperparameters.rates}"')
    loss = (
        "critic_steps = 2",
        'critic_steps = "${hyperparameters.more.any[1]}"\nloss = "${hyperparameters.loss}"',
    )
    head = ("[hyperparameters]\n", REFERENCES.split("[layers")[0])
    stacks = ("[data]\n", REFERENCES[REFERENCES.index("[layers") :] + "\n[data]\n")
    yield "references", replaced(GAN, (layers[1], body), rest, loss, head, stacks)
    yield "imports", replaced(CLASSIFIER, *IMPORTS.items())
    for number, pair in enumerate(OWN):
        yield f"own-{number}", replaced(CLASSIFIER, pair)
    for number, part in enumerate(PARTS):
        yield f"part-{number}", f'extends = "gan.toml"\n\n{part}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the schema, the recipes that others extend, and their data."""
    folder = tmp_path_factory.mktemp("schema")
    (folder / "recipe.schema.json").write_text(schema_text())
    written(folder, "gan.toml", schemed(GAN))
    (folder / "mine.py").touch()
    return folder


def complaints(path: Path) -> list[tuple[int, str]]:
    """What Taplo says of a file: lines and messages; its exit status agrees."""
    command = [TAPLO, "lint", "--no-auto-config", path]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    said = ended.stdout + ended.stderr
    found = re.findall(r"^error: (.*)\n\s*┌─ \S*?:(\d+):\d+$", said, re.MULTILINE)
    assert (ended.returncode == 0) == (not found), said
    return [(int(line), message) for message, line in found]


def test_the_shipped_schema_is_that_of_the_code() -> None:
    shipped = (RECIPES / "recipe.schema.json").read_text()
    assert shipped == schema_text(), "dtrain schema --output recipes/recipe.schema.json"
    assert json.loads(shipped) == recipe_schema()


def test_the_command_prints_the_schema_or_writes_it(dtrain_here: Callable[..., Said], tmp_path: Path) -> None:
    assert dtrain_here("schema") == Said(0, schema_text(), "")
    assert dtrain_here("schema", "--output", tmp_path / "s.json") == Said(0, "", "")
    assert (tmp_path / "s.json").read_text() == schema_text()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_taplo_passes_the_shipped_recipes(path: Path) -> None:
    assert path.read_text().startswith(f"{FIRST}\n")
    assert complaints(path) == []


@pytest.mark.parametrize("template", starts())
@pytest.mark.parametrize("are_images", [False, True])
def test_taplo_passes_what_new_writes(folder: Path, template: str, are_images: bool) -> None:
    path = folder / f"new-{template}.toml"
    path.write_text(start(template, "mine", "data", are_images=are_images))
    assert complaints(path) == []


@pytest.mark.parametrize(("name", "text"), list(goods()), ids=[name for name, _ in goods()])
def test_taplo_passes_what_dtrain_takes(folder: Path, name: str, text: str) -> None:
    path = folder / f"good-{name}.toml"
    path.write_text(schemed(text))
    recipe = dtrain.load(path, imports=False)
    assert complaints(path) == []
    path.write_text(schemed(to_toml(recipe)))  # as a run keeps it
    assert complaints(path) == []


def test_a_file_that_others_extend_may_lack_anything(folder: Path) -> None:
    part = folder / "common.toml"
    part.write_text(schemed('extends = []\n\n[train]\nprecision = "fp16"\n'))
    assert complaints(part) == []
    part.write_text(schemed('[train]\nprecision = "fp16"\n'))
    assert {'"name" is a required property', '"batch_size" is a required property'} <= {
        message for _, message in complaints(part)
    }


IN_LAYERS = [  # what stands in a layer of the GAN's, what stands there instead, of what Taplo speaks
    ('"linear", out = 32', '"liner", out = 32', "not one of"),
    ('"linear", out = 32', '"linear"', '"out" is a required property'),
    ('"linear", out = 32', '"linear", out = 32, initial = { kind = "norml" }', "not one of"),
    ('"linear", out = 32', '"linear", out = 32, initial = { kind = "normal", std = -1 }', "minimum of 0"),
    ('"linear", out = 32', '"use"', '"stack" is a required property'),
    ("kernel = 3, stride", "kernel = [3, 0], stride", "less than or equal to the minimum of 0"),
    ('"relu" }', '"rely" }', "not one of"),
    ("slope = 0.2", "slop = 0.2", "unknown key; activation has"),
    ("rate = 0.2", "rate = 1.0", "greater than or equal to the maximum of 1"),
]
SYSTEMS = json.dumps(sorted(KINDS[System]), separators=(",", ":"))
BROKEN = [  # the same elsewhere
    ("seed = 3", "sead = 3", "unknown key"),
    ("seed = 3", "seed = -1", "less than the minimum of 0"),
    ("seed = 3", 'seed = "3"', 'not of type "integer"'),
    ('name = "tiny-gan"', 'name = "a/b"', "does not match"),
    ('kind = "gan"', 'kind = "gam"', f"not one of {SYSTEMS}"),
    ("latent = 4\n", "latent = 0.5\n", 'not of type "integer"'),
    ("critic_steps = 2", "critic_step = 2", "unknown key; gan has"),
    ("critic_steps = 2", 'loss = "hinges"', "not one of"),
    ("input = [4]", "input = [0]", "less than or equal to the minimum of 0"),
    ("lr = 0.05", "lr = -0.05", "less than the minimum of 0"),
    ("momentum = 0.9", "betas = [0.9, 0.99]", "unknown key; sgd has"),
    ("warmup = 4", "warmap = 4", "unknown key; cosine has"),
    ("decay = 0.9", "decay = 1.1", "greater than the maximum of 1"),
    ('path = "pictures.npz"', "path = 3", 'not of type "string"'),
    ("batch_size = 8\nmicro", "batch_size = true\nmicro", "not of type"),
    ("log = 1\n", "lug = 1\n", "unknown key; this table has log, sample, evaluate, save"),
    ('best = "evaluate/loss"', "best = 1", 'not of type "string"'),
    ('kinds = ["jsonl"]', 'kinds = ["json"]', "not one of"),
]


@pytest.mark.parametrize(("old", "new", "said"), [*BROKEN, *IN_LAYERS])
def test_taplo_finds_a_mistake_at_its_line(folder: Path, old: str, new: str, said: str) -> None:
    assert_found(folder, schemed(GAN.replace(old, new, 1)), new, said)


@pytest.mark.parametrize(("old", "new", "said"), IN_LAYERS)
def test_taplo_finds_a_mistake_in_nested_layers_of_a_stack(
    folder: Path, old: str, new: str, said: str
) -> None:
    layer = next(line.replace(old, new) for line in GAN.split("\n") if old in line)
    repeat = f'{{ kind = "repeat", times = 2, layers = [\n{layer}\n] }}'
    stack = f'layers = [\n{{ kind = "residual", layers = [ {repeat} ] }}\n]\n'
    assert_found(folder, schemed(f'extends = "gan.toml"\n\n[layers.deep]\n{stack}'), new, said)


def assert_found(folder: Path, text: str, new: str, said: str) -> None:
    """Taplo says this of the line with the mistake, and nothing of others."""
    path = folder / "broken.toml"
    path.write_text(text)
    found = complaints(path)
    assert {line for line, _ in found} == {1 + text.split(new)[0].count("\n")}, found
    assert any(said in message for _, message in found), found


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [("[train]", "[trian]", "train"), ("input = [4]", "imput = [4]", "input"), ("lr = 0.05\n", "", "lr")],
)
def test_taplo_finds_what_is_missing(folder: Path, old: str, new: str, key: str) -> None:
    path = folder / "lacking.toml"
    path.write_text(schemed(GAN.replace(old, new)))
    assert f'"{key}" is a required property' in {message for _, message in complaints(path)}


def seen(schema: Any, whole: Any) -> Iterator[dict[str, Any]]:
    """The schemas of a place that Taplo looks at when it completes: no `if`, `then` or `else`."""
    if not isinstance(schema, dict):
        return
    if "$ref" in schema:
        yield from seen(whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], whole)
        return
    yield schema
    for one in schema.get("anyOf", []):
        yield from seen(one, whole)


def below(schemas: list[dict[str, Any]], key: str, whole: Any) -> list[dict[str, Any]]:
    """The same of a key, or of the items of an array."""
    inner = [schema.get("items") for schema in schemas] if key == "[]" else []
    for schema in schemas if key != "[]" else []:
        inner += [schema.get("properties", {}).get(key), schema.get("additionalProperties")]
    return [found for one in inner for found in seen(one, whole)]


PLACES = {  # where tables stand that have no name of their own
    "a layer": ["models", "any", "layers", "[]"],
    "a metric": ["evaluate", "metrics", "any"],
    "a schedule": ["optimizers", "any", "schedule"],
    "a part of a sequence": ["optimizers", "any", "schedule", "parts", "[]"],
    "a length": ["optimizers", "any", "schedule", "warmup"],
    "an initial value": ["models", "any", "layers", "[]", "initial"],
    "an axis": ["sweep", "axes", "any"],
    "a pruner": ["sweep", "prune"],
    "the top of the recipe": [],
    "[[system.phases]]": ["system", "phases", "[]"],
    "[...losses.NAME]": ["models", "any", "losses", "any"],
}


@pytest.mark.parametrize(("name", "cls"), list(tables()), ids=[name for name, _ in tables()])
def test_an_editor_sees_every_key_with_its_description(name: str, cls: type) -> None:
    whole = recipe_schema()
    table, _, kind = name.partition("|")
    schemas = list(seen(whole, whole))
    for part in PLACES.get(table, table.strip("[]").split(".")):
        schemas = below(schemas, part, whole)
    for key in fields_of(cls):
        assert any(schema.get("description") for schema in below(schemas, key, whole)), f"{name}: {key}"
    if kind:
        assert any(kind in schema.get("enum", []) for schema in below(schemas, "kind", whole))


def test_an_editor_that_looks_up_the_items_of_a_table_in_an_array_twice_sees_its_keys() -> None:
    whole = recipe_schema()  # as Taplo 0.8 does when it completes, and when the mouse rests on a key
    schemas = list(seen(whole, whole))
    for part in ("models", "any", "layers", "[]", "[]", "layers", "[]", "[]"):
        schemas = below(schemas, part, whole)
    assert any(below(schemas, key, whole) for key in ("out", "kernel"))
