"""What a checkpoint is on disk: open to stock readers, without pickle, whole or absent, or refused."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tomli
import torch
from accelerate.utils import gather_object
from blake3 import blake3
from conftest import Said, cut_off, only_run, start, start_two, tensors_of
from safetensors import safe_open

import dtrain
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.checkpoint.snapshot import assign
from dtrain.cli.app import main
from dtrain.errors import CheckpointError, DtrainError
from dtrain.events import Evaluated
from dtrain.format.files import FORMAT, sealed
from dtrain.format.hashes import digest_of

Here = Callable[..., Said]


@pytest.fixture
def checkpoint(gan: Path, tmp_path: Path) -> Path:
    """The checkpoint after 2 of the GAN's 8 steps, the newest of its run."""
    return checkpoints_in(cut_off(gan, tmp_path / "runs", 2))[-1]


def test_stock_readers_open_everything(checkpoint: Path) -> None:
    names: dict[str, list[str]] = {}
    for file in checkpoint.iterdir():
        match file.suffix:
            case ".safetensors":
                with safe_open(file, framework="np") as opened:
                    names[file.name.split("-")[0]] = sorted(opened.keys())
            case ".json":
                json.loads(file.read_text())
            case ".toml":
                assert tomli.loads(file.read_text())["train"]["batch_size"] == 8
            case other:
                pytest.fail(f"{file} is {other}")
    weights = [f"discriminator/{n}.{part}" for n in (0, 4) for part in ("bias", "weight")]
    weights += [f"generator/{n}.{part}" for n in (0, 2, 4) for part in ("bias", "weight")]
    buffers = [f"generator/2.{name}" for name in ("num_batches_tracked", "running_mean", "running_var")]
    assert names["models"] == sorted(weights + buffers)
    assert names["averages"] == [name for name in weights if name.startswith("generator/")]
    moments = ("exp_avg", "exp_avg_sq", "step")
    kept = {"generator": moments, "discriminator": ("momentum_buffer",)}
    of_optimizers = [f"{name}/{key}" for name in weights for key in kept[name.split("/")[0]]]
    assert names["optimizers"] == sorted(of_optimizers)


def test_the_manifest_lists_every_file_and_tensor_with_its_hash(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())

    def hash_of(data: bytes) -> str:
        return str(blake3(data).hexdigest(length=16))

    def entry_of(file: Path) -> dict[str, Any]:
        """Of a file of tensors, each of which has its own, the header's hash."""
        data = file.read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        return {"size": len(data), "hash": hash_of(data[:header] if file.suffix == ".safetensors" else data)}

    files = {file.name: entry_of(file) for file in checkpoint.iterdir() if file.name != "manifest.json"}
    assert manifest["files"] == files
    tensors = tensors_of(checkpoint)
    assert manifest["tensors"] == {name: hash_of(data) for name, (_, _, data) in tensors.items()}
    checksum = manifest.pop("checksum")
    assert checksum == hash_of(json.dumps(manifest, sort_keys=True, indent=1).encode())
    assert manifest["environment"]["versions"]["torch"] == torch.__version__


def test_models_load_with_their_averages_or_without(checkpoint: Path) -> None:
    run = checkpoint.parent.parent
    raw = safetensors.torch.load_file(next(checkpoint.glob("models-*")))
    averages = safetensors.torch.load_file(next(checkpoint.glob("averages-*")))
    for path in (checkpoint, run, str(run)):
        models = dtrain.load_models(path)
        assert list(models) == ["generator", "discriminator"]
        for name, value in models["generator"].state_dict().items():
            assert torch.equal(value, averages.get(f"generator/{name}", raw[f"generator/{name}"])), name
    plain = dtrain.load_models(checkpoint, averages=False)
    for name, model in plain.items():
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        for key, value in model.state_dict().items():
            assert torch.equal(value, raw[f"{name}/{key}"])
    assert plain["generator"](torch.zeros(2, 4)).shape == (2, 1, 8, 8)


# --- no pickle ---


class Refused:
    """Stands for everything that unpickles."""

    def __init__(self, *_: Any, **__: Any):
        raise RuntimeError("somebody unpickles")


def refuse_pickle() -> None:
    """Put `Refused` wherever a module keeps one of the ways to unpickle, or torch.load."""
    ways = {id(way) for way in (pickle.load, pickle.loads, pickle.Unpickler, pickle._Unpickler, torch.load)}
    for module in list(sys.modules.values()):
        for name, value in list(vars(module).items()):
            if id(value) in ways:
                setattr(module, name, Refused)


