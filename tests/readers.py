"""All who read a checkpoint tried on one, whatever was done to it."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dtrain
from dtrain.backends.torch_weights import tensors_of
from dtrain.checkpoint.tensor_files import bytes_of
from dtrain.checkpoint.verify import verify
from dtrain.errors import CheckpointError, DtrainError, RecipeError
from dtrain.format.checkpoints import chosen, glance_at, open_checkpoint
from dtrain.format.files import PARTS, hash_of

SECONDS = 30  # after which a reader hangs
LONGEST = 3000  # characters of a message


class Hangs(BaseException):
    """No error of a file, which a reader would put into words."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise Hangs in whatever hangs."""

    def ring(*_: Any) -> None:
        raise Hangs(f"still there after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tried(read: Callable[[], Any], path: Path) -> Any:
    """What a reader gives, or its error: one clear CheckpointError, or RecipeError, that names the place."""
    with within(SECONDS):
        try:
            return read()
        except (CheckpointError, RecipeError) as error:
            refusal, said = error, str(error)
    assert str(path) in said or str(path.parent.parent) in said, said
    assert len(said) < LONGEST, f"{len(said)} letters: {said[:LONGEST]}"
    return refusal


def read_in_all_ways(checkpoint: Path) -> str:
    """Try every reader on a checkpoint, see that they agree, and that what loads is what the manifest lists.

    "whole", "refused", or "a recipe that cannot be built".
    """
    run = checkpoint.parent.parent
    found = tried(lambda: open_checkpoint(checkpoint, hashes=True), checkpoint)
    quick = tried(lambda: open_checkpoint(checkpoint, hashes=False), checkpoint)
    glanced = tried(lambda: glance_at(checkpoint), checkpoint)
    tried(lambda: chosen(run), checkpoint)
    with within(SECONDS):
        report = verify(checkpoint)
    assert not (isinstance(found, DtrainError) and report.is_whole), (found, report)
    assert not (isinstance(glanced, DtrainError) and report.is_whole), (glanced, report)
    assert not (isinstance(quick, DtrainError) and not isinstance(found, DtrainError)), (quick, found)
    loaded = tried(lambda: dtrain.load_models(checkpoint, verify=True), checkpoint)
    if isinstance(found, DtrainError):
        assert isinstance(loaded, CheckpointError), loaded
        if not isinstance(quick, DtrainError):
            tried(lambda: dtrain.load_models(checkpoint, verify=False), checkpoint)
        return "refused"
    parts = {part: tried(lambda part=part: tensors_of(found, part), checkpoint) for part in PARTS}
    held = {f"{part}/{name}": tensor for part, own in parts.items() for name, tensor in own.items()}
    listed = found.manifest["tensors"]
    assert {name: hash_of(bytes_of(tensor), found.format) for name, tensor in held.items()} == listed
    if isinstance(loaded, DtrainError):
        assert not report.is_whole or isinstance(loaded, RecipeError), (loaded, report)
        return "refused" if isinstance(loaded, CheckpointError) else "a recipe that cannot be built"
    for model, module in loaded.items():
        for name, value in module.state_dict().items():
            own = held.get(f"averages/{model}/{name}", held[f"models/{model}/{name}"])
            assert bytes_of(value) == bytes_of(own), f"{model}/{name}"
    return "whole" if report.is_whole else "refused"
