"""Mistakes in a recipe are named under their dotted keys; references, overrides, paths; out and in again."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import tomli
from conftest import CLASSIFIER, GAN
from pydantic import TypeAdapter

import dtrain
from dtrain.errors import RecipeError, RecipeErrors
from dtrain.recipe.load import from_table
from dtrain.recipe.values import Recipe
from dtrain.recipe.write import encode, to_toml
from dtrain.spec.blocks import Layers
from dtrain.spec.layers import Layer
from dtrain.spec.optimizers import Optimizer
from dtrain.spec.schedules import Schedule
from dtrain.spec.table import KINDS
from dtrain.systems.base import System

RECIPES = Path(dtrain.__file__).parents[1] / "recipes"


def read(text: str, folder: Path = Path("/nowhere"), **options: Any) -> Recipe:
    return from_table(tomli.loads(text), folder=folder, source="r.toml", **options)


def mistakes_in(text: str) -> dict[str, str]:
    """Every mistake of a recipe, by key."""
    with pytest.raises(RecipeErrors) as caught:
        read(text)
    return {error.key: error.message for error in caught.value.errors}


def changed(old: str, new: str, recipe: str = GAN) -> str:
    assert recipe.count(old) == 1, old
    return recipe.replace(old, new)


LINEAR, FIRST, LAST = 'kind = "linear", out = 32', "models.generator.layers[0]", "optimizers.discriminator"
ADAM, STAR = 'kind = "adam"', "optimizers.generator"
MISTAKES = [  # what stands in the GAN's recipe, what stands there instead, the key, what is said of it
    ("seed = 3", "sead = 3", "sead", 'unknown key; did you mean "seed"?'),
    ("seed = 3", "seed = -1", "seed", "found -1; a number at least 0 would do"),
    ("seed = 3", "seed = 1.5", "seed", "found 1.5; a whole number would do"),
    ("seed = 3", "seed = true", "seed", "found true; a whole number would do"),
    ('name = "tiny-gan"', "", "name", "required, but missing"),
    ('name = "tiny-gan"', 'name = "a/b"', "name", 'found "a/b"; letters, digits'),
    ('kind = "gan"\n', 'kind = "gam"\n', "system.kind", 'unknown kind "gam"; one of classifier, gan'),
    ('kind = "gan"\n', 'kind = "gam"\n', "system.kind", 'did you mean "gan"?'),
    ('kind = "gan"\n', "", "system.kind", "missing; one of classifier, gan"),
    ("latent = 4\n", "latent = 4\ncritic_step = 2\n", "system.critic_step", 'did you mean "critic_steps"?'),
    ("latent = 4\n", "latent = 0\n", "system.latent", "found 0; a number above 0 would do"),
    ("latent = 4\n", 'latent = "4"\n', "system.latent", 'found "4"; a whole number would do'),
    ("latent = 4\n", 'latent = 4\nloss = "hinges"\n', "system.loss", 'did you mean "hinge"?'),
    ("latent = 4\n", "latent = 5\n", "system", "latent is 5, but models.generator.input is [4]"),
    ("input = [4]", "imput = [4]", "models.generator.imput", 'unknown key; did you mean "input"?'),
    ("input = [4]", "input = [0]", "models.generator.input[0]", "found 0; a number above 0 would do"),
    ("input = [4]", "input = 4", "models.generator.input", "found 4; an array would do"),
    (LINEAR, 'kind = "liner", out = 32', f"{FIRST}.kind", '"linear"?'),
    (LINEAR, 'kind = "linear"', f"{FIRST}.out", "required, but missing"),
    (LINEAR, 'kind = "linear", ouf = 32, out = 32', f"{FIRST}.ouf", '"out"'),
    (LINEAR, 'kind = "linear", out = 33', "models.generator.layers[1]", "(33,) holds 33 values"),
    ("slope = 0.2", "slop = 0.2", "models.discriminator.layers[1].slop", 'did you mean "slope"?'),
    ('"relu" }', '"rely" }', "models.generator.layers[3].function", 'did you mean "relu"?'),
    ("rate = 0.2", "rate = 1.0", "models.discriminator.layers[2].rate", "a number below 1.0 would do"),
    ("rate = 0.2", "rate = nan", "models.discriminator.layers[2].rate", "found nan"),
    (ADAM, 'kind = "adan"', f"{STAR}.kind", 'did you mean "adam"?'),
    (ADAM, "", f"{STAR}.kind", "missing; one of adam, adamw, sgd"),
    (ADAM, 'kind = "adam"\nbeta = 1', f"{STAR}.beta", 'did you mean "betas"?'),
    (ADAM, 'kind = "adam"\nbetas = [0.5]', f"{STAR}.betas", "found [0.5]; 1 more would do"),
    (ADAM, 'kind = "adam"\nbetas = [0.5, 1.0]', f"{STAR}.betas[1]", "below 1.0"),
    ('kind = "cosine"', 'kind = "cosin"', f"{STAR}.schedule.kind", 'did you mean "cosine"?'),
    ("warmup = 4", "warm = 4", f"{STAR}.schedule.warm", 'did you mean "warmup"?'),
    ("[optimizers.discriminator]", "[optimizers.discriminators]", f"{LAST}s", '"discriminator"?'),
    ("lr = 0.05", "lr = -0.05", f"{LAST}.lr", "found -0.05; a number at least 0"),
    ("lr = 0.05", 'lr = "fast"', f"{LAST}.lr", 'found "fast"; a number would do'),
    ("lr = 0.05", "lr = inf", f"{LAST}.lr", "found inf"),
    ("clip = 1.0", "clip = 0", f"{LAST}.clip", "found 0; a number above 0"),
    ("momentum = 0.9", "nesterov = true", "optimizers.discriminator", "nesterov needs a momentum above 0"),
    ("[averages.generator]", "[averages.generater]", "averages.generater", 'did you mean "generator"?'),
    ("decay = 0.9", "decay = 1.1", "averages.generator.decay", "found 1.1; a number at most 1"),
    ('kind = "arrays"', 'kind = "array"', "data.kind", 'did you mean "arrays"?'),
    ('path = "pictures.npz"', "path = 3", "data.path", "found 3; a path, as a string"),
    ('path = "pictures.npz"', 'paths = "p"', "data.paths", 'did you mean "path"?'),
    ("steps = 8", "", "train", "give either `steps` or `epochs`"),
    ("steps = 8", "steps = 8\nepochs = 2", "train", "give either `steps` or `epochs`"),
    ("batch_size = 8\n", "batch_size = 9\n", "train.batch_size", "9 is not a multiple of"),
    ("steps = 8", 'steps = 8\nprecision = "fp8"', "train.precision", "one of fp32, fp64, bf16, fp16"),
    ("steps = 8", 'steps = "8"', "train.steps", 'found "8"; a whole number would do'),
    ('best = "evaluate/loss"', 'best = "loss"', "checkpoint.best", "is not a metric of evaluation"),
    ('mode = "min"', 'mode = "least"', "checkpoint.mode", "one of max, min would do"),
    ('kinds = ["jsonl"]', 'kinds = ["json"]', "track.kinds[0]", 'did you mean "jsonl"?'),
    ('kinds = ["jsonl"]', "kinds = 3", "track.kinds", "found 3; an array would do"),
    ("[train]", "[trains]", "trains", 'unknown key; did you mean "train"?'),
    ("[train]", "[trains]", "train", "required, but missing"),
    ("[models.discriminator]", "[models.critic]", "system", "needs the model discriminator"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "key", "said"), MISTAKES)
def test_a_mistake_is_named_with_what_would_do(old: str, new: str, key: str, said: str) -> None:
    found = mistakes_in(GAN.replace(old, new, 1))
    assert key in found, found
    assert said in found[key]
    assert all("pydantic" not in message for message in found.values())


def test_a_model_that_no_phase_trains_needs_no_optimizer_and_may_have_none() -> None:
    extra = '[models.other]\ninput = [4]\nlayers = [{ kind = "linear", out = 1 }]\n\n[optimizers."*"]'
    recipe = read(changed('[optimizers."*"]', extra))  # "*" is for those that are trained
    assert recipe.optimizers.keys() == {"generator", "discriminator"}
    own = '[optimizers.generator]\nkind = "adam"\nlr = 1e-3\n'
    text = changed('[optimizers."*"]', extra.replace('[optimizers."*"]', own + "[hyperparameters.old]"))
    assert "other" in read(text).models


def test_all_mistakes_are_said_at_once_each_under_its_key() -> None:
    text = GAN
    wrong = {
        "seed = 3": "seed = -3",
        "latent = 4": "latent = 0",
        "warmup = 4": "warm = 4",
        "lr = 0.05": 'lr = "x"',
    }
    for old, new in wrong.items():
        text = changed(old, new, text)
    found = mistakes_in(text.replace("steps = 8", "steps = 8\nextra = 1"))
    assert set(found) == {
        "seed",
        "system.latent",
        "optimizers.generator.schedule.warm",
        "optimizers.discriminator.lr",
        "train.extra",
    }


def test_contradictions_between_tables_are_said_at_once() -> None:
    text = changed("batch_size = 8\n", "batch_size = 9\n")
    text = changed('best = "evaluate/loss"', 'best = "x"', text)
    text = changed("[averages.generator]", "[averages.nobody]", text)
    text = changed("out = 32", "out = 31", text)
    text = changed("kernel = 3", "kernel = 30", text)
    assert set(mistakes_in(text)) == {
        "train.batch_size",
        "checkpoint.best",
        "averages.nobody",
        "models.generator.layers[1]",
        "models.discriminator.layers[0]",
    }


def test_an_error_says_the_file_and_every_line_of_it_stands_alone(gan: Path) -> None:
    with pytest.raises(RecipeErrors) as caught:
        dtrain.load(gan, ["seed=-1", "train.steps=0"])
    assert str(caught.value).splitlines() == [
        f"{gan}: seed: found -1; a number at least 0 would do",
        f"{gan}: train.steps: found 0; a number above 0 would do",
    ]
    assert isinstance(caught.value, RecipeError)
    assert caught.value.key == "seed"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such recipe"),
        (b"a = ", "not TOML"),
        (b"a = 1\na = 2\n", "not TOML"),
        (b"\xff\xfe", "cannot be read"),
        (b"a = " + b"[" * 5000, "not TOML"),
    ],
    ids=["missing", "unfinished", "twice", "not UTF-8", "too deep"],
)
def test_a_file_that_is_no_recipe_is_said(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        dtrain.load(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    with pytest.raises(RecipeError, match="cannot be read"):
        dtrain.load(tmp_path)


# --- references ---


def with_hyperparameters(lines: str, seed: str) -> str:
    return GAN.replace("lr = 2e-3", f"lr = 2e-3\n{lines}").replace("seed = 3", f"seed = {seed}")


@pytest.mark.parametrize(
    ("lines", "name", "expected"),
    [
        ("", "gan-${hyperparameters.lr}", "gan-0.002"),
        ("size = 4", "s${hyperparameters.size}-${seed}", "s4-3"),
        ("on = true", "${hyperparameters.on}", True),
        ("a = '${hyperparameters.b}'\nb = 'x'", "${hyperparameters.a}", "x"),
        ("a = 'pre-${hyperparameters.b}'\nb = 'x'", "${hyperparameters.a}-post", "pre-x-post"),
        ("on = true", "is-${hyperparameters.on}", "is-true"),
    ],
)
def test_references_are_typed_and_within_strings_text(lines: str, name: str, expected: Any) -> None:
    text = with_hyperparameters(lines, "3").replace('name = "tiny-gan"', f'name = "{name}"')
    if isinstance(expected, str):
        assert read(text).name == expected
    else:
        assert mistakes_in(text) == {"name": "found true; a string would do"}


def test_a_reference_brings_numbers_arrays_and_whole_tables() -> None:
    text = changed("latent = 4", 'latent = "${models.generator.input_size}"')
    assert "refers to nothing" in mistakes_in(text)["system.latent"]
    text = with_hyperparameters('n = 4\nshape = [2, 4, 4]\nplan = { kind = "linear", warmup = 3 }', "3")
    text = changed("latent = 4", 'latent = "${hyperparameters.n}"', text)
    text = changed("shape = [2, 4, 4] }", 'shape = "${hyperparameters.shape}" }', text)
    text = changed('schedule = { kind = "cosine", warmup = 4 }', 'schedule = "${hyperparameters.plan}"', text)
    recipe = read(text)
    assert recipe.system == read(GAN).system
    assert recipe.models == read(GAN).models
    assert encode(recipe.optimizers["generator"].schedule) == {"kind": "linear", "warmup": 3, "floor": 0.0}


@pytest.mark.parametrize(
    ("lines", "seed", "key", "said"),
    [
        ("", '"${hyperparameter.lr}"', "seed", 'refers to nothing; did you mean "hyperparameters"?'),
        ("", '"${hyperparameters.lt}"', "seed", 'refers to nothing; did you mean "lr"?'),
        ("", '"${name.x}"', "seed", "${name.x} refers to nothing"),
        ("", '"${seed}"', "seed", "references go in a circle: seed -> seed"),
        ("a = '${hyperparameters.b}'\nb = '${hyperparameters.a}'", "3", "hyperparameters.a", "circle"),
        ("t = { a = 1 }", '"x${hyperparameters.t}"', "seed", "and cannot stand inside a string"),
    ],
)  # fmt: skip
def test_a_reference_that_leads_nowhere_is_named(lines: str, seed: str, key: str, said: str) -> None:
    text = with_hyperparameters(lines, seed)
    found = mistakes_in(text)
    assert key in found, found
    assert said in found[key]


# --- overrides ---

LAYER = "models.generator.layers.0"


@pytest.mark.parametrize(
    ("override", "place", "expected"),
    [
        ("train.steps=100", "train.steps", 100),
        ("hyperparameters.lr=1e-4", "optimizers.generator.lr", 1e-4),
        ("models.generator.layers[0].initial={kind='normal', std=2}", f"{LAYER}.initial.std", 2.0),
        ("models.generator.layers[0].bias=false", f"{LAYER}.bias", False),
        ("models.generator.layers.0.bias=false", f"{LAYER}.bias", False),
        ('track.kinds=["console"]', "track.kinds.0", "console"),
        ("track.project=my project", "track.project", "my project"),
        ('track.project="12"', "track.project", "12"),
        ("every.sample=5", "every.sample", 5),
        ("evaluate.data={kind='arrays', path='/x.npz'}", "evaluate.data.path", "/x.npz"),
        ("optimizers.generator.lr=0.5", "optimizers.generator.lr", 0.5),
        ("optimizers.generator.lr=0.5", "optimizers.generator.schedule.warmup", 4),
        ("optimizers.generator.schedule.warmup=7", "optimizers.generator.schedule.warmup", 7),
        ("optimizers.*.lr=0.5", "optimizers.generator.lr", 0.5),
        ("optimizers.*.lr=0.5", "optimizers.discriminator.lr", 0.05),
    ],
)  # fmt: skip
def test_an_override_sets_one_leaf(gan: Path, override: str, place: str, expected: Any) -> None:
    table = encode(dtrain.load(gan, [override]))
    for part in place.split("."):
        table = table[int(part) if isinstance(table, list) else part]
    assert table == expected
    assert type(table) is type(expected)


def test_the_star_is_overridden_before_the_model_that_it_serves(gan: Path) -> None:
    overrides = ["optimizers.generator.betas=[0.5, 0.9]", "optimizers.*.lr=0.5"]
    for order in (overrides, overrides[::-1]):
        generator = encode(dtrain.load(gan, order).optimizers["generator"])
        assert (generator["lr"], generator["betas"]) == (0.5, [0.5, 0.9])


@pytest.mark.parametrize(
    ("override", "key", "said"),
    [
        ("train.steps", "", "'train.steps' is not an override; write key=value"),
        ("=3", "", "is not an override"),
        ("train.stebs=3", "train.stebs", 'did you mean "steps"?'),
        ("train.steps=many", "train.steps", 'found "many"; a whole number would do'),
        ("models.generator.layers[9].out=3", "models.generator.layers[9]", "the array has 6, counted from 0"),
        ("models.generator.layers.first=3", "models.generator.layers.first", "the array has 6"),
        ("seed.x=3", "seed", "3 is no table, so seed.x cannot be set"),
        ("optimizers.nobody.lr=3", "optimizers.nobody.kind", "missing"),
    ],
)
def test_an_override_that_fits_nowhere_is_named(gan: Path, override: str, key: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        dtrain.load(gan, [override])
    errors = getattr(caught.value, "errors", [caught.value])
    assert [error.key for error in errors] == [key]
    assert said in errors[0].message


def test_a_star_serves_every_model_without_an_optimizer_of_its_own() -> None:
    recipe = read(GAN)
    assert list(recipe.optimizers) == ["generator", "discriminator"]
    assert [optimizer.kind for optimizer in recipe.optimizers.values()] == ["adam", "sgd"]
    assert "*" not in to_toml(recipe)


def test_paths_are_of_the_recipes_folder_and_on_the_command_line_of_the_working_one(
    gan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    relative = os.path.relpath(gan)
    for recipe in (dtrain.load(gan), dtrain.load(relative)):
        assert recipe.data.path == tmp_path / "pictures.npz"
    assert dtrain.load(gan, ["data.path=mine.npz"]).data.path == tmp_path / "elsewhere" / "mine.npz"
    assert dtrain.load(gan, ["data.path=../mine.npz"]).data.path == tmp_path / "mine.npz"
    assert dtrain.load(gan, ["data.path=/abs/mine.npz"]).data.path == Path("/abs/mine.npz")
    whole = dtrain.load(gan, ["evaluate.data={kind='arrays', path='mine.npz'}", "train.steps=3"])
    assert whole.evaluate.data.path == tmp_path / "elsewhere" / "mine.npz"
    assert whole.data.path == tmp_path / "pictures.npz"


# --- out and in again ---

EVERY_LAYER: dict[str, dict[str, Any]] = {  # of each kind a table with every key
    "linear": {"out": 3, "bias": False, "initial": {"kind": "normal", "std": 0.1, "mean": 0.0}},
    "conv": {
        "out": 4,
        "kernel": [3, 3],
        "stride": 1,
        "padding": [1, 0],
        "dilation": 1,
        "groups": 1,
        "bias": True,
    },
    "conv_transpose": {"out": 4, "kernel": 2, "stride": 2, "padding": 0, "output_padding": 1, "groups": 1},
    "upsample": {"factor": 2, "mode": "bilinear"},
    "pool": {"mode": "max", "size": 2, "stride": 1, "padding": 1},
    "reshape": {"shape": [2, 2]},
    "flatten": {},
    "group_norm": {"groups": 2, "eps": 1e-6},
    "layer_norm": {"eps": 1e-6},
    "batch_norm": {"momentum": 0.2, "eps": 1e-6},
    "activation": {"function": "leaky_relu", "slope": 0.3},
    "dropout": {"rate": 0.1},
    "embedding": {"size": 7, "out": 3, "initial": {"kind": "constant", "value": 0.5}},
    "residual": {"layers": [{"kind": "flatten"}]},
    "repeat": {"times": 2, "layers": [{"kind": "repeat", "times": 1, "layers": [{"kind": "flatten"}]}]},
}
EVERY_OPTIMIZER: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1, "clip": 2.0},
    "adam": {"betas": [0.5, 0.9], "eps": 1e-6, "weight_decay": 0.1},
    "adamw": {"betas": [0.5, 0.9], "eps": 1e-6, "weight_decay": 0.1},
}
EVERY_SCHEDULE: dict[str, dict[str, Any]] = {
    "constant": {"warmup": 3},
    "linear": {"warmup": 3, "floor": 0.1},
    "cosine": {"warmup": 3, "floor": 0.1},
}


def tables_of(rows: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"kind": kind, **row} for kind, row in rows.items()]


def assert_comes_back(recipe: Recipe) -> None:
    text = to_toml(recipe)
    again = read(text)
    assert again == recipe
    assert to_toml(again) == text
    assert from_table(encode(recipe), folder=Path("/nowhere"), source="again") == recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_comes_back_as_it_was(path: Path) -> None:
    assert_comes_back(dtrain.load(path))


@pytest.mark.parametrize(
    ("rows", "family"),
    [(EVERY_LAYER, Layer), (EVERY_OPTIMIZER, Optimizer), (EVERY_SCHEDULE, Schedule)],
    ids=["layers", "optimizers", "schedules"],
)
def test_every_kind_has_a_row(rows: Mapping[str, Any], family: type) -> None:
    assert set(rows) == set(KINDS[family])
    for kind, row in rows.items():
        fields = {field.name for field in dataclasses.fields(KINDS[family][kind])}
        assert row.keys() <= fields


@pytest.mark.parametrize("layer", tables_of(EVERY_LAYER), ids=lambda layer: layer["kind"])
def test_every_layer_comes_back_as_it_was(layer: dict[str, Any]) -> None:
    adapter = TypeAdapter(Layers)
    (value,) = adapter.validate_python([layer])
    assert adapter.validate_python([encode(value)]) == (value,)
    assert encode(value).items() >= layer.items()


@pytest.mark.parametrize("schedule", tables_of(EVERY_SCHEDULE), ids=lambda schedule: schedule["kind"])
@pytest.mark.parametrize("optimizer", tables_of(EVERY_OPTIMIZER), ids=lambda optimizer: optimizer["kind"])
def test_every_optimizer_and_schedule_comes_back_as_it_was(
    optimizer: dict[str, Any], schedule: dict[str, Any]
) -> None:
    table = tomli.loads(GAN)
    table["optimizers"] = {"*": {**optimizer, "lr": 0.1, "schedule": schedule}}
    recipe = from_table(table, folder=Path("/nowhere"), source="r.toml")
    assert_comes_back(recipe)
    assert encode(recipe)["optimizers"]["generator"].items() >= {**optimizer, "schedule": schedule}.items()


def test_imported_kinds_come_back_as_they_were() -> None:
    text = CLASSIFIER.replace('kind = "adamw"', 'kind = "torch.optim:NAdam"\nbetas = [0.5, 0.9]\nclip = 1.0')
    head, _, tail = text.partition("input = [1, 8, 8]")
    model = 'kind = "torch.nn:Linear"\nin_features = 3\nout_features = 4\n'
    text = head + model + tail[tail.index("\n[optimizers") :]
    text = text.replace('kind = "arrays"\npath = "pictures.npz"', 'kind = "mine:Pictures"\nfolder = "x"')
    recipe = read(text)
    assert recipe.optimizers["classifier"].clip == 1.0
    assert dict(recipe.optimizers["classifier"].arguments) == {"betas": [0.5, 0.9]}
    assert_comes_back(recipe)
    unread = read(text.replace('kind = "classifier"', 'kind = "mine:System"'), imports=False)
    table = encode(unread)
    assert table["system"] == {"kind": "mine:System", "label_smoothing": 0.1}
    assert from_table(table, folder=Path("/nowhere"), source="again", imports=False) == unread


def test_a_system_of_ones_own_is_decoded_as_strictly_as_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_gan.py").write_text(MY_GAN)
    monkeypatch.syspath_prepend(tmp_path)
    text = changed('kind = "gan"\n', 'kind = "my_gan:MyGAN"\n')
    recipe = read(text.replace("critic_steps = 2", "wisdom = 0.5"))
    assert isinstance(recipe.system, System)
    assert recipe.system.wisdom == 0.5
    assert_comes_back(recipe)
    found = mistakes_in(text.replace("critic_steps = 2", "wisdon = 0.5"))
    assert found == {"system.wisdon": 'unknown key; did you mean "wisdom"?'}
    found = mistakes_in(text.replace("critic_steps = 2", "wisdom = 2.5"))
    assert found == {"system.wisdom": "found 2.5; a number at most 1.0 would do"}
    for path, said in {
        "my_gan:MyGun": "has no attribute 'MyGun'",
        "no_gan:MyGAN": "No module named 'no_gan'",
        "my_gan:make": "is not a System",
        "collections:OrderedDict": "is not a System",
    }.items():
        assert said in mistakes_in(text.replace("my_gan:MyGAN", path))["system.kind"]


MY_GAN = """
from dtrain.spec.table import Fraction, table
from dtrain.systems.gan import GAN

@table
class MyGAN(GAN):
    wisdom: Fraction = 0.0

def make(**arguments):
    return 3
"""


def test_values_are_frozen_to_the_bottom() -> None:
    def visit(value: Any, place: str) -> int:
        if dataclasses.is_dataclass(value):
            with pytest.raises(dataclasses.FrozenInstanceError):
                value.any = None
            return 1 + sum(
                visit(getattr(value, f.name), f"{place}.{f.name}") for f in dataclasses.fields(value)
            )
        if isinstance(value, Mapping):
            assert isinstance(value, MappingProxyType), place
            return sum(visit(item, f"{place}.{key}") for key, item in value.items())
        if isinstance(value, tuple):
            return sum(visit(item, f"{place}[{number}]") for number, item in enumerate(value))
        assert not isinstance(value, list | dict | set), place
        return 1

    assert visit(read(GAN), "recipe") > 60
    extra = with_hyperparameters("sizes = [1, 2]\nplan = { kind = 'linear' }", "3")
    assert visit(read(extra), "recipe") > 60
