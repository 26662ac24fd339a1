"""A recipe is put together from files, arguments and stacks, and each mistake stands where it was written."""

from pathlib import Path
from typing import Any

import pytest
from conftest import CLASSIFIER, GAN, written
from reading import changed, marked, mistakes_of, spots_of

import dtrain
from dtrain.recipe.values import Recipe
from dtrain.recipe.write import encode, to_toml


def files(folder: Path, **texts: str) -> Path:
    """Write recipes beside a tiny GAN, `base.toml`; return the path of `r.toml`."""
    written(folder, "base.toml", GAN)
    for name, text in texts.items():
        path = folder / (name.replace("__", "/") + ".toml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "r.toml"


# --- extends ---


def test_a_recipe_says_what_differs_from_the_one_that_it_extends(tmp_path: Path) -> None:
    own = 'extends = "base.toml"\nseed = 9\n[train]\nsteps = 30\n[averages.discriminator]\ndecay = 0.5\n'
    recipe = dtrain.load(files(tmp_path, r=own))
    text = changed("[averages.generator]", "[averages.discriminator]\ndecay = 0.5\n\n[averages.generator]")
    whole = changed("seed = 3", "seed = 9", changed("steps = 8", "steps = 30", text))
    assert recipe == dtrain.load(written(tmp_path, "whole.toml", whole))


def test_of_several_the_later_says_it_and_the_recipe_itself_last(tmp_path: Path) -> None:
    path = files(
        tmp_path,
        a='extends = "base.toml"\nseed = 1\n[train]\nsteps = 11\nbatch_size = 12\n[every]\nlog = 3\n',
        b="seed = 2\n[train]\nsteps = 22\n[every]\nsample = 4\n",
        r='extends = ["a.toml", "b.toml"]\n[train]\nsteps = 33\n',
    )
    recipe = dtrain.load(path)
    assert (recipe.seed, recipe.train.steps, recipe.train.batch_size) == (2, 33, 12)
    assert (recipe.every.log, recipe.every.sample, recipe.every.save) == (3, 4, 2)


def test_paths_are_relative_to_the_file_that_says_them(tmp_path: Path) -> None:
    path = files(
        tmp_path,
        deep__er__mine='extends = "../middle.toml"\n[evaluate.data]\nkind = "arrays"\npath = "e.npz"\n',
        deep__middle='extends = "../base.toml"\nseed = 5\n',
    )
    recipe = dtrain.load(path.parent / "deep/er/mine.toml")
    assert recipe.seed == 5
    assert recipe.data.path == tmp_path / "pictures.npz"
    assert recipe.evaluate.data.path == tmp_path / "deep/er/e.npz"


def test_unset_removes_a_table_a_leaf_and_nothing_that_is_not_there(tmp_path: Path) -> None:
    unset = '"${unset}"'
    text = f'extends = "base.toml"\nseed = {unset}\naverages = {unset}\n[train]\nmicro_batch_size = {unset}\n'
    text += f"[optimizers]\ndiscriminator = {unset}\n"
    recipe = dtrain.load(files(tmp_path, r=text))
    assert (recipe.seed, dict(recipe.averages), recipe.train.micro_batch_size) == (0, {}, None)
    assert recipe.optimizers["discriminator"].kind == "adam"  # "*" serves it now
    text, where = marked(f'extends = "base.toml"\n[train]\nmicro_batch = ^{unset}\n')
    (error,) = mistakes_of(files(tmp_path, r=text))
    assert (error.suggestion, spots_of([error])) == ("micro_batch_size", [("r.toml", *where)])
    (error,) = mistakes_of(tmp_path / "base.toml", 'optimizers."*".clip=${unset}')
    assert "there is nothing here to remove" in error.message
    (error,) = mistakes_of(written(tmp_path, "own.toml", changed("seed = 3", f"seed = {unset}")))
    assert "${unset} removes what `extends` brought" in error.message
    assert dtrain.load(tmp_path / "base.toml", ["seed=${unset}"]).seed == 0


def test_a_table_in_place_of_a_value_and_the_reverse_takes_it_whole(tmp_path: Path) -> None:
    text = 'extends = "base.toml"\n[optimizers."*"]\nschedule = { kind = "linear" }\n'
    schedule = encode(dtrain.load(files(tmp_path, r=text)).optimizers["generator"].schedule)
    assert schedule == {"kind": "linear", "warmup": 4, "floor": 0.0}  # tables are merged: the warm-up stays
    text = 'extends = "base.toml"\n[models.generator]\nlayers = [{ kind = "linear", out = 3 }]\n'
    assert len(mistakes_of(files(tmp_path, r=text))) == 1  # arrays are not: this has one layer


@pytest.mark.parametrize(
    ("texts", "said", "spot"),
    [
        ({"r": 'extends = "bas.toml"'}, 'no such file; did you mean "base.toml"?', ("r.toml", 1, 11)),
        ({"r": 'extends = ["base.toml", "a/b.toml"]'}, "there is no such file", ("r.toml", 1, 25)),
        ({"r": 'extends = "./d/c.toml"', "d__b": ""}, 'did you mean "./d/b.toml"?', ("r.toml", 1, 11)),
        ({"r": "extends = 3"}, "found 3; a path, as a string, or an array of them", ("r.toml", 1, 11)),
        ({"r": 'extends = "r.toml"'}, "extend each other in a circle: r.toml -> r.toml", ("r.toml", 1, 11)),
        (
            {"r": 'extends = "a.toml"', "a": 'seed = 1\nextends = ["b.toml"]', "b": 'extends = "a.toml"'},
            "circle: a.toml -> b.toml -> a.toml",
            ("b.toml", 1, 11),
        ),
        ({"r": 'extends = "a.toml"', "a": "seed = \n"}, "not TOML: this is no value", ("a.toml", 1, 8)),
        ({"r": 'extends = "."'}, "cannot be read: it is not a file", ("r.toml", 1, 11)),
    ],
)
def test_what_cannot_be_extended_is_named_at_its_file(
    tmp_path: Path, texts: dict[str, str], said: str, spot: tuple[str, int, int]
) -> None:
    (error,) = mistakes_of(files(tmp_path, **texts))
    assert said in error.message
    assert spots_of([error]) == [spot]


def test_a_mistake_stands_in_the_file_that_says_it(tmp_path: Path) -> None:
    base = changed("latent = 4", "latent = 0", changed("warmup = 4", "warm = 4"))
    own = 'extends = "b.toml"\nseed = -1\n[system]\ncritic_step = 3\n[hyperparameters]\nlr = "x"\n'
    errors = mistakes_of(files(tmp_path, b=base, r=own), "train.steps=0", "every={lag = 3}")
    found = dict(zip((error.key for error in errors), spots_of(errors), strict=True))
    assert found == {
        "seed": ("r.toml", 2, 8),
        "system.critic_step": ("r.toml", 4, 1),
        "hyperparameters.lr": ("r.toml", 6, 6),
        "system.latent": ("b.toml", 9, 10),
        "optimizers.*.schedule.warm": ("b.toml", 36, 31),
        "train.steps": ("argument 1", 0, 13),
        "every.lag": ("argument 2", 0, 8),
    }


def test_of_two_that_disagree_each_is_told_from_its_own_file(tmp_path: Path) -> None:
    (error,) = mistakes_of(files(tmp_path, r='extends = "base.toml"\n[system]\nlatent = 7\n'))
    assert (error.key, spots_of([error])) == ("system.latent", [("r.toml", 3, 10)])
    (error,) = mistakes_of(tmp_path / "base.toml", "system.latent=7")
    assert (error.key, spots_of([error])) == ("system.latent", [("argument 1", 0, 15)])


# --- files and values in place of the recipe's ---


def test_set_files_are_merged_over_the_recipe_and_overrides_over_them(tmp_path: Path) -> None:
    path = files(tmp_path, r='extends = "base.toml"\nseed = 1\n', big="seed = 2\n[train]\nsteps = 80\n")
    (tmp_path / "more.toml").write_text('extends = "big.toml"\n[train]\nbatch_size = 16\n')
    recipe = dtrain.load(path, ["train.steps=81"], set_files=[tmp_path / "more.toml"])
    assert (recipe.seed, recipe.train.steps, recipe.train.batch_size) == (2, 81, 16)
    twice = dtrain.load(path, set_files=[tmp_path / "more.toml", tmp_path / "base.toml"])
    assert (twice.seed, twice.train.steps, twice.train.batch_size) == (3, 8, 8)
    (tmp_path / "wrong.toml").write_text("[train]\nsteps = 0\n")
    (error,) = mistakes_of(path, set_files=[tmp_path / "wrong.toml"])
    assert spots_of([error]) == [("wrong.toml", 2, 9)]


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
        ("track.project=a=b", "track.project", "a=b"),
        ("seed=${train.steps}", "seed", 8),
        ("every.sample=5", "every.sample", 5),
        ("evaluate.data={kind='arrays', path='/x.npz'}", "evaluate.data.path", "/x.npz"),
        ("optimizers.generator.lr=0.5", "optimizers.generator.lr", 0.5),
        ("optimizers.generator.lr=0.5", "optimizers.generator.schedule.warmup", 4),
        ("optimizers.generator.schedule.warmup=7", "optimizers.generator.schedule.warmup", 7),
        ("optimizers.*.lr=0.5", "optimizers.generator.lr", 0.5),
        ('optimizers."*".lr=0.5', "optimizers.generator.lr", 0.5),
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
        ("^train.steps", "", "'train.steps' is not an override; write key=value"),
        ("^=3", "", "is not an override"),
        ("train.^stebs=3", "train.stebs", 'did you mean "steps"?'),
        ("train.steps=^many", "train.steps", 'found "many"; a whole number would do'),
        ("train.steps=^ [1, 2", "train.steps", 'found " [1, 2"; a whole number would do'),
        ("track.kinds=['console', ^3]", "track.kinds[1]", "found 3; one of console"),
        ("data={kind='arrays', ^pat='x'}", "data.pat", 'did you mean "path"?'),
        ("models.generator.layers^[9].out=3", "models.generator.layers[9]", "the array has 6, counted"),
        ("models.generator.layers.^first.out=3", "models.generator.layers.first", "the array has 6"),
        ("^seed.x=3", "seed", "5 is no table, so seed.x cannot be set"),
        ("optimizers.^nobody.lr=3", "optimizers.nobody", "there is no such model"),
        ("^train..steps=3", "", "is not an override"),
    ],
)  # fmt: skip
def test_an_override_that_fits_nowhere_is_named_by_its_number_and_column(
    gan: Path, override: str, key: str, said: str
) -> None:
    text, (_, column) = marked(override)
    error, *_ = mistakes_of(gan, "seed=5", text)
    assert said in error.message
    assert (error.key, spots_of([error])) == (key, [("argument 2", 0, column)])


