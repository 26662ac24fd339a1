"""Folders of pictures: real files, made here."""

import itertools

import numpy as np
import pytest
from describing import opened, refused
from PIL import Image

from dtrain.data.images import Images
from dtrain.data.loader import Loader, evaluation_batches
from dtrain.data.order import Order, Sweep
from dtrain.errors import DataError, RecipeErrors
from dtrain.spec.decode import decoded

RANDOM = np.random.Generator(np.random.PCG64(0))


def draw(path, height=12, width=10, *, pixels=None, **settings):
    """Write a picture, by default of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = RANDOM.integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return path


@pytest.fixture
def animals(tmp_path):
    for label, number in itertools.product(("cat", "ant", "bee"), range(20)):
        draw(tmp_path / label / f"{number:02}.{('png', 'jpg')[number % 2]}")
    return tmp_path


def fetch(path, indices=(0,), *, epoch=0, seed=0, part="train", **settings):
    source = Images(path=path, **{"size": 8, "evaluate_fraction": 0.0} | settings)
    return opened(source, part, seed).fetch(np.array(indices), epoch)


def test_a_picture_of_the_right_size_comes_through_unchanged(tmp_path):
    pixels = RANDOM.integers(0, 256, (8, 6, 3), np.uint8)
    draw(tmp_path / "cat" / "a.png", pixels=pixels)
    batch = fetch(tmp_path, size=(8, 6), range=(0.0, 255.0))
    np.testing.assert_allclose(batch["image"][0], pixels.transpose(2, 0, 1), atol=1e-4)
    np.testing.assert_array_equal(batch["label"], [0])


def test_classes_are_numbered_by_name(animals):
    examples = opened(Images(path=animals, size=8, evaluate_fraction=0.0))
    assert examples.classes == ("ant", "bee", "cat")
    np.testing.assert_array_equal(examples.fetch(np.arange(60), 0)["label"], np.repeat([0, 1, 2], 20))
    assert examples.fields["image"] == ((3, 8, 8), "float32", None, (-1.0, 1.0))
    assert examples.fields["label"] == ((), "int64", 3, None)


@pytest.mark.parametrize(("height", "width"), [(40, 20), (20, 40), (5, 9), (7, 7)])
@pytest.mark.parametrize("size", [8, (6, 10)])
@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_picture_gets_the_size_asked_for(tmp_path, height, width, size, crop, channels):
    draw(tmp_path / "cat" / "a.png", height, width)
    batch = fetch(tmp_path, size=size, crop=crop, channels=channels)
    assert batch["image"].shape == (1, channels, *(size if isinstance(size, tuple) else (size, size)))
    assert -1 <= batch["image"].min() <= batch["image"].max() <= 1


def test_the_centre_is_what_evaluation_sees(tmp_path):
    pixels = RANDOM.integers(0, 256, (8, 20, 3), np.uint8)
    draw(tmp_path / "train" / "cat" / "a.png", pixels=pixels)
    draw(tmp_path / "test" / "cat" / "a.png", pixels=pixels)
    seen = fetch(tmp_path, part="evaluate", crop="random", padding=3, flip=True, range=(0.0, 255.0))["image"][
        0
    ]
    np.testing.assert_allclose(seen, pixels[:, 6:14].transpose(2, 0, 1), atol=1e-4)


def test_random_crops_are_pieces_of_the_padded_picture(tmp_path):
    pixels = RANDOM.integers(1, 256, (8, 8, 3), np.uint8)
    draw(tmp_path / "cat" / "a.png", pixels=pixels)
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), (0, 1)).reshape(-1, 3, 8, 8)
    seen = set()
    for epoch in range(200):
        crop = fetch(tmp_path, epoch=epoch, crop="random", padding=2, range=(0.0, 255.0))["image"][0]
        matches = np.flatnonzero((np.rint(crop) == windows).all((1, 2, 3)))
        assert len(matches) == 1
        seen.add(int(matches[0]))
    assert len(seen) == 25


def test_half_of_the_pictures_are_mirrored(animals):
    plain, flipped = (fetch(animals, range(60), flip=flip)["image"] for flip in (False, True))
    mirrored = [np.array_equal(ours[:, :, ::-1], theirs) for ours, theirs in zip(flipped, plain, strict=True)]
    assert all(m or np.array_equal(o, t) for m, o, t in zip(mirrored, flipped, plain, strict=True))
    assert 15 < sum(mirrored) < 45


def test_augmentation_depends_on_seed_epoch_and_index_alone(animals):
    settings = {"crop": "random", "padding": 4, "flip": True}
    in_turn = fetch(animals, range(60), epoch=3, **settings)["image"]
    shuffled = RANDOM.permutation(60)
    np.testing.assert_array_equal(fetch(animals, shuffled, epoch=3, **settings)["image"], in_turn[shuffled])
    assert not np.array_equal(fetch(animals, range(60), epoch=4, **settings)["image"], in_turn)
    assert not np.array_equal(fetch(animals, range(60), epoch=3, seed=1, **settings)["image"], in_turn)


def test_workers_change_no_pixel(animals):
    order = Order(examples=60, batch_size=24, micro_batch_size=7, seed=2)
    found = []
    for workers in (0, 1, 2):
        source = Images(
            path=animals, size=8, evaluate_fraction=0.0, crop="random", flip=True, workers=workers
        )
        with Loader(source.open("train", 5), order, 0, 1) as loader:
            found.append([batch["image"] for update in range(6) for _, batch in loader.load(update)])
    for ours, theirs, others in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(ours, others)


def test_every_picture_is_in_one_part_and_new_ones_move_none(animals):
    def parts():
        source = Images(path=animals, size=8, evaluate_fraction=0.3)
        return [
            set(opened(source, part, seed)._names)
            for part, seed in (("train", 0), ("evaluate", 0), ("train", 1))
        ]

    train, evaluate, other_seed = parts()
    assert train | evaluate == {path.relative_to(animals).as_posix() for path in animals.glob("*/*")}
    assert not train & evaluate
    assert train == other_seed
    assert 8 <= len(evaluate) <= 28
    for number in range(20, 40):
        draw(animals / "bee" / f"{number}.png")
    more_train, more_evaluate, _ = parts()
    assert train < more_train
    assert evaluate < more_evaluate


def test_train_and_test_folders_are_the_parts(tmp_path):
    for label in "ab":
        draw(tmp_path / "train" / label / "1.png")
    draw(tmp_path / "test" / "b" / "deeper" / "2.png")
    (tmp_path / "test" / "b" / "notes.txt").write_text("no picture")
    examples = opened(Images(path=tmp_path, size=8, workers=0), "evaluate")
    with Loader(examples, Sweep(len(examples), 4), 0, 1) as loader:
        (batch,) = [batch for _, batch in evaluation_batches(loader)]
    np.testing.assert_array_equal(batch["label"], [1])


def test_pictures_are_turned_upright(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees clockwise, so that left becomes top
    draw(tmp_path / "cat" / "a.png", pixels=pixels, exif=exif)
    image = fetch(tmp_path)["image"][0]
    assert (image[:, :4] == 1).all()
    assert (image[:, 4:] == -1).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_8_bit_mode_is_read(tmp_path, mode, channels):
    (tmp_path / "cat").mkdir()
    path = tmp_path / "cat" / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (8, 8), "white").convert(mode).save(path)
    np.testing.assert_allclose(
        fetch(tmp_path, channels=channels)["image"], np.ones((1, channels, 8, 8)), atol=0.02
    )


def test_a_transparent_palette_is_read(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (8, 8), "white").convert("P").save(tmp_path / "cat" / "a.png", transparency=b"\0" * 256)
    assert fetch(tmp_path)["image"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(("workers", "name"), [(0, "cat/b.png"), (0, "cat/b.jpg"), (1, "cat/b.jpg")])
def test_a_broken_picture_is_named(tmp_path, workers, name):
    draw(tmp_path / "cat" / "a.png")
    path = draw(tmp_path / name, 64, 64)
    examples = Images(path=tmp_path, size=8, evaluate_fraction=0.0, workers=workers).open("train", 0)
    for broken in (path.read_bytes()[:700], b"nonsense", b""):
        path.write_bytes(broken)
        with (
            Loader(examples, Sweep(2, 2), 0, 1) as loader,
            pytest.raises(DataError, match=f"{path} cannot be read as a picture .*; mend or remove it"),
        ):
            loader.load(0)


def test_a_16_bit_picture_is_refused_rather_than_clipped(tmp_path):
    draw(tmp_path / "cat" / "a.png", pixels=np.full((8, 8), 30000, np.uint16))
    with pytest.raises(DataError, match="its pixels are not 8-bit but I;16"):
        fetch(tmp_path)


def test_folders_that_will_not_do_are_named(tmp_path):
    def refuses(message, part="train", path=None):
        source = Images(path=path or tmp_path, size=8, evaluate_fraction=0.0)
        assert str(tmp_path) in refused(source, message, part)

    refuses("holds no class folders")
    (tmp_path / "train").mkdir()
    refuses("has a folder train/ but no test/")
    (tmp_path / "test").mkdir()
    refuses("train holds no class folders")
    (tmp_path / "train" / "cat").mkdir()
    refuses("cat holds no picture .*; fill it or remove it")
    draw(tmp_path / "train" / "cat" / "a.png")
    draw(tmp_path / "test" / "dog" / "a.png")
    refuses("has classes that train/ lacks: dog", part="evaluate")
    refuses("is not a folder", path=tmp_path / "nothing")
    refuses("an evaluate_fraction of 0.0 leaves no picture for evaluate", "evaluate", tmp_path / "train")


def test_the_table_is_checked():
    assert decoded(Images, {"path": "a", "size": [8, 6]}).size == (8, 6)
    for wrong in ({"size": 0}, {"channels": 2}, {"padding": 2}, {"evaluate_fraction": 2.0}, {"workers": -1}):
        with pytest.raises(RecipeErrors):
            decoded(Images, {"path": "a", "size": 8} | wrong)
