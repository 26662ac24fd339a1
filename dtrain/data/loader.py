"""The batches of each update, fetched in the trainer or ahead of it by worker processes."""

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice

from dtrain.data.order import MicroBatch, Shares
from dtrain.data.source import Batch, Examples
from dtrain.data.worker import Worker
from dtrain.errors import DataError

Loaded = list[tuple[MicroBatch, Batch]]

# Questions to one worker: so many that it never waits for the next, and so few that all answers
# fit into its pipe unread, as it must go on to take questions while the trainer puts them.
BUSY, CROWDED = 2, 32


class Loader:
    """One rank's batches; a `with` resource, whose end ends its workers.

    The arrays are the same, to the bit, for any number of workers.
    """

    def __init__(self, examples: Examples, order: Shares, rank: int, world: int):
        self.examples, self._order, self._rank, self._world = examples, order, rank, world
        self._workers: list[Worker] = []
        self._resources = ExitStack()
        self._asked: deque[Worker] = deque()  # one for each question that is not yet answered
        self._coming: Iterator[MicroBatch] = iter(())  # what to ask next
        self._turns: Iterator[Worker] = iter(())
        self._next_update = -1

    def __enter__(self) -> "Loader":
        with ExitStack() as stack:
            workers = range(self.examples.workers)
            self._workers = [stack.enter_context(Worker(self.examples)) for _ in workers]
            self._resources = stack.pop_all()
        self._turns = cycle(self._workers)
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def load(self, update: int) -> Loaded:
        """This rank's micro-batches of one update; cheapest when updates are asked for in turn.

        Raises DataError, on this rank alone, if an example cannot be read or a worker died.
        """
        try:
            return self._load(update)
        except DataError as error:
            error.is_shared = False
            raise

    def _load(self, update: int) -> Loaded:
        share = self._order.share(update, self._rank, self._world)
        if not self._workers:
            fetch = self.examples.fetch
            return [(micro, fetch(micro.indices, micro.epoch)) for micro in share]
        if update != self._next_update:
            self._seek(update)
        self._next_update = -1  # until all went well
        # This update and all of the next: so that no time is lost where loading is the cheaper half.
        ahead = min(max(2 * len(share), BUSY * len(self._workers)), CROWDED * len(self._workers))
        loaded = []
        for micro in share:
            self._ask(ahead)
            loaded.append((micro, self._asked.popleft().answer()))
        self._ask(ahead)
        self._next_update = update + 1
        return loaded

    def _ask(self, ahead: int) -> None:
        for micro in islice(self._coming, max(0, ahead - len(self._asked))):
            worker = next(self._turns)
            worker.ask(micro.indices, micro.epoch)
            self._asked.append(worker)

    def _seek(self, update: int) -> None:
        while self._asked:
            try:
                self._asked.popleft().answer()
            except DataError:  # nobody wants it any more; a worker's death shows again at once
                continue
        self._coming = self._from(update)

    def _from(self, update: int) -> Iterator[MicroBatch]:
        while share := self._order.share(update, self._rank, self._world):
            yield from share
            update += 1


def evaluation_batches(loader: Loader) -> Iterator[tuple[MicroBatch, Batch]]:
    """This rank's part of one sweep (`order.Sweep`): as many batches as every other rank has."""
    update = 0
    while loaded := loader.load(update):
        yield from loaded
        update += 1
