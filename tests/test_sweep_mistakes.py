"""Mistakes in [sweep] are found before the first trial, at their line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Said
from sweeping import FIRST_AXIS, GRID, swept

import dtrain
from dtrain.errors import RecipeErrors
from dtrain.recipe.load import read
from dtrain.sweep.process import Launch
from dtrain.sweep.setup import open_setup

Here = Callable[..., Said]

MISTAKES = {  # an axis: the column in its line, and what is said
    '"optimizers.*.lrr" = [1e-3]': (1, 'sweep.axes."optimizers.*.lrr": unknown key; did you mean "lr"?'),
    '"trian.batch_size" = [4]': (1, 'unknown key; did you mean "train"?'),
    '"optimizers.*.lr" = [1e-3, "fast"]': (28, 'sweep.axes."optimizers.*.lr"[1]: found "fast"; a number'),
    '"train.batch_size" = { values = [4, 6] }': (37, "6 is not a multiple of train.micro_batch_size (4)"),
    '"train.batch_size" = [4, 0]': (26, "found 0; a number above 0 would do"),
    '"models.classifier.layers[0].kernel" = [3, 99]': (44, "found 99; "),
    '"models.classifier.layers[99].out" = [3]': (1, "there is no such item; the array has 7"),
    '"name.x" = [1]': (1, "is no table, so name.x cannot be set"),
    '"optimizers.*.kind" = ["adam", "adma"]': (32, 'did you mean "adam"?'),
    '"optimizers.*.lr" = { log_uniform = [0, 1], points = 2 }': (37, "ends above 0 would do"),
    '"optimizers.*.lr" = { uniform = [2, 1], points = 2 }': (33, "two ends would do, the lower one first"),
    '"optimizers.*.lr" = { uniform = [1, 2] }': (21, "a grid must know how many numbers to take"),
    '"optimizers.*.lr" = { unifrom = [1, 2] }': (23, 'unknown key; did you mean "uniform"?'),
    '"optimizers.*.lr" = [1e-3, 0.001]': (21, "found 0.001 twice"),
    '"optimizers.*.lr" = []': (21, "at least one item would do"),
    '"optimizers.*.lr" = 1e-3': (21, "found 0.001; an array or a table would do"),
    '"optimizers.*.lr" = { tied = "train.size" }': (30, "the key of an axis above would do"),
    '"optimizers.*.lr" = { values = [1], when = { "train.size" = 1 } }': (46, "the key of an axis above"),
    '"train.seed" = [1]': (1, "unknown key"),
    '"optimizers.*.lr" = { values = [1], uniform = [1, 2] }': (37, "found values and uniform; one of them"),
    '"train.batch_size" = { range = [4, 10, 4] }': (32, "steps of 4 from 4 do not reach 10; 8 would do"),
    '"train.batch_size" = { range = [4, 1_000_000_000] }': (32, "in a grid at most 10,000 would do"),
    '"optimizers.*.lr" = [nan, 1e-3]': (21, "found nan; a finite number would do"),
    '"optimizers.*.lr" = [1979-05-27]': (21, "no key of a recipe takes a date or a time"),
    "optimizers.classifier.lr = [1e-3]": (23, '"optimizers.classifier.lr" would do'),
    '"track.kinds" = [["console"]]': (18, '"jsonl" belongs here, too'),
    '"optimizers.*.lr" = { values = [1], points = 2 }': (37, "is for uniform, log_uniform or log_range"),
}


@pytest.mark.parametrize("axis", MISTAKES)
def test_a_mistake_in_an_axis_is_found_before_the_first_trial_at_its_line(tmp_path: Path, axis: str) -> None:
    path = swept(tmp_path, axis)
    column, said = MISTAKES[axis]
    with pytest.raises(RecipeErrors) as caught:
        open_setup(read(path), Launch(tmp_path / "runs"), [])
    assert f"{path}:{FIRST_AXIS}:{column}: " in str(caught.value)
    assert said in str(caught.value)
    assert not (tmp_path / "runs").exists()


MORE_MISTAKES = {  # in the second of two axes
    '"optimizers.classifier" = [{ kind = "sgd" }]': 'and the axis "optimizers.*.lr" sets a part of that; one',
    '"system.kind" = ["classifier", "gan"]': 'sweep.axes."system.kind"[1]: system.latent (',
    '"data.kind" = ["arrays", "images"]': "data.size (",
    '"train.steps" = [3]': "give either `steps` or `epochs`",
    '"train.lanes" = { values = [1], when = { "optimizers.*.lr" = 5e-3 } }': "found 0.005, which",
    '"train.micro_batch_size" = { range = [2, 8, 2] }': "6 does not divide train.batch_size (8)",
    '"optimizers.classifier.lr" = [1e-3]': 'and the axis "optimizers.*.lr" does; one of them would do',
    '"train.lanes" = { values = [1], when = { "optimizers.*.lr" = 5 } }': 'found 5, which "optimizers',
    '"train.lanes" = { values = [1], when = { "optimizers.*.lr" = "sgd" } }': 'found "sgd", which "optim',
    '"hyperparameters.x" = { tied = "optimizers.*.lr", values = [1] }': 'but "optimizers.*.lr" has 2 values',
}


@pytest.mark.parametrize("axis", MORE_MISTAKES)
def test_a_mistake_of_two_axes_is_found_at_the_second(tmp_path: Path, axis: str) -> None:
    path = swept(tmp_path, f'"optimizers.*.lr" = [1e-3, 1e-2]\n{axis}')
    with pytest.raises(RecipeErrors) as caught:
        open_setup(read(path), Launch(tmp_path / "runs"), [])
    assert str(caught.value).startswith(f"{path}:{FIRST_AXIS + 1}:")
    assert MORE_MISTAKES[axis] in str(caught.value)


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        (
            '"hyperparameters.lrr" = [1]',
            'there is no such hyperparameter, and nothing refers to it; did you mean "lr"',
        ),
        ('"sweep.trials" = [1]', "an axis cannot be of [sweep] itself"),
    ],
)
def test_axes_of_what_no_trial_has_are_refused(tmp_path: Path, axis: str, said: str) -> None:
    path = swept(tmp_path, axis)
    path.write_text(f"hyperparameters = {{ lr = 8 }}\n{path.read_text()}")
    with pytest.raises(RecipeErrors) as caught:
        open_setup(read(path), Launch(tmp_path / "runs"), [])
    assert str(caught.value).startswith(f"{path}:{FIRST_AXIS + 1}:1: ")
    assert said in str(caught.value)


def test_many_numbers_of_some_axes_hide_no_end_of_another(tmp_path: Path) -> None:
    axes = "".join(f'"hyperparameters.x{n}" = {{ range = [1, 100] }}\n' for n in range(6))
    options = 'sampler = "random"\ntrials = 3\nmetric = "evaluate/accuracy"\n'
    path = swept(tmp_path, f'{axes}"models.classifier.layers[5].rate" = {{ uniform = [0.1, 1.5] }}', options)
    named = ", ".join(f"x{n} = 1" for n in range(6))
    path.write_text(f"hyperparameters = {{ {named} }}\n{path.read_text()}")
    with pytest.raises(RecipeErrors, match=r"rate\"\.uniform\[1\]: found 1.5"):
        open_setup(read(path), Launch(tmp_path / "runs"), [])


def test_a_condition_that_no_trial_meets_is_found(tmp_path: Path) -> None:
    axes = (
        '"train.batch_size" = [4, 8]\n"train.lanes" = { values = [1], when = { "train.batch_size" = 4 } }\n'
    )
    both = 'when = { "train.batch_size" = 8, "train.lanes" = 1 }'
    with pytest.raises(RecipeErrors, match="no trial of the grid meets it"):
        dtrain.load(swept(tmp_path, f'{axes}"optimizers.*.lr" = {{ values = [1], {both} }}'))


@pytest.mark.parametrize("values", ["[1, 6]", "[1, 9]"])
def test_who_ends_trials_early_has_evaluations_to_go_by(tmp_path: Path, values: str) -> None:
    options = f'{GRID}prune = {{ kind = "median" }}\n'
    path = swept(tmp_path, f'"every.evaluate" = {values}', options)  # of 6 steps
    with pytest.raises(
        RecipeErrors, match=r"evaluate\"\[1\]: found \d: nothing would be evaluated before the"
    ):
        open_setup(read(path), Launch(tmp_path / "runs"), [])


def test_a_condition_on_numbers_is_a_number_that_they_reach(tmp_path: Path) -> None:
    for wanted, is_met in (('"sgd"', False), ("true", False), ("5", False), ("4.5", False), ("8", True)):
        axes = '"train.batch_size" = { range = [4, 12, 4] }\n"optimizers.*.lr" = { values = [1], when = { '
        path = swept(tmp_path, f'{axes}"train.batch_size" = {wanted} }} }}')
        if is_met:
            assert dtrain.load(path).sweep is not None
        else:
            with pytest.raises(RecipeErrors, match=r'which "train\.batch_size" never is'):
                dtrain.load(path)


def test_words_cannot_be_multiplied(tmp_path: Path) -> None:
    axes = '"optimizers.*.kind" = ["adam"]\n"hyperparameters.x" = { tied = "optimizers.*.kind", times = 2 }'
    with pytest.raises(RecipeErrors, match='may be "adam", which cannot be multiplied'):
        dtrain.load(swept(tmp_path, axes))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--config", "nope.yaml"], "--config nope.yaml cannot be read"),
        (["--scale", "nope.toml"], "nope.toml"),
        (["--time", "1:00:00"], "--submit slurm belongs to them"),
        (["--submit", "slurm", "--retry"], "--retry is for a sweep that runs here"),
        (["--submit", "slurm", "--devices", "0"], "--sbatch=--gpus=1 would do"),
        (["--devices", ""], "--devices names none; 0,1 would do"),
        (["--report", "--dry-run"], "each do something else; give one"),
        (["--report"], "has no trials of this sweep"),
        (["optimizers.*.lr=0.5"], 'is set by the axis "optimizers.*.lr" anyway'),
        (['sweep.prune={kind="median",warmup=6}'], "found 6, but a trial has 6 steps; less would do"),
    ],
)
def test_options_that_will_not_do(tmp_path: Path, dtrain_here: Here, options: list[str], said: str) -> None:
    path = swept(tmp_path, '"optimizers.*.lr" = [1e-3]')
    found = dtrain_here("sweep", path, *options, "--runs", tmp_path / "runs")
    assert found.code == 2
    assert said in found.errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("axis", "hint"),
    [
        ("[1e-3, 1e-2]", ' (only 4 can differ; sampler = "grid" takes each once)'),
        ("{ range = [1, 7, 2] }", ' (only 8 can differ; sampler = "grid" takes each once)'),
        ("{ range = [1, 99] }", ""),
        ("{ range = [1, 9_223_372_036_854_775_807] }", ""),
        ("{ uniform = [1, 2] }", ""),
    ],
)
def test_check_says_when_there_are_fewer_than_trials(
    tmp_path: Path, dtrain_here: Here, axis: str, hint: str
) -> None:
    options = 'sampler = "random"\ntrials = 9\nmetric = "evaluate/accuracy"\n'
    path = swept(tmp_path, f'"optimizers.*.lr" = {axis}\n"train.batch_size" = [4, 8]', options)
    line = dtrain_here("check", path).out.splitlines()[-1]
    assert (
        line == f"sweep: 9 trials (random) of optimizers.*.lr, train.batch_size; max evaluate/accuracy{hint}"
    )


def test_check_finds_them_too(tmp_path: Path, dtrain_here: Here) -> None:
    path = swept(tmp_path, '"optimizers.*.lr" = [1e-3, "fast"]')
    said = dtrain_here("check", path)
    assert (said.code, said.out) == (2, "")
    assert said.errors.startswith(f"dtrain: {path}:{FIRST_AXIS}:28: ") or f"{FIRST_AXIS}:28" in said.errors


def test_what_two_axes_do_together_is_said_with_their_values(tmp_path: Path) -> None:
    path = swept(tmp_path, '"train.epochs" = [2, 1]\n"train.batch_size" = [8, 20]')
    warm = 'lr = 1e-2\nschedule = { kind = "cosine", warmup = 2 }'
    path.write_text(path.read_text().replace("lr = 1e-2", warm))
    values = r"train.epochs = 1, train.batch_size = 20"
    with pytest.raises(RecipeErrors, match=rf"found 2, but the whole run has 1 step.* \(where {values}\)"):
        open_setup(read(path), Launch(tmp_path / "runs"), [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            'sampler = "grid"\n',
            "sweep.metric: required, but missing; one of evaluate/loss, evaluate/accuracy",
        ),
        ('sampler = "grid"\nmetric = "accuracy"\n', 'did you mean "evaluate/accuracy"?'),
        (f"{GRID}trials = 3\n", "sweep.trials: a grid has as many as its axes have values; leave it out"),
        ('metric = "evaluate/accuracy"\n', "sweep.trials: required, but missing; trials = 20 would do"),
        (f'{GRID}prune = {{ kind = "medain" }}\n', 'did you mean "median"?'),
        (f'{GRID}mode = "min"\n', 'found "min", but the best evaluate/accuracy is the max; leave it out'),
        (f"{GRID}mintues = 3\n", 'did you mean "minutes"?'),
    ],
)
def test_mistakes_of_the_table_itself(tmp_path: Path, options: str, said: str) -> None:
    with pytest.raises(RecipeErrors) as caught:
        dtrain.load(swept(tmp_path, '"optimizers.*.lr" = [1e-3]', options))
    assert said in str(caught.value)
