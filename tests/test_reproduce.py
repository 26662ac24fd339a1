"""`dtrain reproduce` proves a checkpoint to the bit, and finds the first step and tensor that differ."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Said, cut_off, only_run, start, start_two, tensors_of
from safetensors.torch import load_file, save_file

import dtrain
from dtrain.checkpoint.read import checkpoints_in
from dtrain.checkpoint.record import read_record
from dtrain.errors import RecipeError
from dtrain.format.files import FORMAT, hash_of, sealed
from dtrain.format.hashes import digest_of

pytestmark = pytest.mark.alone

Here = Callable[..., Said]
FAST = "examples_per_second"


@pytest.fixture
def proved(gan: Path) -> Path:
    """The tiny GAN with a record of each step, saved every third."""
    text = gan.read_text().replace("steps = 8", "steps = 8\ndeterministic = true")
    gan.write_text(text.replace("save = 2", "save = 3").replace("[checkpoint]", "[checkpoint]\nkeep = 9"))
    return gan


@pytest.fixture
def run(proved: Path, tmp_path: Path, dtrain_here: Here) -> Path:
    """A whole run of it, with checkpoints after 3, 6 and 8 steps."""
    assert dtrain_here("run", proved, "--runs", tmp_path / "runs").code == 0
    return only_run(tmp_path / "runs")


def named(said: Said) -> tuple[int, str]:
    """The step and the first tensor that a command names as the first difference."""
    (line,) = [line for line in said.out.splitlines() if line.startswith("DIFFERS")]
    step = line.partition("after step ")[2].partition(",")[0]
    return int(step), line.partition(": the first")[2].partition(": ")[2].partition(",")[0].split(" and ")[0]


def test_a_run_left_alone_is_the_same_to_the_bit(run: Path, dtrain_here: Here) -> None:
    said = dtrain_here("reproduce", run)
    assert said.code == 0, said.out + said.errors
    steps = ", ".join(str(int(path.name[5:])) for path in checkpoints_in(run))
    last = said.out.splitlines()[-1]
    assert last == (
        f"the same to the bit: every tensor at step {steps} and a digest of each after every step until 8"
    )
    assert "not as" not in said.out


def test_where_nothing_was_recorded_nothing_is_proved(run: Path, tmp_path: Path, dtrain_here: Here) -> None:
    """Of a checkpoint that was copied away from its run its own step alone is known."""
    copy = shutil.copytree(checkpoints_in(run)[1], tmp_path / "copy")
    said = dtrain_here("reproduce", copy, "--until", 5)
    assert (said.code, said.out) == (2, "")
    assert said.errors.endswith("that could be compared; --until 6 would do\n")
    assert dtrain_here("reproduce", copy).code == 0


def test_a_proof_says_of_how_many_steps_it_is(run: Path, dtrain_here: Here) -> None:
    record = run / "record.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    lost = [line for line in lines if '"digests"' in line][3:5]
    record.write_text("".join(line for line in lines if line not in lost))
    said = dtrain_here("reproduce", run)
    assert said.code == 0, said.out + said.errors
    assert said.out.splitlines()[-1].endswith("and a digest of each after 6 of 8 steps until 8")


def test_the_record_has_every_step_once_and_every_checkpoint(run: Path) -> None:
    record = read_record(run)
    digests = list(record.digests())
    assert [noted.step for noted in digests] == list(range(1, 9))
    assert set(record.saved) >= {int(path.name[5:]) for path in checkpoints_in(run)}
    newest = tensors_of(checkpoints_in(run)[-1])
    assert record.saved[8] == {name: hash_of(data) for name, (_, _, data) in newest.items()}
    assert digests[-1].digests.keys() == newest.keys()
    assert all(
        digests[0].digests[name] != digests[-1].digests[name] for name in ("models/generator/0.weight",)
    )


def test_a_run_that_was_cut_off_and_carried_on_is_proved_too(
    proved: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    cut = cut_off(proved, tmp_path / "runs", 3)
    assert dtrain_here("run", proved, "--runs", tmp_path / "runs").code == 0
    assert [noted.step for noted in read_record(cut).digests()] == list(range(1, 9))
    assert dtrain_here("reproduce", cut).code == 0
    longer = ["train.steps=10", "--resume", cut, "--runs", tmp_path / "longer"]
    assert dtrain_here("run", proved, *longer).code == 0
    said = dtrain_here("reproduce", only_run(tmp_path / "longer"))
    assert said.code == 0, said.out + said.errors
    assert f"it began from {checkpoints_in(cut)[-1]}, step 8" in said.out
    shutil.rmtree(cut)
    said = dtrain_here("reproduce", only_run(tmp_path / "longer"))
    assert said.code == 2
    assert "which cannot be begun from again" in said.errors


def test_a_checkpoint_without_its_run_is_proved_by_itself(
    run: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    shutil.copytree(checkpoints_in(run)[-1], tmp_path / "alone")
    said = dtrain_here("reproduce", tmp_path / "alone")
    assert said.out.splitlines()[-1] == "the same to the bit: every tensor at step 8"


def flip_example(data: Path, number: int) -> None:
    """Change one bit of one training example."""
    arrays = dict(np.load(data))
    arrays["train_image"][number, 3, 3] ^= 1
    np.savez(data, **arrays)


def first_step_with(run: Path, recipe: Path, example: int) -> int:
    """The first step that trains on an example, by the order of the run itself."""
    with dtrain.setup(dtrain.load(recipe), runs=run.parents[2] / "order") as ready:
        per_step = sum(phase.repeat for phase in ready.system.phases())
        for update in range(1000):
            micros = (micro for micro, _ in ready.loader.load(update))
            if any(example in micro.indices for micro in micros):
                return update // per_step + 1
    raise AssertionError(example)


def altered_line(word: str, old: str, new: str) -> Callable[[str], str]:
    """What changes the first line that has a word."""

    def change(text: str) -> str:
        line = next(line for line in text.splitlines(keepends=True) if f'"{word}"' in line)
        assert old in line
        return text.replace(line, line.replace(old, new, 1))

    return change


DAMAGES = {  # of the record
    "a step that comes before": altered_line("digests", '"step": 1', '"step": 9'),
    "a digit that is none": lambda text: text.replace('"digests": "', '"digests": "g', 1),
    "no names": lambda text: "".join(x for x in text.splitlines(keepends=True) if '"names"' not in x),
    "digests that are a number": lambda text: text.replace('"digests": "', '"digests": 7, "x": "', 1),
    "names that are a number": lambda text: text.replace('"names": [', '"names": 3, "x": [', 1),
    "a life that is a list": lambda text: text.replace('"life": {', '"life": [1], "x": {', 1),
    "a step that is a fraction": lambda text: text.replace('"step": 1,', '"step": 1e400,', 1),
    "a step twice": lambda text: text + text.splitlines(keepends=True)[-1],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_that_was_altered_is_refused_at_its_line(run: Path, dtrain_here: Here, damage: str) -> None:
    record = run / "record.jsonl"
    kept = [line for line in record.read_text().splitlines(keepends=True) if '"saved"' not in line]
    record.write_text(DAMAGES[damage]("".join(kept)))
    said = dtrain_here("reproduce", run)
    assert (said.code, said.out) == (2, "")
    assert f"dtrain: {record}:" in said.errors
    assert said.errors.count("\n") == 1


def test_what_was_not_compared_is_not_said_to_be_the_same(run: Path, dtrain_here: Here) -> None:
    record = run / "record.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    own = {json.loads(line)["step"]: line for line in lines if '"digests"' in line}
    broken = json.dumps({**json.loads(own[5]), "digests": "0" * len(json.loads(own[5])["digests"])}) + "\n"
    record.write_text("".join(broken if x == own[5] else x for x in lines if x not in (own[2], own[4])))
    said = dtrain_here("reproduce", run)
    assert named(said)[0] == 5
    assert "the same to the bit until step 3\n" in said.out


@pytest.mark.parametrize("example", [0, 7, 13, 19])
def test_one_bit_of_the_data_is_found_at_its_step(
    run: Path, proved: Path, dtrain_here: Here, example: int
) -> None:
    step = first_step_with(run, proved, example)
    flip_example(proved.parent / "pictures.npz", example)
    said = dtrain_here("reproduce", run)
    assert said.code == 2
    assert named(said)[0] == step
    assert "data" in said.out.splitlines()[1]


@pytest.mark.parametrize("bit", [0, 20, 30, 40, 51])
def test_one_bit_of_a_number_in_the_recipe_is_found(run: Path, dtrain_here: Here, bit: int) -> None:
    """In the checkpoint, whose manifest was made to fit; from bit 30 on it changes the first weights."""
    checkpoint = checkpoints_in(run)[-1]
    recipe = checkpoint / "recipe.toml"
    changed = float((np.array(0.05).view(np.int64) ^ (1 << bit)).view(np.float64))
    text = recipe.read_text()
    recipe.write_text(text.replace("lr = 0.05", f"lr = {changed!r}"))
    assert recipe.read_text() != text
    reseal(checkpoint)
    said = dtrain_here("reproduce", checkpoint)
    assert said.code == 2
    assert f"ALTERED: optimizers.discriminator.lr is 0.05 in the run's own recipe and {changed!r}" in said.out
    if bit >= 30:
        step, tensor = named(said)
        assert step == 1
        assert tensor.startswith("models/discriminator/")


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    "tensor",
    [
        "models/generator/0.weight",
        "models/generator/2.running_mean",
        "optimizers/generator/0.weight/exp_avg_sq",
        "optimizers/discriminator/0.bias/momentum_buffer",
        "averages/generator/4.bias",
    ],
)
def test_one_bit_of_a_state_is_found_at_its_step_and_tensor(
    run: Path, dtrain_here: Here, place: int, tensor: str
) -> None:
    """Though the manifest was made to fit, and the checkpoints after it are as they were."""
    checkpoint = checkpoints_in(run)[place]
    flip(checkpoint, tensor)
    said = dtrain_here("reproduce", run)
    assert said.code == 2
    assert named(said) == (int(checkpoint.name[5:]), tensor)
    assert "that checkpoint was changed later" in said.out


@pytest.mark.parametrize(("model", "step"), [("generator", 3), ("discriminator", 6)])
def test_a_bit_that_flipped_while_it_trained_is_found_where_it_flipped(
    proved: Path, tmp_path: Path, dtrain_here: Here, model: str, step: int
) -> None:
    with dtrain.setup(dtrain.load(proved), runs=tmp_path / "runs") as run:
        stepped = run.engine.stepped

        def flipping(number: int) -> None:
            stepped(number)
            if number + 1 == step:  # after the updates of that step, as a broken memory would
                run.engine.held[model].module[0].bias.data.view(torch.int32)[0] ^= 1

        run.engine.stepped = flipping  # type: ignore[method-assign]
        for _ in dtrain.train(run):
            pass
    said = dtrain_here("reproduce", run.folder)
    assert said.code == 2
    assert named(said) == (step, f"models/{model}/0.bias")


def test_without_a_record_of_steps_logged_values_narrow_it_down(
    gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    gan.write_text(gan.read_text().replace("save = 2", "save = 0"))
    assert dtrain_here("run", gan, "--runs", tmp_path / "runs").code == 0
    run = only_run(tmp_path / "runs")
    assert dtrain_here("reproduce", run).code == 0
    step = first_step_with(run, gan, 13)
    flip_example(gan.parent / "pictures.npz", 13)
    said = dtrain_here("reproduce", run)
    assert said.code == 2
    assert step <= named(said)[0] <= step + 1
    assert "train.deterministic = true" in said.out


def test_two_processes_prove_what_two_trained(proved: Path, tmp_path: Path, dtrain_here: Here) -> None:
    runs = tmp_path / "runs"
    lives = start_two("run", proved, "--runs", runs, log=tmp_path / "log")
    assert [life.end() for life in lives] == [0, 0], [life.said for life in lives]
    lives = start_two("reproduce", only_run(runs), log=tmp_path / "log2")
    assert [life.end() for life in lives] == [0, 0], [life.said for life in lives]
    assert "the same to the bit: every tensor at step 3, 6, 8 and a digest" in lives[0].said
    flip_example(proved.parent / "pictures.npz", 7)
    lives = start_two("reproduce", only_run(runs), log=tmp_path / "log3")
    assert [life.end() for life in lives] == [2, 2], [life.said for life in lives]
    assert "DIFFERS" in lives[0].said
    alone = start("reproduce", only_run(runs), log=tmp_path / "log4")
    assert alone.end() == 2
    assert "world was 2 and is 1" in alone.said


def test_a_kernel_that_is_not_deterministic_is_refused_by_its_name(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (classifier.parent / "scattered.py").write_text(SCATTERED)
    text = classifier.read_text().replace(
        'kind = "classifier"\nlabel_smoothing = 0.1', 'kind = "./scattered.py:S"'
    )
    classifier.write_text(text.replace("epochs = 2", "epochs = 2\ndeterministic = true"))
    with (
        dtrain.setup(dtrain.load(classifier), runs=tmp_path / "runs") as run,
        pytest.raises(RecipeError, match=r"phase classifier uses put_, of which torch has no"),
    ):
        for _ in dtrain.train(run):
            pass
    assert not torch.are_deterministic_algorithms_enabled()


SCATTERED = """
from dataclasses import dataclass
import torch
from dtrain import Loss, Phase, System

