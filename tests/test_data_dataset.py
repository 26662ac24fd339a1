"""Datasets of PyTorch's kind, given by import path."""

import importlib

import numpy as np
import pytest
from describing import opened as opened_as_described

from dtrain.data.arrays import Arrays
from dtrain.data.loader import Loader, evaluation_batches
from dtrain.data.opening import describe, open_examples, open_imported
from dtrain.data.order import Order, Sweep
from dtrain.data.source import Description, Field
from dtrain.errors import DataError, RecipeError
from dtrain.spec.table import Imported

MODULE = '''
import random
import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from dtrain.data.array_examples import ArrayExamples
from dtrain.data.source import Source
from dtrain.spec.table import kind, table

constant = 3

def squares(count, sign=1):
    numbers = torch.arange(count, dtype=torch.float32)
    return TensorDataset(numbers[:, None], sign * numbers.long() ** 2)

class Items(Dataset):
    """Gives the items that it is told to, by name."""
    KINDS = {
        "table": lambda i: {"x": np.full((2,), i), "y": i},
        "single": lambda i: torch.full((2,), i, dtype=torch.bfloat16),
        "numbers": lambda i: (0.5 * i, True),
        "grey": lambda i: (picture(i, "L"), i),
        "rgb": lambda i: (picture(i, "RGB"), i),
        "palette": lambda i: (picture(i, "P"), i),
        "last": lambda i: (np.full((4, 5, 3), i, np.uint8), i),
        "first": lambda i: (torch.full((3, 4, 5), i, dtype=torch.uint8), i),
        "random": lambda i: (torch.rand(2), np.array([random.random(), np.random.rand()])),
        "ragged": lambda i: (np.zeros(3 + i // 2), i),
        "changing": lambda i: {"x": 1} if i < 2 else {"x": 1, "z": 2},
        "text": lambda i: ("word", i),
        "lists": lambda i: ([[1], [2, 3]], i),
        "failing": lambda i: (1 // (3 - i), i),
    }
    def __init__(self, kind, count=6):
        self.kind, self.count = kind, count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        return self.KINDS[self.kind](index)

class Stream(IterableDataset):
    def __iter__(self):
        return iter(())

def picture(value, mode):
    from PIL import Image
    return Image.new("RGB", (5, 4), (value, value, value)).convert(mode)

def failing():
    raise FileNotFoundError("no such folder: data")

def unsendable():
    dataset = Items("table")
    dataset.transform = lambda value: value
    return dataset

@table
class Ramp(Source):
    count: int
    def open(self, part, seed):
        return ArrayExamples({"x": np.arange(self.count)}, (0.0, 1.0))
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "user_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def opened(name, part="train", *, seed=0, examples=None, **arguments):
    return open_imported(
        Imported(
            path=f"user_data:{name}", arguments=arguments | {"examples": {"workers": 0} | (examples or {})}
        ),
        part,
        seed,
    )


def fetch(name, indices=(0, 1), **settings):
    return opened("Items", kind=name, **settings).fetch(np.array(indices), 0)


def test_a_tensor_dataset_serves_both_parts():
    reading = {"fields": ["number", "square"], "evaluate": {"count": 4, "sign": -1}}
    train = opened("squares", count=10, examples=reading)
    evaluate = opened("squares", "evaluate", count=10, examples=reading)
    assert (len(train), len(evaluate)) == (10, 4)
    assert train.fields == {
        "number": Field((1,), "float32"),
        "square": Field((), "int64"),
    }
    np.testing.assert_array_equal(train.fetch(np.array([3, 2]), 0)["square"], [9, 4])
    np.testing.assert_array_equal(evaluate.fetch(np.array([3, 2]), 0)["square"], [-9, -4])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("table", {"x": Field((2,), "int64"), "y": Field((), "int64")}),
        ("numbers", {"image": Field((), "float32"), "label": Field((), "int64")}),
        ("grey", {"image": Field((1, 4, 5), "float32", range=(-1.0, 1.0)), "label": Field((), "int64")}),
        ("rgb", {"image": Field((3, 4, 5), "float32", range=(-1.0, 1.0)), "label": Field((), "int64")}),
        ("last", {"image": Field((3, 4, 5), "float32", range=(-1.0, 1.0)), "label": Field((), "int64")}),
    ],
)
def test_items_become_numbers(name, expected):
    assert opened("Items", kind=name).fields == expected
    for field, values in fetch(name).items():
        assert (values.shape[1:], str(values.dtype)) == expected[field][:2]


def test_single_values_need_one_name():
    batch = fetch("single", examples={"fields": ["x"]})
    assert batch["x"].dtype == np.float32
    np.testing.assert_array_equal(batch["x"], [[0, 0], [1, 1]])
    with pytest.raises(DataError, match=r"1 values, data.examples.fields has 2 names \(image, label\)"):
        fetch("single")


def test_pictures_are_those_of_arrays_wherever_their_channels_are(tmp_path):
    np.savez(
        tmp_path / "data.npz",
        image=np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(3, 3).repeat(5, 2),
    )
    expected = (
        Arrays(path=tmp_path / "data.npz").open("train", 0).fetch(np.arange(6), 0)["image"][:, :, :1, :1]
    )
    for name, channels in (("last", "last"), ("first", "first"), ("rgb", "last"), ("rgb", "first")):
        found = fetch(name, range(6), examples={"channels": channels})["image"]
        np.testing.assert_array_equal(found, np.broadcast_to(expected, (6, 3, 4, 5)))


def test_randomness_in_items_depends_on_seed_epoch_and_index_alone():
    examples = opened("Items", kind="random")
    in_turn = examples.fetch(np.arange(6), 2)
    assert len(np.unique(in_turn["label"])) == 12
    shuffled = examples.fetch(np.array([4, 0, 5]), 2)
    for name in ("image", "label"):
        np.testing.assert_array_equal(shuffled[name], in_turn[name][[4, 0, 5]])
        assert not np.array_equal(examples.fetch(np.arange(6), 3)[name], in_turn[name])
        assert not np.array_equal(
            opened("Items", kind="random", seed=1).fetch(np.arange(6), 2)[name], in_turn[name]
        )


def test_workers_change_nothing():
    found = []
    for workers in (0, 2):
        examples = opened("Items", kind="random", examples={"workers": workers})
        with Loader(examples, Order(6, 4, 2, seed=0), 0, 1) as loader:
            found.append([batch for update in range(4) for _, batch in loader.load(update)])
    for ours, theirs in zip(*found, strict=True):
        for name in ("image", "label"):
            np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_users_own_source_is_opened_like_a_built_in_one():
    ramp = Imported(path="user_data:Ramp", arguments={"count": 5})
    examples = open_examples(ramp, "evaluate", 0)
    assert describe(ramp, "evaluate", 0) == Description(5, examples.fields)
    with Loader(examples, Sweep(len(examples), 2), 0, 1) as loader:
        found = [batch["x"].tolist() for _, batch in evaluation_batches(loader)]
    assert found == [[0, 1], [2, 3], [4]]
    with pytest.raises(RecipeError, match=r'data\.count: found "many"; a whole number would do'):
        open_examples(Imported(path="user_data:Ramp", arguments={"count": "many"}), "train", 0)


def test_a_users_own_source_is_described_by_opening_it():
    opened_as_described(importlib.import_module("user_data").Ramp(count=5))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ragged", r"field 'image' has shape \(3,\) in example 0 and \(4,\) in example 3; crop or pad"),
        ("changing", "examples 0 and 3 have different fields: x and x, z"),
        ("text", "example 0 of train: field 'image' holds <U4, not floats"),
        ("lists", "example 0 of train: .*inhomogeneous"),
        ("palette", "example 0 of train: field 'image' is a picture of mode P; convert it to L or RGB"),
        ("failing", "user_data:Items failed at example 3 of train: ZeroDivisionError"),
    ],
)
def test_items_that_will_not_do_are_named(name, message):
    with pytest.raises(DataError, match=message):
        fetch(name, (0, 3))


@pytest.mark.parametrize(
    ("path", "arguments", "message"),
    [
        ("no_such_module:Items", {}, "cannot import .*no_such_module.*; is it installed?"),
        ("user_data:Itms", {}, 'cannot import .user_data:Itms.: .*; did you mean "user_data:Items"'),
        (
            "user_data:constant",
            {},
            "'user_data:constant' is of type int; a subclass of dtrain.data.source.Source",
        ),
        ("user_data:Items", {"kinds": "table"}, r"failed with arguments \(kinds\): TypeError: .*'kinds'"),
        ("user_data:Items", {"kind": "table", "count": 0}, "has no examples for train"),
        ("user_data:failing", {}, "FileNotFoundError: no such folder: data"),
        ("user_data:Stream", {}, "is not a map-style dataset: Stream lacks"),
    ],
)
def test_what_cannot_be_opened_is_named(path, arguments, message):
    with pytest.raises(DataError, match=message):
        open_imported(Imported(path=path, arguments=arguments), "train", 0)


def test_the_table_of_examples_is_checked():
    for wrong, key in (
        ({"workers": -1}, "data.examples.workers"),
        ({"fields": []}, "data.examples.fields"),
        ({"fields": ["x", "x"]}, "data.examples.fields"),
        ({"batch": 3}, "data.examples.batch"),
    ):
        with pytest.raises(RecipeError) as caught:
            opened("Items", kind="table", examples=wrong)
        assert caught.value.key == key


def test_evaluation_is_never_silently_on_training_data():
    with pytest.raises(RecipeError, match=r"data\.examples\.evaluate: says nothing"):
        opened("Items", "evaluate", kind="table")
    assert len(opened("Items", "evaluate", kind="table", examples={"evaluate": {}})) == 6


def test_a_dataset_that_cannot_be_sent_says_what_to_do():
    examples = opened("unsendable", examples={"workers": 1})
    with pytest.raises(DataError, match="set workers = 0"), Loader(examples, Sweep(6, 2), 0, 1):
        pass
