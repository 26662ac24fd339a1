"""Models out of checkpoints: which one is meant, what is known of it at once, what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSIFIER, last_tensors, only_run, stored, written
from reading import mistakes_of

import dtrain
from dtrain.errors import CheckpointError
from dtrain.format.checkpoints import checkpoints_in, glance_at
from dtrain.format.files import sealed
from dtrain.recipe.write import to_toml
from dtrain.spec.models import ModelSpec
from dtrain.spec.trust import Trust

STUDENT = """\
name = "student"
[system]
kind = "distillation"
[models.teacher]
kind = "checkpoint"
path = "runs/tiny-classifier"
model = "classifier"
[models.student]
input = [1, 8, 8]
layers = [{ kind = "flatten" }, { kind = "linear", out = 3 }]
[optimizers.student]
kind = "sgd"
lr = 0.1
[data]
kind = "arrays"
path = "pictures.npz"
[train]
steps = 2
batch_size = 4
[track]
kinds = []
"""


@pytest.fixture
def student(classifier: Path) -> Path:
    """A recipe whose teacher is a classifier that was trained, with a moving average."""
    train(classifier, "averages.classifier={ decay = 0.5 }", "every.save=2", "checkpoint.keep=9")
    return written(classifier.parent, "student.toml", STUDENT)


def train(recipe: Path, *overrides: str) -> Path:
    with dtrain.setup(dtrain.load(recipe, overrides), runs=recipe.parent / "runs", fresh=True) as run:
        list(dtrain.train(run))
    return run.folder


def weights_of(run: dtrain.Run, model: str) -> dict[str, np.ndarray]:
    own = {key: tensor for part, key, tensor in run.engine.tensors() if part == "models"}
    return {key.partition("/")[2]: t.numpy().copy() for key, t in own.items() if key.startswith(f"{model}/")}


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("averages", [True, False])
def test_a_teacher_has_the_weights_of_its_checkpoint_and_keeps_them(student: Path, averages: bool) -> None:
    home = only_run(student.parent / "runs")
    models = dtrain.load_models(home, averages=averages)
    wanted = {key: value.numpy() for key, value in models["classifier"].state_dict().items()}
    recipe = dtrain.load(student, [f"models.teacher.averages={str(averages).lower()}"])
    with dtrain.setup(recipe, runs=student.parent / "runs") as run:
        assert_same(weights_of(run, "teacher"), wanted)
        list(dtrain.train(run))
        assert_same(weights_of(run, "teacher"), wanted)


def test_a_model_with_an_optimizer_is_trained_on_from_its_checkpoint(student: Path) -> None:
    home = only_run(student.parent / "runs")
    text = CLASSIFIER.replace(
        "input = [1, 8, 8]", f'kind = "checkpoint"\npath = "{home}"\nmodel = "classifier"'
    )
    text = text[: text.index("layers = [")] + text[text.index("[optimizers") :]
    fine = written(student.parent, "fine.toml", text.replace('name = "tiny-classifier"', 'name = "fine"'))
    wanted = {k: v.numpy() for k, v in dtrain.load_models(home)["classifier"].state_dict().items()}
    with dtrain.setup(dtrain.load(fine), runs=student.parent / "runs") as run:
        assert_same(weights_of(run, "classifier"), wanted)
        list(dtrain.train(run))
        moved = weights_of(run, "classifier")
    assert not np.array_equal(moved["0.weight"], wanted["0.weight"])


def test_a_resolved_recipe_holds_the_layers_and_names_the_checkpoint(student: Path) -> None:
    recipe = dtrain.load(student)
    teacher = recipe.models["teacher"]
    assert isinstance(teacher, ModelSpec)
    assert teacher.output == (3,)
    newest = checkpoints_in(only_run(student.parent / "runs"))[-1]
    assert teacher.weights_from is not None
    assert teacher.weights_from.path == newest
    assert teacher.weights_from.checksum == glance_at(newest).checksum
    again = written(student.parent / "elsewhere", "again.toml", to_toml(recipe))
    shutil.rmtree(student.parent / "runs")
    assert dtrain.load(again).models == recipe.models


def test_the_best_checkpoint_of_the_newest_finished_run_is_meant(student: Path) -> None:
    runs, text = (
        student.parent / "runs/tiny-classifier",
        to_toml(dtrain.load(student.parent / "classifier.toml")),
    )
    run = train(student.parent / "classifier.toml", 'checkpoint.best="evaluate/loss"', "checkpoint.keep=1")
    state = glance_at(checkpoints_in(run)[-1]).state
    stored(runs / "9-that-was-cut-off", text, step=3, total=6)
    found = dtrain.load(student).models["teacher"].weights_from
    assert found is not None
    assert found.path == run / f"checkpoints/step-{state['best']['at'][0]:08d}"


def test_what_was_trained_can_be_loaded_without_its_teacher(student: Path) -> None:
    run = train(student)
    wanted = last_tensors(run)
    shutil.rmtree(student.parent / "runs/tiny-classifier")
    models = dtrain.load_models(run)
    assert wanted["models/teacher/0.weight"][2] == models["teacher"][0].weight.numpy().tobytes()


def test_a_checkpoint_that_is_missing_says_what_makes_one(student: Path) -> None:
    shutil.rmtree(student.parent / "runs/tiny-classifier")
    (student.parent / "tiny-classifier.toml").write_text('name = "tiny-classifier"\n')
    (error,) = mistakes_of(student)
    assert error.key == "models.teacher.path"
    assert "does not exist; `dtrain run " in error.message
    assert "tiny-classifier.toml --runs " in error.message
    assert error.spot is not None
    assert error.spot.line == STUDENT[: STUDENT.index("path")].count("\n") + 1


def test_a_run_that_was_cut_off_is_no_teacher(student: Path) -> None:
    home = student.parent / "runs/tiny-classifier"
    text = (only_run(student.parent / "runs") / "recipe.toml").read_text()
    shutil.rmtree(home)
    stored(home / "1", text, step=3, total=6)
    (error,) = mistakes_of(student)
    assert "has no finished run" in error.message


def test_another_checkpoint_in_its_place_is_refused_when_it_is_read(student: Path) -> None:
    recipe = dtrain.load(student)
    manifest = checkpoints_in(only_run(student.parent / "runs"))[-1] / "manifest.json"
    table = json.loads(manifest.read_bytes())
    del table["checksum"]
    table["environment"]["host"] = "another"
    manifest.write_bytes(sealed(table))
    with pytest.raises(CheckpointError, match="not the checkpoint that the recipe was made with"):
        dtrain.setup(recipe, runs=student.parent / "runs")


def test_weights_of_other_shapes_are_refused(student: Path) -> None:
    home = only_run(student.parent / "runs")
    own = f'models.student.weights_from={{ path = "{home}", model = "classifier" }}'
    with pytest.raises(CheckpointError, match=r"do not fit the recipe: 1\.bias is \(4,\), not \(3,\)"):
        dtrain.setup(dtrain.load(student, [own]), runs=student.parent / "runs")


@pytest.mark.parametrize(
    ("old", "new", "key", "said"),
    [
        ('model = "classifier"', 'model = "clasifier"', "model", 'did you mean "classifier"?'),
        ('model = "classifier"', "", "model", "required, but missing"),
        (
            'model = "classifier"',
            'model = "classifier"\naverage = true',
            "average",
            'did you mean "averages"?',
        ),
    ],
)
def test_mistakes_are_named_at_their_places(student: Path, old: str, new: str, key: str, said: str) -> None:
    student.write_text(STUDENT.replace(old, new))
    (error,) = mistakes_of(student)
    assert error.key == f"models.teacher.{key}"
    assert said in error.message


def test_what_a_checkpoint_would_import_must_be_trusted_by_name(student: Path) -> None:
    text = (only_run(student.parent / "runs") / "recipe.toml").read_text()
    hostile = (
        text[: text.index("[models.classifier]")] + '[models.classifier]\nkind = "os:system"\ncommand = "x"\n'
    )
    home = student.parent / "elsewhere"
    stored(home, hostile + text[text.index("[optimizers") :])
    (error,) = mistakes_of(student, f'models.teacher.path="{home}"')
    assert "is not in a trusted package" in error.message
    assert dtrain.load(student, [f'models.teacher.path="{home}"'], imports=False, trust=Trust(True, ("os",)))


def test_a_stranger_s_recipe_reads_no_checkpoint_outside_of_its_folder(student: Path, tmp_path: Path) -> None:
    elsewhere = written(tmp_path / "strange", "student.toml", STUDENT.replace('"runs', '"../runs'))
    (error,) = mistakes_of(elsewhere, trust=Trust())
    assert "lies outside of the recipe's folder" in error.message