@dataclass(frozen=True, kw_only=True)
class S(System):
    def phases(self):
        return (Phase(("classifier",), self.loss),)

    def loss(self, models, batch, ops):
        given = models.classifier(batch["image"])
        chosen = torch.zeros_like(given).put_(torch.tensor([0, 0]), torch.ones(2))
        return Loss((given * chosen).mean())
"""


def flip(checkpoint: Path, tensor: str) -> None:
    """Change one bit of a tensor, and the manifest so that it fits."""
    part, _, name = tensor.partition("/")
    (file,) = checkpoint.glob(f"{part}-*.safetensors")
    tensors = load_file(file)
    tensors[name].reshape(-1).view(torch.int32)[0] ^= 1
    save_file(tensors, file, {"format": "pt"})
    reseal(checkpoint, {tensor: hash_of(tensors[name].reshape(-1).view(torch.uint8).numpy().data)})


def reseal(checkpoint: Path, tensors: dict[str, str] | None = None) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["checksum"]
    manifest["tensors"] |= tensors or {}
    for name in manifest["files"]:
        file = checkpoint / name
        manifest["files"][name] = {"size": file.stat().st_size, "hash": digest_of(file, FORMAT)}
    (checkpoint / "manifest.json").write_bytes(sealed(manifest))


def test_a_record_for_which_there_is_no_place_ends_the_run_in_one_line(proved: Path, tmp_path: Path) -> None:
    limit = (
        "import resource as r, sys; r.setrlimit(r.RLIMIT_FSIZE, (4000, 4000)); from dtrain.cli.app import "
    )
    words = ["run", str(proved), "--runs", str(tmp_path / "runs"), "train.steps=60", "every.save=0"]
    found = subprocess.run(
        [sys.executable, "-c", limit + f"main; sys.exit(main({words!r}))"], capture_output=True, text=True
    )
    assert found.returncode == 2, found.stderr
    assert [line for line in found.stderr.splitlines() if "record.jsonl: cannot be written" in line]
    assert "Traceback" not in found.stderr
