"""Each mistake in a recipe is found at its line and column, with what would do and the near miss."""

from pathlib import Path

import pytest
from conftest import GAN, written
from reading import changed, marked, mistakes_of, read, spots_of

import dtrain
from dtrain.errors import RecipeError, RecipeErrors
from dtrain.recipe.load import from_checkpoint
from dtrain.recipe.write import to_toml
from dtrain.spec.table import KINDS
from dtrain.spec.trust import Trust
from dtrain.systems.base import System

LINEAR, FIRST = 'kind = "linear", out = 32', "models.generator.layers[0]"
LAST, ADAM, STAR = "optimizers.discriminator", 'kind = "adam"', "optimizers.*"
FIRST_LAYER = "{ " + LINEAR
SYSTEMS = ", ".join(sorted(KINDS[System]))
MISTAKES = [  # what stands in the GAN's recipe, what instead with ^ before the mistake, its key and words
    ("seed = 3", "^sead = 3", "sead", 'unknown key; did you mean "seed"?'),
    ("seed = 3", "seed = ^-1", "seed", "found -1; a number at least 0 would do"),
    ("seed = 3", "seed = ^1.5", "seed", "found 1.5; a whole number would do"),
    ("seed = 3", "seed = ^true", "seed", "found true; a whole number would do"),
    ('name = "tiny-gan"', "^", "name", "required, but missing"),
    ('name = "tiny-gan"', 'name = ^"a/b"', "name", 'found "a/b"; letters, digits'),
    ('kind = "gan"\n', 'kind = ^"gam"\n', "system.kind", f'unknown kind "gam"; one of {SYSTEMS}'),
    ('kind = "gan"\n', 'kind = ^"gam"\n', "system.kind", 'did you mean "gan"?'),
    ('[system]\nkind = "gan"\n', "^[system]\n", "system.kind", f"missing; one of {SYSTEMS}"),
    ("latent = 4\n", "latent = 4\n^critic_step = 2\n", "system.critic_step", 'did you mean "critic_steps"?'),
    ("latent = 4\n", "latent = ^0\n", "system.latent", "found 0; a number above 0 would do"),
    ("latent = 4\n", 'latent = ^"4"\n', "system.latent", 'found "4"; a whole number would do'),
    ("latent = 4\n", 'latent = 4\nloss = ^"hinges"\n', "system.loss", 'did you mean "hinge"?'),
    ("latent = 4\n", "latent = ^5\n", "system.latent", "4 would fit (is 5, but models.generator.input"),
    ("latent = 4\n", "latent = 4\n^decay = 1\n", "system.decay", "[averages.NAME] of kind ema or"),
    ("input = [4]", "^imput = [4]", "models.generator.imput", 'unknown key; did you mean "input"?'),
    ("input = [4]", "input = [^0]", "models.generator.input[0]", "found 0; a number above 0 would do"),
    ("input = [4]", "input = ^4", "models.generator.input", "found 4; an array would do"),
    (LINEAR, 'kind = ^"liner", out = 32', f"{FIRST}.kind", '"linear"?'),
    (FIRST_LAYER, '^{ kind = "linear"', f"{FIRST}.out", "required, but missing"),
    (LINEAR, 'kind = "linear", ^ouf = 32, out = 32', f"{FIRST}.ouf", '"out"'),
    (LINEAR, 'kind = "linear", out = 32, ^rate = 1', f"{FIRST}.rate", "linear has no such key; dropout has"),
    (LINEAR, 'kind = "linear", out = ^33', f"{FIRST}.out", "found 33; 32 would fit (models.generator"),
    (LINEAR, 'kind = "linear", out = ^33', f"{FIRST}.out", "(layers[0], linear, gives (33,))"),
    ("slope = 0.2", "^slop = 0.2", "models.discriminator.layers[1].slop", 'did you mean "slope"?'),
    ('"relu" }', '^"rely" }', "models.generator.layers[3].function", 'did you mean "relu"?'),
    ("rate = 0.2", "rate = ^1.0", "models.discriminator.layers[2].rate", "at least 0 and below 1 would do"),
    ("rate = 0.2", "rate = ^nan", "models.discriminator.layers[2].rate", "found nan; a finite number"),
    (ADAM, 'kind = ^"adan"', f"{STAR}.kind", 'did you mean "adam"?'),
    ('[optimizers."*"]\n' + ADAM, '^[optimizers."*"]', f"{STAR}.kind", "missing; one of adafactor, adam,"),
    (ADAM, 'kind = "adam"\n^beta = 1', f"{STAR}.beta", 'did you mean "betas"?'),
    (ADAM, 'kind = "adam"\nbetas = ^[0.5]', f"{STAR}.betas", "found [0.5]; 2 items would do"),
    (ADAM, 'kind = "adam"\nbetas = [0.5, ^1.0]', f"{STAR}.betas[1]", "below 1"),
    ('kind = "cosine"', 'kind = ^"cosin"', f"{STAR}.schedule.kind", 'did you mean "cosine"?'),
    ("warmup = 4", "^warm = 4", f"{STAR}.schedule.warm", 'did you mean "warmup"?'),
    ("warmup = 4", "warmup = ^9", f"{STAR}.schedule.warmup", "found 9, but the whole run has 8 steps"),
    ("[optimizers.discriminator]", "[optimizers.^discriminators]", f"{LAST}s", '"discriminator"?'),
    ("lr = 0.05", "lr = ^-0.05", f"{LAST}.lr", "found -0.05; a number at least 0"),
    ("lr = 0.05", 'lr = ^"fast"', f"{LAST}.lr", 'found "fast"; a number would do'),
    ("lr = 0.05", "lr = ^inf", f"{LAST}.lr", "found inf"),
    ("lr = 2e-3", 'lr = ^"fast"', "hyperparameters.lr", 'a number would do (for optimizers.*.lr'),
    ("clip = 1.0", "clip = ^0", f"{LAST}.clip", "found 0; a number above 0"),
    ("momentum = 0.9", "nesterov = ^true", f"{LAST}.nesterov", "needs a momentum above 0"),
    ("[averages.generator]", "[averages.^generater]", "averages.generater", 'did you mean "generator"?'),
    ("decay = 0.9", "decay = ^1.1", "averages.generator.decay", "at least 0 and at most 1 would do"),
    ('kind = "arrays"', 'kind = ^"array"', "data.kind", 'did you mean "arrays"?'),
    ('path = "pictures.npz"', "path = ^3", "data.path", "found 3; a path, as a string"),
    ('path = "pictures.npz"', '^paths = "p"', "data.paths", 'did you mean "path"?'),
    ("[train]\nsteps = 8", "^[train]", "train.steps", "give either `steps` or `epochs`"),
    ("steps = 8", "steps = 8\nepochs = ^2", "train.epochs", "give either `steps` or `epochs`"),
    ("batch_size = 8\n", "batch_size = ^9\n", "train.batch_size", "9 is not a multiple of"),
    ("steps = 8", 'steps = 8\nprecision = ^"fp8"', "train.precision", "one of fp32, tf32, fp64, bf16, fp16"),
    ("steps = 8", 'steps = ^"8"', "train.steps", 'found "8"; a whole number would do'),
    ('best = "evaluate/loss"', 'best = ^"loss"', "checkpoint.best", 'did you mean "evaluate/loss"?'),
    ('best = "evaluate/loss"', 'best = ^"evaluate/lose"', "checkpoint.best", 'did you mean "evaluate/loss"?'),
    ('best = "evaluate/loss"\n', "^", "checkpoint.mode", "needs the metric that says which are the best"),
    ('best = "evaluate/loss"\nmode = "min"', "^keep_best = 2", "checkpoint.keep_best", "needs the metric"),
    ('mode = "min"', 'mode = ^"least"', "checkpoint.mode", "one of max, min would do"),
    ('kinds = ["jsonl"]', 'kinds = [^"json"]', "track.kinds[0]", 'did you mean "jsonl"?'),
    ('kinds = ["jsonl"]', "kinds = ^3", "track.kinds", "found 3; an array would do"),
    ("[train]", "[^trains]", "trains", 'unknown key; did you mean "train"?'),
    ("[models.generator]", "[^model.generator]", "model", 'did you mean "models"?'),
    ("[models.discriminator]", "[models.^discriminater]", "models.discriminater", 'needs "discriminator"'),
    ("seed = 3", "seed = 3\n^kind = 3", "kind", "unknown key"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "key", "said"), MISTAKES)
