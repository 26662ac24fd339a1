"""Imports go down only, libraries come in where they belong, the public names are those of dtrain.__all__."""

import ast
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import dtrain
from dtrain.backends.torch_backend import build_model

PACKAGE = Path(dtrain.__file__).parent

# From the top: a package imports from itself and from those below it.
LAYERS = (
    {"cli"},
    {"sweep"},
    {
        "loop",
        "diverged",
        "evaluation",
        "judge",
        "reproduce",
        "restoring",
        "run",
        "sampling",
        "stopping",
        "track",
    },
    {"checkpoint"},
    {"engines", "explain"},
    {"world"},
    {"scale"},
    {"backends"},
    {"recipe"},
    {"systems", "data"},
    {"spec", "format", "launch"},
    {"errors"},
)
# Of no layer: the package and its program, and leaves, which import nothing of dtrain but errors.
OUTSIDE = {"__init__", "__main__"}
LEAVES = {"events", "pictures"}
# Whoever reads these must not wait for a device's library, or have one.
WITHOUT_LIBRARIES = ("recipe", "systems", "data", "spec", "format", "errors", "events", "pictures")
LIBRARIES = {"torch", "jax", "accelerate", "deepspeed"}


def modules() -> Iterator[tuple[str, Path]]:
    """The first part of each module's name inside the package, and its file."""
    for path in PACKAGE.rglob("*.py"):
        yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, anywhere in it, and the line; names only for types included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: dtrain's imports are absolute"
            module = node.module or ""
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def test_every_module_has_a_layer() -> None:
    assert {name for name, _ in modules()} == set.union(*LAYERS) | OUTSIDE | LEAVES


def test_imports_go_down_only() -> None:
    rank = {name: number for number, names in enumerate(LAYERS) for name in names}
    wrong = [
        f"{path}:{line}: {name} imports {module}"
        for name, path in modules()
        if name in rank
        for module, line in imported(path)
        if module.startswith("dtrain.") and rank.get(module.split(".")[1], len(rank)) < rank[name]
    ]
    assert wrong == []


def test_leaves_import_nothing_but_leaves() -> None:
    wrong = [
        f"{path}:{line}: {module}"
        for name, path in modules()
        if name in LEAVES
        for module, line in imported(path)
        if module.startswith("dtrain.") and module.split(".")[1] not in LEAVES | {"errors"}
    ]
    assert wrong == []


def test_below_the_backends_nothing_imports_a_library_of_devices() -> None:
    wrong = [
        f"{path}:{line}: {module}"
        for name, path in modules()
        if name in WITHOUT_LIBRARIES
        for module, line in imported(path)
        if module.split(".")[0] in LIBRARIES
    ]
    assert wrong == []


def test_torch_and_jax_never_meet_in_a_file() -> None:
    for _, path in modules():
        libraries = {module.split(".")[0] for module, _ in imported(path)}
        assert not {"torch", "jax"} <= libraries, path


def test_the_public_names_are_exactly_those_of_all() -> None:
    names = {name: getattr(dtrain, name) for name in dtrain.__all__}
    assert sorted(names) == dtrain.__all__
    assert set(dtrain.HOMES) == set(names)
    for name, value in names.items():
        assert value.__name__ == name
        assert value.__module__ == dtrain.HOMES[name]
        assert (value.__doc__ or "").strip(), f"{name} has no docstring"
    checked = ast.parse((PACKAGE / "__init__.py").read_text())
    for_types = next(node for node in checked.body if isinstance(node, ast.If))
    stated = {alias.name: node.module for node in for_types.body for alias in node.names}
    assert stated == dtrain.HOMES
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        dtrain.trian  # noqa: B018


CHECKS = """
import sys
from dtrain.cli.app import carry_out
HEAVY = {"torch", "jax", "wandb", "accelerate", "deepspeed", "numpy", "safetensors", "PIL"}
commands = [["--help"], ["run", "--help"], ["check", "nowhere"], ["runs", "."]]
for recipe in sys.argv[1:]:
    commands += [["check", recipe], ["show", recipe]]
for arguments in commands:
    code = carry_out(arguments)
    assert code == (2 if "nowhere" in arguments else 0), arguments
    assert not HEAVY & set(sys.modules), (arguments, HEAVY & set(sys.modules))
    if arguments[0] == "--help":
        assert "pydantic" not in sys.modules, "help needs no recipe"
"""

TEXT = """\
name = "text"
[system]
kind = "language_model"
[models.language_model]
input = [4]
layers = [{ kind = "embedding", size = 256, out = 2 }, { kind = "linear", out = 256 }]
[optimizers."*"]
kind = "adam"
lr = 0.1
[data]
kind = "text"
path = "text.toml"
length = 4
[train]
steps = 1
batch_size = 1
"""
FOLDERS = """\
kind = "images"
path = "pictures"
size = 8
channels = 1
"""


def on_every_kind_of_data(gan: Path) -> list[Path]:
    """The recipe on arrays, on tensors, on folders of pictures, from given weights; and one on a text."""
    arrays = 'kind = "arrays"\npath = "pictures.npz"\n'
    assert arrays in gan.read_text()
    for part, label in itertools.product(("train", "test"), "ab"):
        folder = gan.parent / "pictures" / part / label
        folder.mkdir(parents=True)
        for number in range(5):
            (folder / f"{number}.png").touch()  # a name is all that a check needs
    images, tensors = gan.with_name("images.toml"), gan.with_name("tensors.toml")
    images.write_text(gan.read_text().replace(arrays, FOLDERS))
    tensors.write_text(gan.read_text().replace("pictures.npz", "pictures.safetensors"))
    with np.load(gan.with_name("pictures.npz")) as stored:
        save_file(dict(stored), gan.with_name("pictures.safetensors"))
    begins = gan.with_name("begins.toml")
    begins.write_text(gan.read_text().replace("input = [4]", 'weights = "w.safetensors"\ninput = [4]'))
    state = build_model("generator", dtrain.load(gan).models["generator"], seed=0).state_dict()
    save_file({name: tensor.numpy() for name, tensor in state.items()}, gan.with_name("w.safetensors"))
    text = gan.with_name("text.toml")
    text.write_text(TEXT)
    return [gan, images, tensors, begins, text]


def test_help_check_and_show_import_no_heavy_library(gan: Path) -> None:
    command = [sys.executable, "-c", CHECKS, *map(str, on_every_kind_of_data(gan))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.startswith("dtrain: ") or ended.stderr.startswith("nowhere")


def test_importing_dtrain_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import dtrain; print(*sorted(set(sys.modules) - before))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "pydantic", "torch", "typer"} & {n.split(".")[0] for n in ended.stdout.split()}
