"""`dtrain diff`: only what differs in meaning, and the metrics of runs."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Said, only_run

import dtrain
from dtrain.recipe.compare import NOTHING, Difference, differences

Here = Callable[..., Said]


def rewritten(recipe: Path, name: str, *changes: tuple[str, str]) -> Path:
    """A copy beside a recipe, with other words in it."""
    text = recipe.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    copy = recipe.with_name(name)
    copy.write_text(text)
    return copy


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('lr = "${hyperparameters.lr}"', "lr = 0.002"),
        ("lr = 2e-3", "rate = 1\nlr = 2e-3"),
        ("critic_steps = 2", "critic_steps = 2\nr1 = 0"),
        ('kind = "sgd"\n', 'kind = "sgd"\nnesterov = false\n'),
        ('path = "pictures.npz"', 'path = "./sub/../pictures.npz"'),
        ("[train]\nsteps = 8\nbatch_size = 8", "[train]\nbatch_size = 8\nsteps = 8"),
        ("lr = 0.05", "lr = 5e-2  # the same"),
        ('[optimizers."*"]', "[optimizers.generator]"),
        ('"linear", out = 32 }', '"linear", bias = true, out = 32 }'),
    ],
)  # fmt: skip
def test_what_is_only_written_otherwise_does_not_differ(
    dtrain_here: Here, gan: Path, old: str, new: str
) -> None:
    said = dtrain_here("diff", gan, rewritten(gan, "other.toml", (old, new)))
    assert (said.code, said.out, said.errors) == (0, "the recipes are the same in meaning\n", "")


def test_a_stack_or_an_extended_file_does_not_differ_from_what_it_stands_for(
    dtrain_here: Here, gan: Path
) -> None:
    (gan.parent / "child.toml").write_text(f'extends = "{gan.name}"\n')
    assert dtrain_here("diff", gan, gan.parent / "child.toml").code == 0
    used = '{ kind = "use", stack = "first", width = 32 }'
    stack = '[layers.first]\nparameters = ["width"]\nlayers = [{ kind = "linear", out = "${width}" }]\n'
    other = rewritten(
        gan, "other.toml", ('{ kind = "linear", out = 32 }', used), ("[models.gen", f"{stack}[models.gen")
    )
    assert dtrain_here("diff", gan, other).code == 0


def test_each_value_that_differs_is_a_line(dtrain_here: Here, gan: Path) -> None:
    other = rewritten(
        gan, "other.toml", ("lr = 2e-3", "lr = 1e-3"), ("clip = 1.0\n", ""), ("steps = 8", "steps = 9")
    )
    said = dtrain_here("diff", gan, other)
    assert said.code == 1
    assert [line.split() for line in said.out.splitlines()[1:]] == [
        ["optimizers.generator.lr", "0.002", "0.001"],
        ["optimizers.discriminator.clip", "1.0", "-"],
        ["train.steps", "8", "9"],
    ]


def test_a_layer_that_was_put_in_is_the_only_difference(gan: Path) -> None:
    block = '    { kind = "batch_norm" },\n'
    other = rewritten(gan, "other.toml", (block, '    { kind = "dropout", rate = 0.5 },\n' + block))
    (found,) = differences(dtrain.load(gan), dtrain.load(other))
    assert found == Difference("models.generator.layers[2]", NOTHING, {"kind": "dropout", "rate": 0.5})
    (back,) = differences(dtrain.load(other), dtrain.load(gan))
    assert back == Difference("models.generator.layers[2]", {"kind": "dropout", "rate": 0.5}, NOTHING)


def test_a_layer_of_the_same_kind_differs_in_its_keys(gan: Path) -> None:
    other = rewritten(gan, "other.toml", ("rate = 0.2", "rate = 0.25"))
    assert differences(dtrain.load(gan), dtrain.load(other)) == [
        Difference("models.discriminator.layers[2].rate", 0.2, 0.25)
    ]


def test_runs_and_checkpoints_are_compared_with_their_metrics(
    dtrain_here: Here, gan: Path, tmp_path: Path
) -> None:
    runs = []
    for number, lr in enumerate(("0.002", "0.001")):
        folder = tmp_path / str(number)
        assert dtrain_here("run", gan, f"hyperparameters.lr={lr}", "--runs", folder).code == 0
        runs.append(only_run(folder))
    said = dtrain_here("diff", *runs)
    assert said.code == 1
    recipe, metrics = said.out.split("\n\n")
    assert recipe.splitlines()[1].split() == ["optimizers.generator.lr", "0.002", "0.001"]
    assert len(recipe.splitlines()) == 2
    rows = {line.split()[0]: line.split()[1:] for line in metrics.splitlines()[1:]}
    assert "evaluate/loss" in rows
    assert "examples_per_second" not in rows
    for first, second, change in rows.values():
        assert float(change) == pytest.approx(float(second) - float(first), abs=2e-3)
    early, late = (runs[0] / "checkpoints" / f"step-0000000{step}" for step in (4, 8))
    said = dtrain_here("diff", early, late)
    assert said.code == 0
    assert re.search(r"generator/loss +\S+ \(step 4\) +\S+ \(step 8\)", said.out)
    assert dtrain_here("diff", gan, runs[0]).code == 0


def test_a_path_that_is_no_side_is_said(dtrain_here: Here, gan: Path, tmp_path: Path) -> None:
    said = dtrain_here("diff", gan, tmp_path / "nowhere")
    assert (said.code, said.errors) == (
        2,
        f"dtrain: {tmp_path / 'nowhere'} does not exist; a recipe, a run or a checkpoint would do\n",
    )
    (tmp_path / "runs" / "a" / "1").mkdir(parents=True)
    shutil.copy(gan, tmp_path / "runs" / "a" / "1" / "recipe.toml")
    said = dtrain_here("diff", tmp_path / "runs" / "a", tmp_path / "runs" / "a" / "1")  # its newest run
    assert (said.code, said.out) == (0, "the recipes are the same in meaning\n")
    said = dtrain_here("diff", gan, tmp_path / "runs")
    assert (said.code, said.errors) == (
        2,
        f"dtrain: {tmp_path / 'runs'} is none; a recipe, a run or a checkpoint would do\n",
    )


def test_nothing_that_a_recipe_names_is_imported(dtrain_here: Here, gan: Path) -> None:
    other = rewritten(gan, "other.toml", ('kind = "sgd"\n', 'kind = "no_such_package:SGD"\n'))
    said = dtrain_here("diff", gan, other)
    assert said.code == 1
    assert ["optimizers.discriminator.kind", '"sgd"', '"no_such_package:SGD"'] in [
        line.split() for line in said.out.splitlines()
    ]