def test_a_mistake_is_named_at_its_place_with_what_would_do(
    tmp_path: Path, old: str, new: str, key: str, said: str
) -> None:
    text, where = marked(changed(old, new) if old != 'kind = "gan"\n' else GAN.replace(old, new, 1))
    (error,) = mistakes_of(written(tmp_path, "gan.toml", text))
    assert error.key == key
    assert said in error.message
    assert spots_of([error]) == [("gan.toml", *where)]


def test_a_checkpoint_whose_recipe_has_an_idle_choice_can_be_read(gan: Path) -> None:
    """As it was no mistake when that was written."""
    text = to_toml(dtrain.load(gan)).replace('best = "evaluate/loss"\n', "")
    read = from_checkpoint(text, folder=gan.parent, trust=Trust())
    assert (read.checkpoint.best, read.checkpoint.mode) == (None, "min")


MOVED = [  # a key that is needed, and the line behind which it stands instead
    ("latent = 4\n", '[optimizers."*"]\n', "optimizers.*.latent", "system needs it"),
    ("latent = 4\n", "lr = 2e-3\n", "hyperparameters.latent", "nothing refers to it, and system needs"),
    ("input = [4]\n", "latent = 4\n", "system.input", "this does not belong here; models.generator needs it"),
    ('name = "tiny-gan"\n', "[train]\n", "train.name", "unknown key here; the top of the recipe needs it"),
    ("steps = 8\n", "[every]\n", "every.steps", "unknown key here; train needs it"),
    ('kind = "adam"\n', "input = [1, 8, 8]\n", "models.discriminator.kind", "unknown key here; optimizers.*"),
    ("lr = 2e-3\n", "seed = 3\n", "lr", "unknown key here; optimizers.*.lr refers to hyperparameters.lr"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "behind", "key", "said"), MOVED)
