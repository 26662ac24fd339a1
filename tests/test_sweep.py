"""[sweep] as it is written: what its axes try, which mistakes are found at their line, who chooses what."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli
import yaml
from conftest import CLASSIFIER, Said, written

import dtrain
from dtrain.errors import DtrainError, RecipeErrors
from dtrain.recipe.load import read
from dtrain.recipe.write import to_toml
from dtrain.sweep.locks import join
from dtrain.sweep.process import Launch
from dtrain.sweep.results import write_results
from dtrain.sweep.setup import Setup, grouped, open_setup
from dtrain.sweep.study import JOURNAL, open_study

Here = Callable[..., Said]

GRID = 'sampler = "grid"\nmetric = "evaluate/accuracy"\n'
LINES = CLASSIFIER.count("\n")  # of the recipe above the sweep
FIRST_AXIS = LINES + 5  # its line


def swept(folder: Path, axes: str, options: str = GRID) -> Path:
    return written(folder, "swept.toml", f"{CLASSIFIER}[sweep]\n{options}[sweep.axes]\n{axes}")


def ready(folder: Path, axes: str, options: str = GRID) -> Setup:
    return open_setup(read(swept(folder, axes, options)), Launch(folder / "runs"), [])


def tried(setup: Setup) -> list[dict[str, Any]]:
    return setup.sweep.grid()


def test_a_grid_has_every_combination_once_the_last_axis_moving_fastest(tmp_path: Path) -> None:
    setup = ready(tmp_path, '"optimizers.*.lr" = [1e-3, 1e-2]\n"train.batch_size" = [4, 8]')
    lr, size = "optimizers.*.lr", "train.batch_size"
    assert tried(setup) == [
        {lr: 1e-3, size: 4},
        {lr: 1e-3, size: 8},
        {lr: 1e-2, size: 4},
        {lr: 1e-2, size: 8},
    ]
    recipe = setup.recipe(tried(setup)[1])
    assert (recipe.optimizers["classifier"].lr, recipe.train.batch_size) == (1e-3, 8)
    assert recipe.sweep is None


@pytest.mark.parametrize(
    ("axis", "cells"),
    [
        ("{ range = [4, 12, 4] }", (4, 8, 12)),
        ("{ log_uniform = [1e-4, 1e-2], points = 3 }", (1e-4, 1e-3, 1e-2)),
        ("{ uniform = [0.1, 0.3], points = 3 }", (0.1, 0.2, 0.3)),
        ("{ log_range = [1, 100], points = 3 }", (1, 10, 100)),
        ("{ log_range = [1, 3], points = 9 }", (1, 2, 3)),
        ("{ uniform = [1, 2], points = 1 }", (1.0,)),
        ("{ values = [[1], [2]] }", ((1,), (2,))),
    ],
)
def test_what_a_grid_takes_of_an_axis(tmp_path: Path, axis: str, cells: tuple[Any, ...]) -> None:
    found = dtrain.load(swept(tmp_path, f'"hyperparameters.x" = {axis}'))
    assert found.sweep is not None
    assert found.sweep.all_axes["hyperparameters.x"].cells() == cells


def test_tied_axes_go_with_another_and_conditions_switch_axes_on(tmp_path: Path) -> None:
    path = swept(
        tmp_path,
        '"optimizers.*.kind" = ["sgd", "adam"]\n'
        '"optimizers.*.lr" = { tied = "optimizers.*.kind", values = [0.1, 1e-3] }\n'
        '"optimizers.*.momentum" = { values = [0.5, 0.9], when = { "optimizers.*.kind" = "sgd" } }\n'
        '"models.classifier.layers[0].out" = [4, 8]\n'
        '"hyperparameters.twice" = { tied = "models.classifier.layers[0].out", times = 2 }',
    )
    path.write_text(f"hyperparameters = {{ twice = 8 }}\n{path.read_text()}")
    setup = open_setup(read(path), Launch(tmp_path / "runs"), [])
    found = tried(setup)
    assert len(found) == 2 * 2 + 2
    assert [each.get("optimizers.*.momentum") for each in found] == [0.5, 0.5, 0.9, 0.9, None, None]
    assert {(each["optimizers.*.kind"], each["optimizers.*.lr"]) for each in found} == {
        ("sgd", 0.1),
        ("adam", 1e-3),
    }
    recipe = setup.recipe(found[1])
    assert (recipe.optimizers["classifier"].momentum, recipe.hyperparameters["twice"]) == (0.5, 16)
    assert recipe.models["classifier"].layers[0].out == 8


def test_a_star_is_what_is_called_so_or_else_all_that_are_there(tmp_path: Path, gan: Path) -> None:
    starred = gan.read_text() + '\n[sweep]\nsampler = "grid"\nmetric = "evaluate/loss"\nmode = "min"\n'
    gan.write_text(starred + '[sweep.axes]\n"optimizers.*.lr" = [0.5]\n"averages.*.decay" = [0.25]')
    setup = open_setup(read(gan), Launch(tmp_path / "runs"), [])
    recipe = setup.recipe(setup.sweep.grid()[0])
    assert recipe.optimizers["generator"].lr == 0.5
    assert recipe.optimizers["discriminator"].lr == 0.05  # which has one of its own
    assert recipe.averages["generator"].decay == 0.25


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


def test_check_imports_nothing_for_trials_either(tmp_path: Path, dtrain_here: Here) -> None:
    path = swept(tmp_path, '"optimizers.*.lr" = [1e-3, 1e-2]')
    (tmp_path / "fatal.py").write_text("raise SystemExit('imported')\n")
    path.write_text(path.read_text().replace('kind = "adamw"', 'kind = "fatal.py:Mine"'))
    said = dtrain_here("check", path)
    assert said.code == 0, said.errors


def test_what_a_copy_of_the_star_says_is_still_said_where_it_was(tmp_path: Path) -> None:
    base, other = tmp_path / "base", tmp_path / "other"
    text = CLASSIFIER.replace("[optimizers.classifier]", '[optimizers."*"]').replace(
        '"adamw"', '"own.py:Mine"'
    )
    written(base, "plain.toml", text)
    (base / "own.py").write_text("from torch.optim import SGD\n\n\nclass Mine(SGD):\n    pass\n")
    other.mkdir()
    axes = '[sweep.axes]\n"optimizers.classifier.lr" = [1e-3]\n'
    (other / "swept.toml").write_text(f'extends = "../base/plain.toml"\n[sweep]\n{GRID}{axes}')
    setup = open_setup(read(other / "swept.toml"), Launch(tmp_path / "runs"), [])
    assert setup.recipe(setup.sweep.grid()[0]).optimizers["classifier"].path == f"{base}/own.py:Mine"


def test_what_refers_to_the_seed_goes_with_it(tmp_path: Path) -> None:
    path = swept(tmp_path, '"optimizers.*.lr" = [1e-3]', f"{GRID}seeds = 2\n")
    path.write_text(f'seed = 3\n{path.read_text()}\n[hyperparameters]\nother = "${{seed}}"\n')
    setup = open_setup(read(path), Launch(tmp_path / "runs"), [])
    recipe = setup.recipe(setup.sweep.grid()[0], 1)
    assert (recipe.seed, recipe.hyperparameters["other"]) == (4, 4)


def test_the_order_of_a_grid_is_its_own(tmp_path: Path) -> None:
    lines = ['"optimizers.*.lr" = [1e-3, 1e-2]', '"train.batch_size" = [4, 8]']
    one, other = (ready(tmp_path, "\n".join(order)).identity for order in (lines, lines[::-1]))
    assert one != other


def test_hyperband_counts_the_steps_of_epochs(tmp_path: Path) -> None:
    options = 'trials = 3\nmetric = "evaluate/loss"\nprune = { kind = "hyperband", min_steps = 2 }\n'
    setup = ready(tmp_path, '"optimizers.*.lr" = { uniform = [0, 1] }', options)
    assert setup.steps == 6


def test_a_decision_to_end_a_trial_survives_a_kill(tmp_path: Path) -> None:
    options = 'trials = 9\nmetric = "evaluate/loss"\nprune = { kind = "hyperband", min_steps = 2 }\n'
    setup = ready(tmp_path, '"optimizers.*.lr" = { uniform = [0, 1] }', options)
    decided = 0
    study = open_study(setup)
    while (begun := study.begin()) is not None:
        ends = next(
            (step for step in (2, 4, 6) if begun.report(step, float(begun.number), is_last=False)), None
        )
        if ends is None:
            begun.finish([float(begun.number)])
            continue
        decided += 1
        begun.leave()  # killed, before anybody was told
        again = open_study(setup).begin()
        assert again is not None
        assert again.number == begun.number
        assert [again.report(step, float(again.number), is_last=False) for step in (2, 4, 6) if step <= ends][
            -1
        ]
        again.prune()
    assert decided


def test_sweeps_of_one_name_are_told_apart(tmp_path: Path) -> None:
    with (
        join(tmp_path / "lock", "one", "rates"),
        join(tmp_path / "lock", "one", "rates"),
        pytest.raises(DtrainError, match="another sweep of the name rates is being worked on"),
    ):
        join(tmp_path / "lock", "two", "rates")
    join(tmp_path / "lock", "two", "rates").close()


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


def test_a_sweep_in_a_file_of_its_own_names_its_recipe(tmp_path: Path) -> None:
    written(tmp_path, "plain.toml", CLASSIFIER)
    own = (
        f'extends = ["plain.toml"]\n[sweep]\nname = "rates"\n{GRID}[sweep.axes]\n"optimizers.*.lr" = [1e-3]\n'
    )
    (tmp_path / "rates.toml").write_text(own)
    setup = open_setup(read(tmp_path / "rates.toml"), Launch(tmp_path / "runs"), [])
    assert setup.folder == tmp_path / "runs/sweeps/rates"
    assert setup.recipe({"optimizers.*.lr": 1e-3}).name == "tiny-classifier"


def test_no_run_and_no_checkpoint_depends_on_a_sweep(tmp_path: Path) -> None:
    plain = dtrain.load(written(tmp_path, "plain.toml", CLASSIFIER))
    with_sweep = dtrain.load(swept(tmp_path, '"optimizers.*.lr" = [1e-3]'))
    assert with_sweep.sweep is not None
    assert to_toml(with_sweep) == to_toml(plain)


@pytest.mark.parametrize("sampler", ["random", "tpe", "cma_es"])
def test_the_same_is_chosen_whoever_was_killed_in_between(tmp_path: Path, sampler: str) -> None:
    axes = '"optimizers.*.lr" = { log_uniform = [1e-4, 1] }\n"train.batch_size" = { range = [4, 8, 4] }\n'
    axes += '"models.classifier.layers[0].out" = { range = [2, 8, 2] }'
    options = f'sampler = "{sampler}"\ntrials = 12\nmetric = "evaluate/accuracy"\n'
    found = []
    for name, dies in (("alone", False), ("killed", True)):
        (tmp_path / name).mkdir()
        setup = ready(tmp_path / name, axes, options)
        study = open_study(setup)
        settings = []
        while (begun := study.begin()) is not None:
            if dies:  # what it asked for last is lost, as is what is no whole line
                begun.leave()
                cut_short(setup.folder / JOURNAL)
                study = open_study(setup)
                begun = study.begin()
                assert begun is not None
            settings.append(begun.settings)
            begun.finish([-abs(begun.settings["optimizers.*.lr"] - 0.01)])
        found.append(settings)
        assert [record.state for record in study.records()] == ["finished"] * 12
    assert found[0] == found[1]
    assert len({json.dumps(each) for each in found[0]}) > 6


def cut_short(journal: Path) -> None:
    """Leave half of the last line, as a process does that is killed while it writes."""
    *whole, last = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(whole) + last[: len(last) // 2])


def test_two_processes_never_work_on_one_trial(tmp_path: Path) -> None:
    setup = ready(tmp_path, '"optimizers.*.lr" = [1e-3, 1e-2]')
    first, second = open_study(setup), open_study(setup)
    one, two = first.begin(), second.begin()
    assert one is not None
    assert two is not None
    assert (one.number, two.number) == (0, 1)
    assert first.begin() is None
    one.leave()
    again = second.begin()
    assert again is not None
    assert again.number == 0
    assert [record.state for record in first.records()] == ["running", "running"]
    again.leave()
    two.leave()
    assert [record.state for record in first.records()] == ["cut off", "cut off"]


def test_dry_run_prints_recipes_that_can_be_read_again(tmp_path: Path, dtrain_here: Here) -> None:
    path = swept(tmp_path, '"optimizers.*.lr" = [1e-3, 1e-2]')
    said = dtrain_here("sweep", path, "--dry-run", "--runs", tmp_path / "runs")
    assert said.code == 0, said.errors
    texts = said.out.split("# trial ")[1:]
    assert [tomli.loads(f"# {text}")["optimizers"]["classifier"]["lr"] for text in texts] == [1e-3, 1e-2]
    (tmp_path / "one.toml").write_text(f"# {texts[0]}")
    assert dtrain.load(tmp_path / "one.toml").optimizers["classifier"].lr == 1e-3
    assert said.out.endswith("# 2 trials\n")
    assert not (tmp_path / "runs").exists()


def test_what_comes_of_others_is_not_foretold(tmp_path: Path, dtrain_here: Here) -> None:
    path = swept(
        tmp_path,
        '"optimizers.*.lr" = { log_uniform = [1e-4, 1] }',
        'trials = 20\nmetric = "evaluate/accuracy"\n',
    )
    said = dtrain_here("sweep", path, "--dry-run")
    assert said.out.endswith("# 6 trials; 14 more go by what comes of them\n")


def test_weights_and_biases_gets_what_its_agent_can_start(tmp_path: Path, dtrain_here: Here) -> None:
    axes = '"optimizers.*.lr" = { log_uniform = [1e-4, 1] }\n"train.deterministic" = [true, false]\n'
    axes += '"optimizers.*.kind" = ["adam", "sgd"]\n"train.batch_size" = { range = [4, 8, 4] }\n'
    axes += '"models.classifier.layers[0].out" = [4, 6]'
    options = 'trials = 20\nmetric = "evaluate/accuracy"\nprune = { kind = "hyperband", min_steps = 4 }\n'
    path = swept(tmp_path, axes, options)
    path.write_text(path.read_text().replace('["jsonl"]', '["jsonl", "wandb"]'))
    said = dtrain_here("sweep", path, "--to-wandb", "--runs", tmp_path / "runs")
    assert said.code == 0, said.errors
    file = tmp_path / "runs/sweeps/tiny-classifier/wandb.yaml"
    assert said.out.startswith(f"wandb sweep {file}")
    table = yaml.safe_load(file.read_text())
    assert table["method"] == "bayes"
    assert table["metric"] == {"name": "evaluate/accuracy", "goal": "maximize"}
    words = ["run", str(path), "--runs", str(tmp_path / "runs")]
    assert table["command"] == ["${env}", "dtrain", *words, "${args_no_hyphens}"]
    parameters = table["parameters"]
    assert parameters["optimizers.classifier.lr"]["distribution"] == "log_uniform_values"
    chosen = {
        key: each["values"][-1] if "values" in each else each["min"] for key, each in parameters.items()
    }
    recipe = dtrain.load(
        path, [f"{key}={value}" for key, value in chosen.items()]
    )  # as W&B's agent writes them
    assert recipe.optimizers["classifier"].lr == 1e-4
    assert (recipe.train.deterministic, recipe.train.batch_size) == (False, 8)
    assert recipe.models["classifier"].layers[0].out == 6


def test_weights_and_biases_has_no_words_for_some(tmp_path: Path, dtrain_here: Here) -> None:
    path = swept(tmp_path, '"train.batch_size" = [4]\n"train.epochs" = { tied = "train.batch_size" }')
    path.write_text(path.read_text().replace('["jsonl"]', '["jsonl", "wandb"]'))
    said = dtrain_here("sweep", path, "--to-wandb", "--runs", tmp_path / "runs")
    assert said.code == 2
    assert f"{FIRST_AXIS + 1}:" in said.errors
    assert "W&B has no axes that depend on others" in said.errors


def test_a_star_that_is_a_name_is_none_of_weights_and_biases(tmp_path: Path, dtrain_here: Here) -> None:
    path = swept(tmp_path, '"optimizers.*.lr" = [0.1]')
    path.write_text(
        path.read_text()
        .replace('["jsonl"]', '["jsonl", "wandb"]')
        .replace("[optimizers.classifier]", '[optimizers."*"]')
    )
    said = dtrain_here("sweep", path, "--to-wandb", "--runs", tmp_path / "runs")
    assert said.code == 2
    assert "one of hyperparameters would do" in said.errors


def test_devices_that_are_not_there_are_refused(tmp_path: Path, dtrain_here: Here, on_cpu: None) -> None:
    said = dtrain_here("sweep", swept(tmp_path, '"optimizers.*.lr" = [0.1]'), "--devices", "0")
    assert (said.code, said.errors) == (2, "dtrain: --devices 0: there is no such GPU here; leave it out\n")


def test_devices_are_shared_evenly() -> None:
    assert grouped(["0", "1", "2", "3"], 2) == [["0", "1"], ["2", "3"]]
    with pytest.raises(DtrainError, match="3 devices cannot be shared by 2 trials at a time; --parallel 1"):
        grouped(["0", "1", "2"], 2)


def test_values_that_are_arrays_or_tables_come_back_from_the_journal(tmp_path: Path) -> None:
    axes = '"optimizers.*.betas" = [[0.5, 0.9], [0.9, 0.99]]\n'
    axes += '"optimizers.classifier.schedule" = [{ kind = "cosine", warmup = 1 }, { kind = "constant" }]'
    setup = ready(tmp_path, axes)
    study = open_study(setup)
    while (begun := study.begin()) is not None:
        begun.finish([float(begun.number)])
    write_results(setup, open_study(setup))
    best = dtrain.load(setup.folder / "best.toml")
    assert best.optimizers["classifier"].betas == (0.9, 0.99)
    assert best.optimizers["classifier"].schedule.kind == "constant"
    told = json.loads((setup.folder / "trials.json").read_text())["trials"]
    assert told[0]["settings"]["optimizers.*.betas"] == [0.5, 0.9]
