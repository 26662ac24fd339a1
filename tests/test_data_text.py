"""Texts in windows: every byte of evaluation once, another cut in every epoch."""

from pathlib import Path

import numpy as np
import pytest
from describing import opened, refused

from dtrain.data.text import Text
from dtrain.errors import RecipeErrors
from dtrain.spec.decode import decoded

AUSTEN = Path(__file__).parents[1] / "recipes/data/austen-eval.txt"
LETTERS = bytes(range(1, 126)) * 8


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """1,000 bytes, each of which says where it is, but for the round."""
    path = tmp_path / "text.txt"
    path.write_bytes(LETTERS)
    return path


def test_next_tokens_are_the_tokens_one_place_ahead(text: Path) -> None:
    source = Text(path=text, evaluate=text, length=7)
    for part in ("train", "evaluate"):
        examples = opened(source, part)
        batch = examples.fetch(np.arange(len(examples)), 3)
        np.testing.assert_array_equal(batch["token"][:, 1:], batch["next_token"][:, :-1])
        before, after = batch["token"][:, 0], batch["next_token"][:, 0]
        np.testing.assert_array_equal(np.where(before == 125, 0, before)[1:] + 1, after[1:])
    assert (before[0], after[0]) == (0, 1)  # nothing stands before the first


@pytest.mark.parametrize("length", [1, 2, 7, 100, 500])
def test_windows_of_training_lie_side_by_side_wherever_they_begin(text: Path, length: int) -> None:
    examples = opened(Text(path=text, evaluate=text, length=length))
    for epoch in range(5):
        batch = examples.fetch(np.arange(len(examples)), epoch)
        assert (batch["weight"] == 1).all()
        said = batch["next_token"].astype(np.uint8).tobytes()
        assert said in LETTERS
        assert len(said) > len(LETTERS) - 2 * length


def test_the_cut_is_a_function_of_seed_and_epoch(text: Path) -> None:
    source = Text(path=text, evaluate=text, length=50)

    def first(seed: int, epoch: int) -> int:
        return int(source.open("train", seed).fetch(np.array([0]), epoch)["next_token"][0, 0])

    assert len({first(0, epoch) for epoch in range(40)}) > 20
    assert len({first(seed, 0) for seed in range(40)}) > 20
    assert [first(3, epoch) for epoch in range(9)] == [first(3, epoch) for epoch in range(9)]


def test_windows_are_fetched_in_any_order(text: Path) -> None:
    for part in ("train", "evaluate"):
        examples = opened(Text(path=text, length=8), part)
        whole = examples.fetch(np.arange(len(examples)), 2)
        some = examples.fetch(np.array([3, 0, 3]), 2)
        for name, values in whole.items():
            np.testing.assert_array_equal(values[[3, 0, 3]], some[name])


@pytest.mark.parametrize(
    ("length", "context"),
    [
        (length, context)
        for length in (1, 2, 7, 64, 999, 1000, 1001, 3000)
        for context in (None, 0, 1, 5)
        if context is None or context < length
    ],
)
def test_evaluation_counts_every_byte_once_after_its_context(
    text: Path, length: int, context: int | None
) -> None:
    source = Text(path=text, evaluate=text, length=length, context=context)
    examples = opened(source, "evaluate")
    batch = examples.fetch(np.arange(len(examples)), 0)
    counted = batch["weight"].astype(bool)
    assert batch["next_token"][counted].astype(np.uint8).tobytes() == LETTERS
    least = length // 2 if context is None else context
    assert not counted[1:, :least].any()


def test_the_end_of_the_text_is_held_out_where_there_is_no_other(text: Path) -> None:
    source = Text(path=text, evaluate=0.2, length=10)
    train, evaluation = opened(source), opened(source, "evaluate")
    for epoch in range(20):
        seen = train.fetch(np.arange(len(train)), epoch)["next_token"].astype(np.uint8).tobytes()
        assert seen in LETTERS[:800]
    batch = evaluation.fetch(np.arange(len(evaluation)), 0)
    held_out = batch["next_token"][batch["weight"] > 0].astype(np.uint8).tobytes()
    assert held_out == LETTERS[800:]
    assert batch["token"][0, 0] == 0


def test_what_was_read_is_spelt_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Anne — née Elliot — said: “Ж”", encoding="utf-8")
    tokens = Text(path=path, length=4).open("train", 0)
    assert tokens.decode(np.frombuffer(path.read_bytes(), np.uint8).astype(np.int64)) == path.read_text()
    assert tokens.decode(np.array([0, 65])) == "A"  # 0 stands before a text
    assert tokens.decode(np.array([65, 200, 66])) == "A\N{REPLACEMENT CHARACTER}B"


def test_weights_add_up_to_the_characters_of_the_part(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    written = "Anne — née Elliot — said: “Ж” " * 20
    path.write_text(written, encoding="utf-8")
    examples = opened(Text(path=path, evaluate=path, length=32), "evaluate")
    batch = examples.fetch(np.arange(len(examples)), 0)
    assert batch["weight"].sum(dtype=np.float64) == pytest.approx(len(written), rel=1e-6)
    assert (batch["weight"] > 0).sum() == len(written.encode())


def test_austen_is_counted_to_the_letter() -> None:
    examples = opened(Text(path=AUSTEN, evaluate=AUSTEN, length=128), "evaluate")
    batch = examples.fetch(np.arange(len(examples)), 0)
    assert batch["weight"].sum() == 200_000
    assert batch["next_token"][batch["weight"] > 0].max() < 128  # ASCII: a byte is a character


def test_texts_that_will_not_do_are_refused(tmp_path: Path, text: Path) -> None:
    refused(Text(path=tmp_path / "no.txt", length=4), r"no\.txt does not exist")
    refused(Text(path=tmp_path, length=4), "is not a file")
    refused(Text(path=text, evaluate=tmp_path / "no.txt", length=4), "no.txt does not exist", "evaluate")
    said = "has 1000 bytes for train, but windows of 501 need 1001; a longer text or a shorter data.length"
    refused(Text(path=text, evaluate=text, length=501), said)
    refused(Text(path=text, evaluate=0.0, length=5), "has 0 bytes for evaluate", "evaluate")
    refused(Text(path=text, evaluate=1.0, length=5), "has 0 bytes for train")


def test_a_context_that_leaves_nothing_is_refused(text: Path) -> None:
    with pytest.raises(RecipeErrors, match="5 leaves nothing of a window of 5"):
        decoded(Text, {"path": str(text), "length": 5, "context": 5})