def test_a_key_in_the_wrong_table_is_one_mistake_that_says_which_table_needs_it(
    tmp_path: Path, line: str, behind: str, key: str, said: str
) -> None:
    text, where = marked(changed(behind, f"{behind}^{line}", changed(line, "")))
    (error,) = mistakes_of(written(tmp_path, "gan.toml", text))
    assert (error.key, spots_of([error])) == (key, [("gan.toml", *where)])
    assert said in error.message


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("latent = 4\n", 'latent = 4\nkind = "arrays"\n', "10:1"),  # the other is the gan's
        ("latent = 4\n", "latent = 4\nlatent = 4\n", "10:1"),
        ('kind = "gan"\n', 'kind = "arrays"\nkind = "gan"\n', "8:1"),
        ("[every]", "[train]\n[every]", "56:2"),
        ("warmup = 4", "warmup = 4, warmup = 5", "36:43"),
        ("shape = [2, 4, 4]", "shape = [2, 4, 4], shape = [2, 4, 4]", "16:44"),
    ],
)
def test_of_a_key_that_stands_twice_the_one_that_is_out_of_place_is_named(
    tmp_path: Path, old: str, new: str, line: str
) -> None:
    (error,) = mistakes_of(written(tmp_path, "gan.toml", GAN.replace(old, new, 1)))
    assert "stands here twice, " in error.message
    assert ":".join(map(str, spots_of([error])[0][1:])) == line


def test_all_mistakes_are_said_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = GAN
    wrong = {
        "lr = 0.05": 'lr = "x"',
        "seed = 3": "seed = -3",
        "latent = 4": "latent = 0",
        "warmup = 4": "warm = 4",
        "log = 1\n": "log = 1\nextra = 1\n",
        "batch_size = 8\n": "batch_size = 9\n",
        "[averages.generator]": "[averages.nobody]",
        "kernel = 3": "kernel = 30",
    }
    for old, new in wrong.items():
        text = changed(old, new, text)
    errors = mistakes_of(written(tmp_path, "gan.toml", text))
    assert [error.key for error in errors] == [
        "seed",
        "system.latent",
        "models.discriminator.layers[0].kernel",
        "optimizers.*.schedule.warm",
        "optimizers.discriminator.lr",
        "averages.nobody",
        "train.batch_size",
        "every.extra",
    ]
    assert spots_of(errors) == sorted(spots_of(errors))


