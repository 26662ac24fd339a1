"""[sweep] as it is written: what its axes try, and who chooses what."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli
import yaml
from conftest import CLASSIFIER, Said, written
from sweeping import FIRST_AXIS, GRID, ready, swept, tried

import dtrain
from dtrain.errors import DtrainError
from dtrain.recipe.load import read
from dtrain.recipe.write import to_toml
from dtrain.sweep.locks import join
from dtrain.sweep.process import Launch
from dtrain.sweep.results import write_results
from dtrain.sweep.setup import grouped, open_setup
from dtrain.sweep.study import JOURNAL, open_study

Here = Callable[..., Said]


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
