"""Files of weights that do not fit, are broken, hostile or out of reach: each mistake, at its line."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CLASSIFIER, Said, written
from hypothesis import given
from hypothesis import strategies as st
from reading import mistakes_of, spots_of
from safetensors.numpy import save_file

import dtrain
from dtrain.errors import CheckpointError, RecipeError
from dtrain.format.safetensors_header import read_header
from dtrain.spec.trust import Trust

Here = Callable[..., Said]
BEGINS = CLASSIFIER.replace("input = [1", 'weights = "given.safetensors"\ninput = [1')
SHAPES = {"0.weight": (4, 1, 3, 3), "0.bias": (4,), "6.weight": (3, 64), "6.bias": (3,)}
SHAPES |= {f"1.{name}": (4,) for name in ("weight", "bias", "running_mean", "running_var")}
KEY = "models.classifier.weights"


def arrays(**others: np.ndarray) -> dict[str, np.ndarray]:
    """What fits the model, and others."""
    found = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    return {**found, "1.num_batches_tracked": np.array(3), **others}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    save_file(arrays(), tmp_path / "given.safetensors")
    return written(tmp_path, "classifier.toml", BEGINS)


def put(recipe: Path, values: dict[str, np.ndarray]) -> None:
    save_file(values, recipe.with_name("given.safetensors"))


def table(more: str) -> str:
    return f'{KEY}={{ path = "given.safetensors", {more} }}'


def one_of(recipe: Path, *overrides: str, **options: Any) -> RecipeError:
    (error,) = mistakes_of(recipe, *overrides, **options)
    return error


@pytest.fixture(autouse=True)
def _in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_name_that_does_not_fit_is_listed_at_its_line(recipe: Path, dtrain_here: Here) -> None:
    wrong = {"6.bias": np.zeros(5, np.float32), "0.bias": np.zeros(4, np.int8), "x": np.zeros(2)}
    put(recipe, arrays() | wrong)
    error = one_of(recipe)
    assert error.key == KEY
    assert spots_of([error]) == [("classifier.toml", BEGINS[: BEGINS.index("weights =")].count("\n") + 1, 11)]
    assert error.message == (
        f"{recipe.with_name('given.safetensors')} does not fit the model (2 of another shape or type, "
        '1 unexpected); names = { "0.bias" = "" } leaves one out, with partial = true'
    )
    assert error.details == (
        "0.bias: whole numbers, I8, in the file, fractions in the model",
        "6.bias: (5,) in the file, (3,) in the model",
        "unexpected: x (2,)",
    )
    said = dtrain_here("check", recipe)
    assert said.code == 2
    assert said.errors == f"{error}\n"
    assert "\n    unexpected: x (2,)\n" in said.errors
    assert (
        json.loads(dtrain_here("check", recipe, "--json").out)["mistakes"][0]["details"][2]
        == "unexpected: x (2,)"
    )


def test_names_that_would_fit_are_proposed(recipe: Path) -> None:
    put(recipe, {f"net.{name}": value for name, value in arrays().items()})
    error = one_of(recipe)
    assert 'names = { "net.*" = "*" } would bring 9 together' in error.message
    assert "missing: 6.bias (3,); net.6.bias of the file has this shape" in error.details
    assert dtrain.load(recipe, [table('names = { "net.*" = "*" }')])


def test_many_names_are_not_all_shown(recipe: Path) -> None:
    put(recipe, arrays(**{f"x{number}": np.zeros(1) for number in range(40)}))
    error = one_of(recipe)
    assert error.details[-1] == "and 28 more unexpected"
    assert len(error.details) == 13
    assert "(40 unexpected); partial = true takes the 9 that fit" in error.message


@pytest.mark.parametrize(
    ("more", "key", "words"),
    [
        (
            'names = { "0.weigt" = "x" }',
            f'{KEY}.names."0.weigt"',
            "fits no name of the file, which has 0.weight",
        ),
        (
            'names = { "0.*" = "0.*", "0.bias" = "0.bias" }',
            f'{KEY}.names."0.bias"',
            "patterns before it rename all that it fits; before them it would do",
        ),
        (
            'names = { "0.*" = "0.bias" }',
            f'{KEY}.names."0.*"',
            '"0.bias" has 0 *, and "0.*" 1; as many would do',
        ),
        (
            'names = { "6.bias" = "0.bias" }, partial = true',
            KEY,
            "several of its names become one of the model's",
        ),
        ('names = { "*" = "a.*" }, partial = true', KEY, "has none of the model's names; names = { "),
        ("partial = 1", f"{KEY}.partial", "found 1; true or false would do"),
        ("partal = true", f"{KEY}.partal", 'did you mean "partial"?'),
    ],
)
def test_a_table_that_will_not_do_is_told_at_its_key(recipe: Path, more: str, key: str, words: str) -> None:
    error = one_of(recipe, table(more))
    assert error.key == key
    assert words in error.message


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("givn.safetensors", 'givn.safetensors does not exist; did you mean "given.safetensors"?'),
        (
            "old.pt",
            "old.pt is a pickle, which can run code when it is opened; safetensors.torch.save_file(torch.",
        ),
        ("pickles", "pytorch_model.bin is a pickle"),
        ("data.npz", "weights come from .safetensors files, not .npz"),
        ("several", "has a.safetensors, b.safetensors; the path of one would do"),
        ("empty", "empty has no .safetensors file"),
        ("runs", "holds what dtrain has trained; weights_from = "),
        ("none.index.json", "is no index of weights: it has no weight_map"),
        ("up.index.json", "lists '../given.safetensors', which is no .safetensors file beside it"),
        ("bin.index.json", "x.bin is a pickle"),
        ("less.index.json", "the index and its files do not agree on '0.bias', '0.weight'"),
        ("absent.index.json", "gone.safetensors does not exist"),
        ("no_such_package:w.safetensors", "there is no package no_such_package; is it installed?"),
        ("dtrain:w.safetensors", "the package dtrain has no w.safetensors"),
        ("dtrain:../w.safetensors", "leads out of the package"),
        ("pipe.safetensors", "pipe.safetensors is no file"),
    ],
)
def test_what_is_no_file_of_weights_is_said(recipe: Path, weights: str, words: str) -> None:
    folder = recipe.parent
    for name in ("old.pt", "data.npz", "several/a.safetensors", "several/b.safetensors", "empty/readme.md",
                 "pickles/pytorch_model.bin", "runs/1/checkpoints/x"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    os.mkfifo(folder / "pipe.safetensors")
    maps = {"none": None, "up": {"a": "../given.safetensors"}, "bin": {"a": "x.bin"}}
    maps |= {"less": {"1.bias": "given.safetensors"}, "absent": {"a": "gone.safetensors"}}
    for name, names in maps.items():
        (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": names}))
    error = one_of(recipe, f"{KEY}={weights}")
    assert error.key == KEY
    assert words in error.message


FLOATS = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
HOSTILE: list[tuple[Any, str]] = [
    (2**60, "its header is said to be 1152921504606846976 bytes long, and the file has 20"),
    ({"x": FLOATS | {"data_offsets": [0, 2**60]}}, "what its header says of 'x' cannot be"),
    ({"x": FLOATS | {"shape": [2**62, 2**62]}}, "what its header says of 'x' cannot be"),
    ({"x": FLOATS | {"shape": [2**62] * 500_000}}, "what its header says of 'x' cannot be"),
    ({"x": FLOATS | {"shape": [-3]}}, "what its header says of 'x' cannot be"),
    ({"x": FLOATS | {"dtype": "F31"}}, "'x' holds 'F31', which is no type of numbers known here"),
    ({"x": FLOATS, "y": FLOATS}, "leaves gaps between tensors, or lays one over another"),
    ({"x": FLOATS | {"data_offsets": [4, 16]}}, "leaves gaps between tensors, or lays one over another"),
    ({"x": FLOATS | {"shape": [2], "data_offsets": [0, 8]}}, "its tensors have 8 bytes, and the file has 12"),
    (b'{"x": NaN}', "NaN is no JSON"),
    (b'{"x": {}, "x": {}}', "a key stands there twice"),
    (b"[" * 100_000, "cannot be read"),
    (b"[]", "it holds no table"),
    (b"\xff", "cannot be read"),
]


@pytest.mark.parametrize(("header", "words"), HOSTILE, ids=lambda value: str(value)[:40])
def test_a_hostile_header_is_one_clear_error(recipe: Path, header: Any, words: str) -> None:
    text = (
        header
        if isinstance(header, bytes)
        else b""
        if isinstance(header, int)
        else json.dumps(header).encode()
    )
    length = header if isinstance(header, int) else len(text)
    recipe.with_name("given.safetensors").write_bytes(length.to_bytes(8, "little") + text + bytes(12))
    assert words in one_of(recipe).message


KEYS = st.sampled_from(["dtype", "shape", "data_offsets", "x", "__metadata__"])
LEAVES = st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["F32", "I8", "BF16"])
TABLES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
HEADERS = st.binary(max_size=200) | TABLES.map(lambda value: json.dumps(value).encode())


@given(HEADERS, st.integers(-3, 3))
def test_any_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: bytes, off: int
) -> None:
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    path.write_bytes(max(len(text) + off, 0).to_bytes(8, "little") + text)
    with suppress(CheckpointError):
        found = read_header(path)
        assert all(each.start + each.size <= path.stat().st_size for each in found.values())


def test_a_check_reads_no_values(recipe: Path, dtrain_here: Here) -> None:
    size = 10**12  # a terabyte, none of it written
    table = {"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    table |= {
        n: {"dtype": "F32", "shape": list(s), "data_offsets": [size, size]} for n, s in {"e": (0, 4)}.items()
    }
    text = json.dumps(table).encode()
    with recipe.with_name("given.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    assert "(9 missing, 2 unexpected)" in dtrain_here("check", recipe).errors


@pytest.mark.parametrize("kind", ["imported", "altered"])
def test_what_only_a_build_can_tell_is_told_with_the_same_words(
    recipe: Path, dtrain_here: Here, kind: str
) -> None:
    values = arrays(x=np.zeros(1))
    if kind == "imported":
        text = CLASSIFIER[: CLASSIFIER.index("input = [1")] + 'kind = "./small.py:Small"\nweights = '
        text += '"given.safetensors"\n\n' + CLASSIFIER[CLASSIFIER.index("[optimizers") :]
        recipe.write_text(text)
        recipe.with_name("small.py").write_text(
            "from torch import nn\nclass Small(nn.Sequential):\n    def __init__(self):\n"
            "        super().__init__(nn.Flatten(), nn.Linear(64, 3))\n"
        )
        values = {"1.weight": np.zeros((3, 64), np.float32), "x": np.zeros(1)}
        put(recipe, values)
        assert "compared when the model is built" in dtrain_here("check", recipe).out
        said = dtrain_here("run", recipe)
        line = recipe.read_text()[: recipe.read_text().index("weights =")].count("\n") + 1
        assert said.errors.startswith(
            f"{recipe}:{line}:11: {KEY}: {recipe.with_name('given.safetensors')} does"
        )
        assert "\n    missing: 1.bias (3,)\n    unexpected: x (1,)\n" in said.errors
    else:
        loaded = dtrain.load(recipe)
        put(recipe, values)
        with pytest.raises(RecipeError, match="not what the recipe was made with"):
            dtrain.setup(loaded)


def test_a_model_begins_with_one_thing(recipe: Path) -> None:
    text = BEGINS.replace(
        "input = [1", 'weights_from = { path = "x", model = "y", checksum = "z" }\ninput = [1'
    )
    recipe.write_text(text)
    error = one_of(recipe)
    assert error.key == KEY
    assert "with the weights of a file or of a checkpoint (weights_from), not with both" in error.message


def test_a_stranger_s_recipe_reads_what_is_its_own_alone(recipe: Path, tmp_path: Path) -> None:
    assert dtrain.load(recipe, trust=Trust())
    strange = tmp_path / "strange"
    elsewhere = written(strange, "classifier.toml", BEGINS.replace("given.", "../given."))
    assert "lies outside of the recipe's folder" in one_of(elsewhere, trust=Trust()).message
    assert dtrain.load(elsewhere)
    elsewhere.write_text(BEGINS)
    (strange / "given.safetensors").symlink_to(recipe.with_name("given.safetensors"))
    assert "lies outside of the recipe's folder" in one_of(elsewhere, trust=Trust()).message
    (strange / "w.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "given.safetensors"}}))
    elsewhere.write_text(BEGINS.replace("given.", "./w.").replace('tensors"', 'tensors.index.json"'))
    assert "given.safetensors lies outside of the recipe's folder" in one_of(elsewhere, trust=Trust()).message
    elsewhere.write_text(BEGINS.replace("given.", "dtrain:given."))
    assert "if you trust it, name it: --trust dtrain" in one_of(elsewhere, trust=Trust()).message
    trusted = one_of(elsewhere, trust=Trust(names=("dtrain",)))
    assert "the package dtrain has no given.safetensors" in trusted.message