def test_paths_are_of_the_recipes_folder_and_on_the_command_line_of_the_working_one(
    gan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for recipe in (dtrain.load(gan), dtrain.load("../gan.toml")):
        assert recipe.data.path == tmp_path / "pictures.npz"
    assert dtrain.load(gan, ["data.path=mine.npz"]).data.path == tmp_path / "elsewhere" / "mine.npz"
    assert dtrain.load(gan, ["data.path=../mine.npz"]).data.path == tmp_path / "mine.npz"
    assert dtrain.load(gan, ["data.path=/abs/mine.npz"]).data.path == Path("/abs/mine.npz")
    override = ["evaluate.data={kind='arrays', path='mine.npz'}", "every.evaluate=3"]
    whole = dtrain.load(gan, override)
    assert whole.evaluate.data.path == tmp_path / "elsewhere" / "mine.npz"
    assert whole.data.path == tmp_path / "pictures.npz"
    (tmp_path / "set.toml").write_text('data.path = "beside.npz"\n')
    assert dtrain.load(gan, set_files=["../set.toml"]).data.path == tmp_path / "beside.npz"


def test_a_star_serves_every_model_without_an_optimizer_of_its_own(gan: Path) -> None:
    recipe = dtrain.load(gan)
    assert list(recipe.optimizers) == ["generator", "discriminator"]
    assert [optimizer.kind for optimizer in recipe.optimizers.values()] == ["adam", "sgd"]
    assert "*" not in to_toml(recipe)


# --- stacks ---

STACKED = CLASSIFIER.replace(
    '    { kind = "conv", out = 4, kernel = 3, padding = 1 },\n    { kind = "batch_norm" },\n'
    '    { kind = "activation", function = "relu" },\n',
    '    { kind = "use", stack = "block", width = 4 },\n',
) + (
    "\n[layers.block]\nparameters = ['width']\ndefaults = { kernel = 3, function = 'relu' }\nlayers = [\n"
    "    { kind = 'conv', out = '${width}', kernel = '${kernel}', padding = 1 },\n"
    "    { kind = 'batch_norm' },\n"
    "    { kind = 'activation', function = '${function}' },\n]\n"
)
USE = '{ kind = "use", stack = "block", width = 4 }'


def stacked(folder: Path, *changes: tuple[str, str]) -> Recipe:
    return dtrain.load(written(folder, "r.toml", with_changes(*changes)))


def with_changes(*changes: tuple[str, str]) -> str:
    text = STACKED
    for old, new in changes:
        text = changed(old, new, text)
    return text


def test_a_stack_is_the_layers_that_it_stands_for(tmp_path: Path) -> None:
    plain = dtrain.load(written(tmp_path, "plain.toml", CLASSIFIER))
    assert stacked(tmp_path) == plain
    other = stacked(tmp_path, (USE, '{ kind = "use", stack = "block", width = 4, function = "tanh" }'))
    assert other.models["classifier"].layers[2].function == "tanh"
    assert '"use"' not in to_toml(other)


def test_a_stack_may_stand_in_blocks_and_in_other_stacks(tmp_path: Path) -> None:
    block = USE.replace("4", '"${size}"')
    outer = (
        f"[layers.twice]\nparameters = ['size']\nlayers = [{block}, "
        f'{{ kind = "residual", layers = [{block}] }}]\n\n[layers.block]'
    )
    inner = '{ kind = "use", stack = "twice", size = "${hyperparameters.w}" }'
    use = f'{{ kind = "repeat", times = 2, layers = [{inner}] }}'
    recipe = stacked(
        tmp_path, ("[layers.block]", outer), (USE, use), ("[system]", "[hyperparameters]\nw = 4\n[system]")
    )
    (repeat, *_) = recipe.models["classifier"].layers
    assert [layer.kind for layer in repeat.layers] == ["conv", "batch_norm", "activation", "residual"]
    assert [layer.kind for layer in repeat.layers[3].layers] == ["conv", "batch_norm", "activation"]
    assert repeat.layers[3].layers[0].out == 4


WRONG_USES = [  # what stands there instead, ^ before the mistake, its key and words
    (USE, '{ kind = "use", stack = ^"blok", width = 4 }', "[0].stack", 'no stack "blok"; one of block'),
    (USE, '{ kind = "use", stack = ^"blok", width = 4 }', "[0].stack", 'did you mean "block"?'),
    (USE, '{ kind = "use", ^stac = "block", width = 4 }', "[0].stac", 'did you mean "stack"?'),
    (USE, '^{ kind = "use", width = 4 }', "[0].stack", "missing; one of block would do"),
    (USE, '{ kind = ^"us", stack = "block", width = 4 }', "[0].kind", 'did you mean "use"?'),
    (USE, '{ ^kin = "use", stack = "block", width = 4 }', "[0].kin", 'did you mean "kind"?'),
    (USE, '{ kind = "use", stack = "block", ^widht = 4 }', "[0].widht", 'did you mean "width"?'),
    (USE, '^{ kind = "use", stack = "block" }', "[0].width", "required by the stack block, but missing"),
    (USE, '{ kind = "use", stack = "block", width = 4, ^stride = 1 }', "[0].stride", "no such parameter"),
    (USE, '{ kind = "use", stack = "block", width = ^"4" }', "[0].width", 'found "4"; a whole number'),
    (USE, '{ kind = "use", stack = "block", width = ^0 }', "[0].width", "found 0; a number above 0 would do"),
    ("kernel = 3, function = 'relu'", "kernel = ^'3', function = 'relu'", ".defaults.kernel", 'found "3"'),
    ("kernel = 3, function = 'relu'", "kernel = 3, function = ^'rely'", ".defaults.function", '"relu"?'),
    ("'${width}'", "^'${with}'", ".layers[0].out", 'no parameter with; did you mean "width"?'),
    ("padding = 1 },\n    { kind = 'b", "^paddin = 1 },\n    { kind = 'b", ".layers[0].paddin", '"padding"?'),
    ("kind = 'batch_norm'", "kind = ^'batchnorm'", ".layers[1].kind", 'did you mean "batch_norm"?'),
    ("parameters = [", "^parameter = [", ".parameter", 'did you mean "parameters"?'),
    ("parameters = ['width']", "parameters = [^3]", ".parameters[0]", "found 3; a name would do"),
    ("defaults = { kernel = 3, function = 'relu' }", "defaults = ^3", ".defaults", "found 3; a table"),
    ("[layers.block]", "[layers.^blocks]", "[0].stack", "there is no stack"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "key", "said"), WRONG_USES)
def test_a_mistake_about_a_stack_stands_where_it_was_written(
    tmp_path: Path, old: str, new: str, key: str, said: str
) -> None:
    text, where = marked(with_changes((old, new)))
    (error,) = mistakes_of(written(tmp_path, "r.toml", text))
    head = "models.classifier.layers" if key.startswith("[") else "layers.block"
    assert (error.key, said in error.message) == (head + key, True), error
    if "blocks" not in new:
        assert spots_of([error]) == [("r.toml", *where)]
    if head == "layers.block" and "parameter" not in key + said and key != ".defaults":
        assert f"(for models.classifier.layers[0], {tmp_path}/r.toml:10:5)" in error.message


def test_a_shape_in_a_stack_that_does_not_fit_is_named_in_the_stack(tmp_path: Path) -> None:
    text, where = marked(with_changes(("kernel = 3, function", "kernel = ^30, function")))
    (error,) = mistakes_of(written(tmp_path, "r.toml", text))
    assert (error.key, spots_of([error])) == ("layers.block.defaults.kernel", [("r.toml", *where)])


def test_stacks_in_a_circle_are_told_once(tmp_path: Path) -> None:
    other = "\n[layers.other]\nlayers = [{ kind = 'use', stack = 'block', width = 1 }]\n"
    text = (
        with_changes(("    { kind = 'batch_norm' },\n", "    { kind = 'use', stack = 'other' },\n")) + other
    )
    (error,) = mistakes_of(written(tmp_path, "r.toml", text))
    assert "stacks use each other in a circle: block -> other -> block" in error.message
    assert error.key == "layers.other.layers[0].stack"


def test_a_stack_may_come_from_the_file_that_is_extended(tmp_path: Path) -> None:
    head, _, stack = STACKED.partition("\n[layers.block]")
    (tmp_path / "stacks.toml").write_text("[layers.block]" + stack)
    plain = dtrain.load(written(tmp_path, "plain.toml", CLASSIFIER))
    path = written(tmp_path, "r.toml", 'extends = "stacks.toml"\n' + head)
    assert dtrain.load(path) == plain
    (tmp_path / "stacks.toml").write_text("[layers.block]" + stack.replace("'batch_norm'", "'batch_nrm'"))
    (error,) = mistakes_of(path)
    assert spots_of([error]) == [("stacks.toml", 6, 14)]


def test_a_star_that_nothing_is_called_means_all_that_are_there(tmp_path: Path, gan: Path) -> None:
    text = gan.read_text().replace('[optimizers."*"]', "[optimizers.generator]")
    gan.write_text(text)
    recipe = dtrain.load(gan, ["optimizers.*.lr=0.5"])
    assert [optimizer.lr for optimizer in recipe.optimizers.values()] == [0.5, 0.5]
