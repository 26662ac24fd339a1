"""What reaches the trainer is the same however it is fetched, and nothing stays behind."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import psutil
import pytest

from dtrain.data.loader import Loader, evaluation_batches
from dtrain.data.order import Order, Sweep
from dtrain.errors import DataError
from dtrain.spec.keys import generator


@dataclass
class Noise:
    """Examples that are random in all that they may be random in; some cannot be read."""

    workers: int
    seconds: float = 0.0
    unreadable: int = -1
    defective: int = -1
    fields: dict = field(default_factory=dict)

    def __len__(self):
        return 50

    def fetch(self, indices, epoch):
        time.sleep(self.seconds)
        if self.unreadable in indices:
            raise DataError(f"example {self.unreadable} cannot be read; mend it")
        if self.defective in indices:
            raise ZeroDivisionError("a defect")
        noise = [generator(0, "example", epoch, int(index)).standard_normal((3, 5)) for index in indices]
        return {
            "noise": np.stack(noise).astype(np.float32),
            "index": np.array(indices),
            "odd": indices % 2 == 1,
        }


ORDER = Order(examples=50, batch_size=12, micro_batch_size=5, seed=1)


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for (micro, batch), (other, expected) in zip(ours, theirs, strict=True):
        assert (micro.number, micro.epoch, micro.idle) == (other.number, other.epoch, other.idle)
        assert batch.keys() == expected.keys()
        for name, values in batch.items():
            assert values.dtype == expected[name].dtype
            np.testing.assert_array_equal(values, expected[name])
    return True


def children():
    """The data workers that this process started, and no other test's processes."""
    workers = {child.pid for child in active_children() if child.name == "dtrain data worker"}
    return [child for child in psutil.Process().children() if child.pid in workers]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_workers_change_nothing(workers, rank, world):
    with Loader(Noise(0), ORDER, rank, world) as inline, Loader(Noise(workers), ORDER, rank, world) as loader:
        assert all(same(loader.load(update), inline.load(update)) for update in range(12))


@pytest.mark.parametrize("workers", [0, 2])
def test_updates_may_be_asked_for_in_any_order(workers):
    with Loader(Noise(0), ORDER, 0, 1) as inline, Loader(Noise(workers), ORDER, 0, 1) as loader:
        assert all(
            same(loader.load(update), inline.load(update)) for update in (7, 8, 3, 3, 4, 0, 1000, 1001)
        )


def test_more_micro_batches_than_are_asked_for_ahead_are_loaded():
    order = Order(examples=50, batch_size=50, micro_batch_size=1, seed=0)
    with Loader(Noise(0), order, 0, 1) as inline, Loader(Noise(1), order, 0, 1) as loader:
        assert all(same(loader.load(update), inline.load(update)) for update in range(4))


def test_arrays_of_workers_can_be_kept_and_written():
    with Loader(Noise(2), ORDER, 0, 1) as loader:
        kept = [batch for update in range(5) for _, batch in loader.load(update)]
        copies = [batch["noise"].copy() for batch in kept]
        loader.load(5)
    for batch, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(batch["noise"], copy)
        batch["noise"] += 1


def test_loading_goes_on_while_the_trainer_computes():
    order = Order(examples=50, batch_size=10, micro_batch_size=5, seed=0)
    with Loader(Noise(2, seconds=0.3), order, 0, 1) as loader:
        loader.load(0)
        waited = 0.0
        for update in range(1, 4):
            time.sleep(0.6)  # twice what two workers need for the two micro-batches of an update
            start = time.perf_counter()
            loader.load(update)
            waited += time.perf_counter() - start
    assert waited < 0.45  # 0.9 without loading ahead


@pytest.mark.parametrize(
    ("workers", "rank", "world"), [(0, 0, 1), (0, 0, 3), (0, 2, 3), (2, 0, 1), (2, 2, 3)]
)
def test_evaluation_sees_every_example_once(workers, rank, world):
    with Loader(Noise(workers), Sweep(50, 8), rank, world) as loader:
        first, second = list(evaluation_batches(loader)), list(evaluation_batches(loader))
    assert same(first, second)
    assert len(first) == -(-7 // world)
    expected = [
        index for number in range(rank, 7, world) for index in range(number * 8, min(number * 8 + 8, 50))
    ]
    assert [index for micro, batch in first if not micro.idle for index in batch["index"]] == expected


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_unreadable_example_is_the_same_error_and_the_rest_still_loads(workers):
    sweep = Sweep(50, 5)
    with (
        Loader(Noise(0), sweep, 0, 1) as inline,
        Loader(Noise(workers, unreadable=12), sweep, 0, 1) as loader,
    ):
        assert same(loader.load(1), inline.load(1))
        with pytest.raises(DataError, match=r"^example 12 cannot be read; mend it$"):
            loader.load(2)
        assert same(loader.load(3), inline.load(3))


def test_a_defect_in_a_worker_comes_with_its_traceback():
    with (
        Loader(Noise(1, defective=12), Sweep(50, 50), 0, 1) as loader,
        pytest.raises(DataError, match=r"(?s)in fetch.*ZeroDivisionError: a defect"),
    ):
        loader.load(0)


def test_a_killed_worker_is_an_error_that_says_so():
    with Loader(Noise(2), ORDER, 0, 1) as loader:
        loader.load(0)
        children()[0].kill()
        with pytest.raises(DataError, match="a data worker was killed by SIGKILL"):
            list(map(loader.load, range(1, 20)))


def test_signals_to_the_whole_group_are_the_trainers_to_answer():
    with Loader(Noise(0), ORDER, 0, 1) as inline, Loader(Noise(2), ORDER, 0, 1) as loader:
        loader.load(0)
        for child in children():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                child.send_signal(number)
        assert all(same(loader.load(update), inline.load(update)) for update in range(1, 12))


def test_examples_that_cannot_be_sent_are_an_error():
    examples = Noise(2, fields={"image": lambda: None})
    with (
        pytest.raises(DataError, match=r"cannot be sent to workers .*; set workers = 0"),
        Loader(examples, ORDER, 0, 1),
    ):
        pass


def test_closing_leaves_no_process_and_no_open_file():
    with Loader(Noise(2), ORDER, 0, 1) as loader:
        loader.load(0)
    before = set(os.listdir("/proc/self/fd"))
    with Loader(Noise(2, seconds=30), ORDER, 0, 1):
        pass
    with Loader(Noise(3), ORDER, 0, 1) as loader:
        for update in range(5):
            loader.load(update)
    del loader
    assert children() == []
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_killing_the_trainer_leaves_no_worker(seconds):
    program = (
        "import time; from test_loader import Loader, Noise, ORDER\n"
        f"with Loader(Noise(2, seconds={seconds}), ORDER, 0, 1) as loader:\n"
        "    if not loader.examples.seconds: loader.load(0)\n"
        "    else: [worker.ask(ORDER.share(0, 0, 1)[0].indices, 0) for worker in loader._workers]\n"
        "    print('loaded', flush=True)\n"
        "    time.sleep(60)"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    trainer = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
    )
    with trainer:
        assert trainer.stdout.readline() == b"loaded\n"
        time.sleep(1.0 if seconds else 0.0)  # until the workers are at it
        offspring = psutil.Process(trainer.pid).children(recursive=True)
        assert len(offspring) >= 2
        trainer.kill()
    _, alive = psutil.wait_procs(offspring, timeout=10)
    assert alive == []
