"""A run goes on with the data that it was trained on, wherever that lies; with other data only if told so."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import own_data
import pytest
from conftest import CLASSIFIER, Said, cut_off, only_run
from PIL import Image
from safetensors.numpy import save_file
from test_imports import TEXT

import dtrain
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.data import identity
from dtrain.data.arrays import Arrays
from dtrain.data.dataset import Reading
from dtrain.data.dataset_examples import DatasetExamples
from dtrain.data.identity import differences, fingerprint
from dtrain.data.images import Images
from dtrain.data.source import Filed, Source, Stretch
from dtrain.errors import DataError
from dtrain.format.files import MANIFEST, STATE, canonical, hash_of, sealed
from dtrain.spec.table import KINDS

Here = Callable[..., Said]

FROM_ARRAYS = 'kind = "arrays"\npath = "pictures.npz"\n'
FROM_NUMBERS = (
    'kind = "own_data:{}"\npath = "FOLDER/data/numbers.npz"\n'  # its own affair: from where it is run
)
READING = "examples = { workers = 0, evaluate = {} }\n"
DATA: Mapping[str, str] = {
    "arrays": 'kind = "arrays"\npath = "data/pictures.npz"\n',
    "images": 'kind = "images"\npath = "data/pictures"\nsize = 8\nchannels = 1\nworkers = 0\n',
    "own_data:Numbers": FROM_NUMBERS.format("Numbers") + READING,
    "own_data:Unsteady": FROM_NUMBERS.format("Unsteady") + READING,
    "own_data:Own": FROM_NUMBERS.format("Own"),
}


def recipe_on(kind: str, folder: Path) -> Path:
    """A recipe of four steps, saved after each other, and its data in a folder beside it."""
    data = folder / "data"
    data.mkdir()
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (26, 8, 8), np.uint8)
    labels = np.arange(26) % 3
    split = {"train_image": images[:20], "train_label": labels[:20]}
    np.savez(data / "pictures.npz", **split, test_image=images[20:], test_label=labels[20:])
    np.savez(data / "numbers.npz", image=np.float32(images[:20, None] / 255), label=labels[:20])
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = data / "pictures" / ("train" if number < 20 else "test") / "abc"[label] / f"{number:02}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    (data / "text.txt").write_bytes(bytes(random.integers(97, 123, 400).tolist()))
    recipe = folder / "recipe.toml"
    text = TEXT.replace("text.toml", "data/text.txt").replace("steps = 1", "steps = 4")
    text += '[every]\nsave = 2\nevaluate = 2\n[track]\nkinds = ["jsonl"]\n'
    assert FROM_ARRAYS in CLASSIFIER
    recipe.write_text(
        text if kind == "text" else CLASSIFIER.replace(FROM_ARRAYS, DATA[kind].replace("FOLDER", str(folder)))
    )
    return recipe


def flip(name: str, place: int) -> Callable[[Path], None]:
    """One bit of a file."""

    def change(data: Path) -> None:
        content = bytearray((data / name).read_bytes())
        content[place] ^= 1
        (data / name).write_bytes(content)

    return change


def alter(name: str, array: str) -> Callable[[Path], None]:
    """One bit of an array in an .npz file."""

    def change(data: Path) -> None:
        with np.load(data / name) as file:
            arrays = dict(file)
        arrays[array].reshape(-1).view(np.uint8)[0] ^= 1  # the lowest
        np.savez(data / name, **arrays)

    return change


def drop(name: str) -> Callable[[Path], None]:
    """One row of each array in an .npz file that is of training."""

    def change(data: Path) -> None:
        with np.load(data / name) as file:
            arrays = {each: file[each][1:] if each.startswith("train") else file[each] for each in file}
        np.savez(data / name, **arrays)

    return change


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda data: (data / old).rename(data / new)


@dataclass(frozen=True)
class Case:
    """Data that becomes other data, and what is said of it."""

    name: str
    kind: str
    change: Callable[[Path], object]
    said: str


OTHER_VALUES = "has examples of other values, for which its arguments and the recipe's seed count, too"
OTHER_FILES = "has files that were added, removed, renamed or have another size"
PICTURE = "pictures/train/a/00.bmp"
CASES = [
    Case("array", "arrays", alter("pictures.npz", "train_image"), "training has other contents"),
    Case("label", "arrays", alter("pictures.npz", "train_label"), "training has other contents"),
    Case("evaluated array", "arrays", alter("pictures.npz", "test_image"), "evaluation has other contents"),
    Case("fewer rows", "arrays", drop("pictures.npz"), "training has 19 examples, and there were 20"),
    Case("picture", "images", flip(PICTURE, -1), "training has other contents"),
    Case("evaluated picture", "images", flip("pictures/test/c/20.bmp", -1), "evaluation has other contents"),
    Case("renamed", "images", rename(PICTURE, "pictures/train/a/01.bmp"), f"training {OTHER_FILES}"),
    Case("other class", "images", rename(PICTURE, "pictures/train/b/00.bmp"), f"training {OTHER_FILES}"),
    Case("text", "text", flip("text.txt", 0), "training has other contents"),
    Case("evaluated text", "text", flip("text.txt", -1), "evaluation has other contents"),
    Case("dataset", "own_data:Numbers", alter("numbers.npz", "image"), f"training {OTHER_VALUES}"),
    Case("source", "own_data:Own", alter("numbers.npz", "image"), f"training {OTHER_VALUES}"),
]


def test_every_kind_of_data_has_a_case() -> None:
    assert KINDS[Source].keys() <= {case.kind for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_other_data_is_refused_in_words_and_taken_where_it_is_accepted(
    tmp_path: Path, dtrain_here: Here, case: Case
) -> None:
    recipe = recipe_on(case.kind, tmp_path)
    run = cut_off(recipe, tmp_path / "runs", 2)
    case.change(tmp_path / "data")
    refused = dtrain_here("run", recipe, "--runs", tmp_path / "runs")
    assert refused.code == 2
    (line,) = (line for line in refused.errors.splitlines() if "dtrain: " in line)
    assert f"step-00000002 was trained on other data: the data of {case.said}" in line
    assert line.endswith("; --accept-data goes on with what there is now, --fresh begins anew")
    assert [path.name for path in checkpoints_in(run)] == ["step-00000002"]

    accepted = dtrain_here("run", recipe, "--runs", tmp_path / "runs", "--accept-data")
    assert accepted.code == 0, accepted.errors
    assert f"step-00000002; {case.said}" in accepted.out
    last = open_checkpoint(checkpoints_in(only_run(tmp_path / "runs"))[-1])
    assert last.state["data"]["since"] == (2 if "training" in case.said else 0)


@pytest.mark.parametrize("kind", [*DATA, "text"])
def test_the_same_data_in_another_folder_is_the_same(tmp_path: Path, dtrain_here: Here, kind: str) -> None:
    recipe = recipe_on(kind, tmp_path)
    run = cut_off(recipe, tmp_path / "runs", 2)
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    shutil.rmtree(tmp_path / "data")
    moved = recipe.with_name("moved.toml")
    moved.write_text(recipe.read_text().replace("data/", "moved/"))
    gone_on = dtrain_here("run", moved, "--runs", tmp_path / "more", "--resume", run)
    assert gone_on.code == 0, gone_on.errors
    assert "step-00000002\n" in gone_on.out


def test_examples_of_another_shape_are_refused_though_they_are_accepted(
    tmp_path: Path, dtrain_here: Here
) -> None:
    recipe = recipe_on("text", tmp_path)
    cut_off(recipe, tmp_path / "runs", 2)
    longer = ["data.length=8", "models.language_model.input=[8]"]
    found = dtrain_here("run", recipe, *longer, "--resume", only_run(tmp_path / "runs"), "--accept-data")
    assert found.code == 2
    assert (
        "was trained on examples of shapes next_token (4,), token (4,), weight (4,), and they have token (8,)"
        in found.errors
    )


def test_a_checkpoint_from_before_there_were_fingerprints_goes_on(tmp_path: Path, dtrain_here: Here) -> None:
    recipe = recipe_on("arrays", tmp_path)
    checkpoint = checkpoints_in(cut_off(recipe, tmp_path / "runs", 2))[-1]
    state = json.loads((checkpoint / STATE).read_bytes())
    state["data"] = {name: state["data"][name] for name in ("examples", "fields")}
    manifest = json.loads((checkpoint / MANIFEST).read_bytes())
    del manifest["checksum"]
    text = canonical(state)
    manifest["files"][STATE] = {"size": len(text), "hash": hash_of(text)}
    (checkpoint / STATE).write_bytes(text)
    (checkpoint / MANIFEST).write_bytes(sealed(manifest))
    alter("pictures.npz", "train_image")(tmp_path / "data")  # which it cannot tell
    found = dtrain_here("run", recipe, "train.epochs=3", "--runs", tmp_path / "more", "--resume", checkpoint)
    assert found.code == 0, found.errors
    drop("pictures.npz")(tmp_path / "data")
    found = dtrain_here("run", recipe, "--runs", tmp_path / "runs")
    assert found.code == 2
    assert "training has 19 examples, and there were 20" in found.errors


def test_python_accepts_other_data_too(tmp_path: Path, on_cpu: None) -> None:
    recipe = recipe_on("arrays", tmp_path)
    cut_off(recipe, tmp_path / "runs", 2)
    alter("pictures.npz", "train_image")(tmp_path / "data")
    with pytest.raises(DataError, match="training has other contents"):
        dtrain.setup(dtrain.load(recipe), runs=tmp_path / "runs")
    with dtrain.setup(dtrain.load(recipe), runs=tmp_path / "runs", accept_data=True) as run:
        assert run.step == 2


def of_numbers(
    folder: Path, *, name: str = "Numbers", seed: int = 0, noise: float = 0.0
) -> identity.Fingerprint:
    dataset = getattr(own_data, name)(str(folder / "data/numbers.npz"), noise)
    return fingerprint(DatasetExamples(dataset, Reading(workers=0), name=name, part="train", seed=seed))


def test_what_is_drawn_in_examples_is_a_function_of_the_seed(tmp_path: Path) -> None:
    recipe_on("own_data:Numbers", tmp_path)
    assert of_numbers(tmp_path, noise=0.1) == of_numbers(tmp_path, noise=0.1)
    assert of_numbers(tmp_path, noise=0.1) != of_numbers(tmp_path, noise=0.1, seed=1)
    assert of_numbers(tmp_path) == of_numbers(tmp_path, seed=1)
    assert of_numbers(tmp_path, name="Unsteady") == {"examples": 20}  # all that can be said of it


def test_how_arrays_are_stored_does_not_matter(tmp_path: Path) -> None:
    recipe_on("arrays", tmp_path)
    with np.load(tmp_path / "data/pictures.npz") as file:
        arrays = dict(file)
    np.savez_compressed(tmp_path / "small.npz", **arrays)
    save_file(arrays, tmp_path / "same.safetensors")
    stored = [tmp_path / "data/pictures.npz", tmp_path / "small.npz", tmp_path / "same.safetensors"]
    first, *others = (fingerprint(Arrays(path=path).open("train", 0)) for path in stored)
    assert others == [first] * 2


class Files(Filed):
    """Examples in some files, of which nothing else is asked."""

    def __init__(self, *paths: Path):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def files(self) -> list[Stretch]:
        return [Stretch(path.name, path, 0, path.stat().st_size) for path in self.paths]


def between(then: identity.Fingerprint, now: identity.Fingerprint) -> str:
    return differences({"train": then}, {"train": now}).get("train", "")


def touch(path: Path, seconds: int) -> None:
    os.utime(path, (seconds, seconds))


def write_at(path: Path, place: int, text: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(text)
    touch(path, 1)


def test_of_a_file_that_is_too_large_size_time_and_a_sample_count(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, identity.MOST_BYTES + 1)  # all zero, and without a block on the disk
    touch(large, 1)
    first = fingerprint(Files(large))
    assert first == fingerprint(Files(large))
    touch(large, 2)
    assert between(first, fingerprint(Files(large))).startswith("files of other times, though")
    for place in (0, identity.MOST_BYTES):
        write_at(large, place, b"x")
        assert between(first, fingerprint(Files(large))) == "other contents"
        write_at(large, place, b"\0")
        assert between(first, fingerprint(Files(large))) == ""
    os.truncate(large, identity.MOST_BYTES + 2)
    assert "another size" in between(first, fingerprint(Files(large)))


def test_of_too_many_files_names_sizes_times_and_a_sample_count(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:05}" for number in range(identity.MOST_FILES + 1)]
    for path in paths:
        path.write_bytes(b"picture")
        touch(path, 1)
    first = fingerprint(Files(*paths))
    touch(paths[7], 2)
    assert between(first, fingerprint(Files(*paths))).startswith("files of other times, though")
    touch(paths[7], 1)
    write_at(paths[-1], 6, b"x")
    assert between(first, fingerprint(Files(*paths))) == "other contents"
    write_at(paths[-1], 6, b"e")
    paths[7] = paths[7].rename(tmp_path / "00007b")
    assert "renamed" in between(first, fingerprint(Files(*paths)))


def bytes_read() -> int:
    """By this process, from files, since it began."""
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar"))
    return int(line.split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what was read")
@pytest.mark.parametrize("size", [1 << 26, 1 << 33], ids=["64 MB", "8 GB"])
def test_a_file_is_read_once_and_a_large_one_in_part(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, size)
    before = bytes_read()
    fingerprint(Files(path))
    assert bytes_read() - before < min(size, identity.SAMPLED * identity.PIECE) + (1 << 20)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    recipe_on("images", tmp_path)
    examples = Images(path=tmp_path / "data/pictures", size=8, workers=0).open("train", 0)
    lost = tmp_path / "data/pictures/train/a/00.bmp"
    lost.unlink()
    with pytest.raises(DataError, match=f"{lost} cannot be read"):
        fingerprint(examples)