def train_resume_and_load(arguments: list[str]) -> int:
    """Without pickle: train a checkpoint's run to its end, and another of its own; load its models."""
    recipe, run, runs = map(Path, arguments)
    refuse_pickle()
    with pytest.raises(RuntimeError, match="somebody unpickles"):
        pickle.loads(b"")
    with dtrain.setup(dtrain.load(recipe), runs=runs, resume=run) as ready:
        assert ready.step == 2
        for _ in dtrain.train(ready):
            pass
        if ready.engine.world > 1:
            with pytest.raises(RuntimeError, match="somebody unpickles"):
                gather_object([1])  # how Accelerate's ranks talk: seen here if it were used
    assert dtrain.load_models(run)["generator"](torch.zeros(1, 4)).shape == (1, 1, 8, 8)
    return main(["run", str(recipe), "train.steps=4", "--runs", str(runs), "--fresh"])


def test_nothing_unpickles_on_one_process_or_two(checkpoint: Path, gan: Path, tmp_path: Path) -> None:
    run = checkpoint.parent.parent
    shutil.copytree(run, tmp_path / "copy")
    alone = start(gan, run, tmp_path / "1", log=tmp_path / "log", action=train_resume_and_load)
    assert alone.end() == 0, alone.said
    both = start_two(
        gan, tmp_path / "copy", tmp_path / "2", log=tmp_path / "log2", action=train_resume_and_load
    )
    assert [life.end() for life in both] == [0, 0], [life.said for life in both]


# --- damage ---


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(checkpoint: Path, recipe: Path, here: Here, *words: str) -> None:
    """Opened, resumed from or loaded: one message with these words, exit status 2, nothing deleted."""
    before = listing(checkpoint)
    for use in (open_checkpoint, dtrain.load_models):
        with pytest.raises(CheckpointError) as caught:
            use(checkpoint)
        assert all(word in str(caught.value) for word in words), str(caught.value)
    said = here("run", recipe, "--runs", checkpoint.parents[3])
    assert said.code == 2
    assert said.errors.count("\n") == 1
    assert said.errors.startswith("dtrain: ")
    assert all(word in said.errors for word in words), said.errors
    assert listing(checkpoint) == before


FILES = ("models", "optimizers", "averages", "state.json", "recipe.toml", "manifest.json")


def file_of(checkpoint: Path, name: str) -> Path:
    return next(checkpoint.glob(f"{name}-*"), checkpoint / name)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(checkpoint: Path, gan: Path, dtrain_here: Here, name: str) -> None:
    file = file_of(checkpoint, name)
    whole = file.read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        altered = bytearray(whole)
        altered[place] ^= 1
        file.write_bytes(altered)
        with pytest.raises(CheckpointError, match=file.name):
            open_checkpoint(checkpoint)
    assert_refused(checkpoint, gan, dtrain_here, str(file))
    file.write_bytes(whole[:-1])
    assert_refused(checkpoint, gan, dtrain_here, str(file) if name != "manifest.json" else file.name)
    file.unlink()
    missing = ("is not a checkpoint: it has no manifest.json",) if name == "manifest.json" else (str(file),)
    assert_refused(checkpoint, gan, dtrain_here, *missing)
    file.symlink_to(file.with_name("elsewhere"))
    file.with_name("elsewhere").write_bytes(whole)
    if name != "manifest.json":
        assert_refused(checkpoint, gan, dtrain_here, str(file), "not a file of this checkpoint")