def test_a_model_that_no_phase_trains_needs_no_optimizer_and_may_have_none() -> None:
    extra = '[models.other]\ninput = [4]\nlayers = [{ kind = "linear", out = 1 }]\n\n[optimizers."*"]'
    recipe = read(changed('[optimizers."*"]', extra))  # "*" is for those that are trained
    assert recipe.optimizers.keys() == {"generator", "discriminator"}
    own = '[optimizers.generator]\nkind = "adam"\nlr = 1e-3\n'
    text = changed('[optimizers."*"]', extra.replace('[optimizers."*"]', own + "[hyperparameters.old]"))
    assert "other" in read(text).models


def test_every_line_of_an_error_says_its_place_and_stands_alone(gan: Path) -> None:
    gan.write_text(changed("seed = 3", "seed = -1"))
    with pytest.raises(RecipeErrors) as caught:
        dtrain.load(gan, ["train.steps=0"])
    assert str(caught.value).splitlines() == [
        f"{gan}:2:8: seed: found -1; a number at least 0 would do",
        "argument 1:13: train.steps: found 0; a number above 0 would do",
    ]
    assert isinstance(caught.value, RecipeError)
    assert (caught.value.key, caught.value.spot) == ("seed", caught.value.errors[0].spot)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such recipe"),
        (b"a = ", ":1:5: not TOML: this is no value"),
        (b"a = 1\nb = relu\n", ":2:5: not TOML: this is no value; a string stands in quotes"),
        (b"a = 1\nb = 2 c = 3\n", ":2:7: not TOML: one key = value a line would do"),
        (b"[train\n", ":1:7: not TOML"),
        (b"lr 2\n", ":1:4: not TOML: a key is followed by = and its value"),
        (b'a = "x\n', ":1:7: not TOML"),
        (b"a = 1\na = 2\n", ":2:1: a: stands here twice, first in line 1; keep one"),
        (b"\xff\xfe", "it is not UTF-8 (byte 0)"),
        (b"a = " + b"[" * 5000, "tables nest too deeply"),
        (b"#" * 400_001, "is larger than 400,000 bytes"),
    ],
    ids=["none", "unfinished", "bare", "two", "header", "equals", "quote", "twice", "UTF-8", "deep", "large"],
)
def test_a_file_that_is_no_recipe_is_said(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        dtrain.load(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_folder_is_no_recipe_and_a_near_name_is_suggested(gan: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: it is not a file"):
        dtrain.load(gan.parent)
    with pytest.raises(RecipeError, match=r"there is no such recipe; did you mean .*/gan\.toml"):
        dtrain.load(gan.with_name("gann.toml"))


TEXTS = [  # a recipe's first lines in other forms of TOML, ^ before the mistake
    '\ufeffname = "x"\nseed = ^-1\n',
    'name = "x"\r\n\r\nseed = ^-1\r\n',
    'name = "x"\nseed\t=\t^-1\n',
    '# ü€𝄞\nname = "ü€𝄞"\nseed = 3\ntrack = { project = "ü€𝄞", kinds = ^3 }\n',
    '"name" = "x"\n\'seed\' = ^-1\n',
    "name = '''\nx'''\nseed = ^-1\n",
    'name = "x"\n[[models]]\nlayers = 1\n^[[seed]]\n',
    'track.project = "x"\ntrack.kinds = [\n  "console",\n  ^"jsonn",\n]\n',
    'track = { kinds = ["console", ^"jsonn"], project = "x" }\n',
    '[track]\n"kinds" = [ # here\n  "console", "jsonl", ^"wand",\n]\n',
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_columns_are_counted_in_characters_whatever_the_form_of_the_file(tmp_path: Path, text: str) -> None:
    content, where = marked(text)
    path = tmp_path / "r.toml"
    path.write_bytes(content.encode())
    where = (where[0], where[1] - (text[0] == "\ufeff" and where[0] == 1))
    assert ("r.toml", *where) in spots_of(mistakes_of(path))