def replace_tensors(checkpoint: Path, part: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a part as somebody would who can also write the manifest."""
    file = file_of(checkpoint, part)
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)
    reseal(checkpoint, lambda manifest: manifest["files"].update({file.name: entry_of(file)}))


def entry_of(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "hash": digest_of(file, FORMAT)}


def reseal(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["checksum"]
    change(manifest)
    (checkpoint / "manifest.json").write_bytes(sealed(manifest))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda manifest: manifest.update(format=3), "has format 3; this dtrain reads formats 1 and 2"),
        (lambda manifest: manifest.pop("files"), "manifest.json"),
        (lambda manifest: manifest.update(files=[]), "manifest.json"),
        (lambda manifest: manifest["files"].pop("state.json"), "lacks state.json"),
        (lambda manifest: manifest["files"].update({"../x": {"size": 0, "hash": ""}}), "not a file of this"),
        (lambda manifest: manifest["files"]["state.json"].pop("hash"), "manifest.json"),
    ],
    ids=["later format", "no files", "files of another form", "no state", "file elsewhere", "no hash"],
)
def test_a_sealed_but_strange_manifest_is_refused(
    checkpoint: Path, gan: Path, dtrain_here: Here, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    reseal(checkpoint, change)
    assert_refused(checkpoint, gan, dtrain_here, words)


def test_a_manifest_that_does_not_list_the_tensors_is_refused(
    checkpoint: Path, gan: Path, dtrain_here: Here
) -> None:
    replace_tensors(checkpoint, "models", lambda tensors: tensors.pop("generator/0.bias"))
    said = dtrain_here("run", gan, "--runs", checkpoint.parents[3])
    assert (said.code, said.errors.count("\n")) == (2, 1)
    assert "manifest.json lists models/generator/0.bias, which is in no file" in said.errors


def test_the_checkpoint_of_another_recipe_is_refused(
    checkpoint: Path, classifier: Path, gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    wider = "models.discriminator.layers[0].out=5"
    cases = [
        (classifier, [], "missing classifier/0.bias"),
        (gan, [wider], "discriminator/0.bias is (4,), not (5,)"),
        (
            gan,
            ['optimizers.generator.kind="sgd"'],
            "optimizers.generator was adam when it was saved and is sgd",
        ),
        (
            gan,
            ["averages.discriminator.decay=0.9"],
            "averages do not fit the recipe: missing discriminator/0",
        ),
    ]
    for recipe, overrides, words in cases:
        before = listing(checkpoint)
        said = dtrain_here("run", recipe, *overrides, "--runs", tmp_path / "new", "--resume", checkpoint)
        assert (said.code, said.errors.count("\n")) == (2, 1), said.errors
        assert str(checkpoint) in said.errors
        assert words in said.errors
        assert listing(checkpoint) == before


def test_a_folder_that_was_renamed_is_refused_everywhere(
    checkpoint: Path, gan: Path, dtrain_here: Here
) -> None:
    renamed = checkpoint.rename(checkpoint.with_name("step-00000007"))
    runs = renamed.parents[3]
    for command in (
        ["run", gan, "--runs", runs, "--once"],
        ["inspect", renamed],
        ["verify", renamed],
        ["evaluate", renamed],
    ):
        said = dtrain_here(*command)
        assert said.code == 2, command
        assert "and its folder is of another" in said.out + said.errors, command
    with pytest.raises(CheckpointError, match="its folder is of another"):
        dtrain.load_models(renamed)


def test_a_checkpoint_of_another_run_is_not_carried_on(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    for runs, seed in (("own", 0), ("other", 7)):
        assert dtrain_here("run", gan, "--runs", tmp_path / runs, f"seed={seed}").code == 0
    own, other = (checkpoints_in(only_run(tmp_path / runs))[-1] for runs in ("own", "other"))
    shutil.rmtree(own)
    shutil.copytree(other, own)
    for more in (["--once"], ["--resume", own]):
        said = dtrain_here("run", gan, "--runs", tmp_path / "own", "seed=0", *more)
        assert said.code == 2
        assert f"{own} is of another recipe than its run" in said.errors


@pytest.mark.parametrize(("before", "after"), [("fp32", "fp64"), ("fp64", "fp32")])
@pytest.mark.parametrize(
    "optimizer",
    [
        'kind = "sgd"\nlr = 1e-3\nmomentum = 0.9',
        'kind = "muon"\nlr = 1e-3\nothers = { lr = 1e-3 }',
        *(f'kind = "{kind}"\nlr = 1e-3' for kind in ("adam", "adafactor", "rmsprop", "lion")),
        *(f'kind = "torch.optim:{kind}"\nlr = 1e-3' for kind in ("NAdam", "RAdam", "Adagrad", "ASGD")),
    ],
    ids=lambda text: text.split('"')[1],
)
def test_another_precision_takes_up_the_state_of_optimizers(
    gan: Path, tmp_path: Path, dtrain_here: Here, before: str, after: str, optimizer: str
) -> None:
    head, _, rest = gan.read_text().partition("[optimizers")
    tail = rest[rest.index("\n[data]") :]
    own = f'[optimizers."*"]\n{optimizer}\n'
    gan.write_text(head + own + tail)
    said = dtrain_here("run", gan, "--runs", tmp_path / "runs", f"train.precision={before}")
    assert said.code == 0, said.errors
    more = ["train.steps=12", f"train.precision={after}", "--resume", only_run(tmp_path / "runs")]
    said = dtrain_here("run", gan, "--runs", tmp_path / "more", *more)
    assert said.code == 0, said.errors
    kinds = {tensor.dtype for tensor in load_optimizers(only_run(tmp_path / "more")).values() if tensor.dim()}
    assert kinds == {{"fp32": torch.float32, "fp64": torch.float64}[after]}


def load_optimizers(run: Path) -> dict[str, torch.Tensor]:
    (file,) = checkpoints_in(run)[-1].glob("optimizers-*.safetensors")
    return safetensors.torch.load_file(file)


def test_a_mistake_that_one_rank_finds_is_said_once_on_two(gan: Path, tmp_path: Path) -> None:
    run = cut_off(gan, tmp_path / "runs", 2)
    file = file_of(checkpoints_in(run)[-1], "optimizers")
    file.write_bytes(file.read_bytes()[:-1])
    lives = start_two("run", gan, "--runs", tmp_path / "runs", log=tmp_path / "log")
    assert [life.end() for life in lives] == [2, 2]
    assert [life.said for life in lives] == [
        f"dtrain: {file} was cut short or altered: {file.stat().st_size} bytes, "
        f"not {file.stat().st_size + 1}\n",
        "",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_said(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    (tmp_path / "runs").mkdir(mode=0o500)
    said = dtrain_here("run", gan, "--runs", tmp_path / "runs")
    assert (said.code, said.errors.count("\n")) == (2, 1)
    assert "cannot be made" in said.errors


def test_a_file_in_the_place_of_a_folder_is_said(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    (tmp_path / "runs").write_text("")
    said = dtrain_here("run", gan, "--runs", tmp_path / "runs")
    assert (said.code, said.errors.count("\n")) == (2, 1)
    assert str(tmp_path / "runs") in said.errors
    run = cut_off(gan, tmp_path / "more", 2)
    (run / "samples").write_text("")  # where pictures would go
    said = dtrain_here("run", gan, "--runs", tmp_path / "more")
    assert (said.code, said.errors.count("\n")) == (2, 1)
    assert f"{run}/samples/step-00000008-generator.png cannot be written" in said.errors


# --- which checkpoints stay, and who writes what ---


@pytest.mark.parametrize(("newest", "mode"), [(1, "min"), (2, "max"), (10, "min")])
def test_the_newest_and_the_best_checkpoints_stay(gan: Path, tmp_path: Path, newest: int, mode: str) -> None:
    overrides = [f"checkpoint.keep={newest}", f'checkpoint.mode="{mode}"', "every.evaluate=2"]
    losses: dict[int, float] = {}
    with dtrain.setup(dtrain.load(gan, overrides), runs=tmp_path / "runs") as run:
        for event in dtrain.train(run):
            if isinstance(event, Evaluated):
                losses[event.step] = event.metrics["evaluate/loss"]
    best = (min if mode == "min" else max)(losses, key=lambda step: losses[step])
    kept = sorted({best, *sorted(losses)[-newest:]})
    assert [path.name for path in checkpoints_in(run.folder)] == [f"step-{step:08d}" for step in kept]
    assert open_checkpoint(checkpoints_in(run.folder)[-1]).state["best"]["at"] == [best, losses[best]]


def test_the_best_so_far_is_remembered_over_a_resume(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    command = ["run", gan, "checkpoint.keep=1", "every.evaluate=2"]
    assert dtrain_here(*command, "--runs", tmp_path / "alone").code == 0
    cut_off(gan, tmp_path / "runs", 4, *map(str, command[2:]))
    assert dtrain_here(*command, "--runs", tmp_path / "runs").code == 0
    kept = [[path.name for path in checkpoints_in(only_run(tmp_path / each))] for each in ("alone", "runs")]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_the_ranks_share_the_writing_evenly(world: int) -> None:
    sizes = {f"model/{n}": 4 * (n * n % 37 + 1) for n in range(50)}
    owners = assign(sizes, world)
    loads = [sum(sizes[name] for name, owner in owners.items() if owner == rank) for rank in range(world)]
    assert owners.keys() == sizes.keys()
    assert max(loads) - min(loads) <= max(sizes.values())
    assert assign(dict(reversed(sizes.items())), world) == owners  # the same on every rank


@pytest.mark.parametrize("path", ["mine:Net", "torch.nn:Linear"])
def test_models_of_a_checkpoint_are_imported_from_trusted_packages_alone(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "mine.py").write_text("import torch\nclass Net(torch.nn.Linear):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    np.savez(tmp_path / "features.npz", image=np.zeros((20, 4), np.float32), label=np.arange(20) % 3)
    before, _, after = classifier.read_text().partition("input = [1, 8, 8]")
    model = f'kind = "{path}"\nin_features = 4\nout_features = 3\n'
    text = before + model + after[after.index("\n[optimizers") :]
    classifier.write_text(text.replace("pictures.npz", "features.npz"))
    run = cut_off(classifier, tmp_path / "runs", 2)
    if path == "mine:Net":
        monkeypatch.delitem(sys.modules, "mine")
        with pytest.raises(DtrainError, match="'mine:Net' is not in a trusted package"):
            dtrain.load_models(run)
        assert "mine" not in sys.modules
    model = dtrain.load_models(run, trust=("mine",))["classifier"]
    assert model(torch.zeros(2, 4)).shape == (2, 3)
    raw = safetensors.torch.load_file(file_of(checkpoints_in(run)[-1], "models"))
    assert torch.equal(model.weight, raw["classifier/weight"])
