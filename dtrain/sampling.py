"""Samples: what a system draws, written to files that a person can look at."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dtrain.data.source import Examples, Spelling
from dtrain.engines.together import agreed
from dtrain.errors import DtrainError
from dtrain.events import Sampled
from dtrain.pictures import save_grid
from dtrain.run import Run

RULE = "\n\n" + 40 * "-" + "\n\n"  # between one text and the next


def sample(run: Run) -> Iterator[Sampled]:
    """Draw the system's samples and write each as a grid of pictures or as a file of texts."""
    run.position.long("drawing samples")
    source = run.loader if run.evaluation is None else run.evaluation.loader
    _, batch = source.load(0)[0]
    drawn = run.engine.run(run.system.samples, batch, key=(run.recipe.seed, "sample"))
    stem = f"{run.folder}/samples/step-{run.step:08d}"
    pictures = {name: Path(f"{stem}-{name}.png") for name, values in drawn.items() if values.ndim in (3, 4)}
    texts = {name: Path(f"{stem}-{name}.txt") for name, values in drawn.items() if values.ndim == 2}
    low, high = source.examples.range

    def write() -> None:
        for name, path in (pictures | texts).items() if run.engine.rank == 0 else ():
            try:
                path.parent.mkdir(exist_ok=True)
                if name in pictures:
                    save_grid(_array(drawn[name].float()), path, low=low, high=high)
                else:
                    save_texts(spelt(_array(drawn[name]), source.examples), path)
            except OSError as error:
                raise DtrainError(f"{path} cannot be written: {error}") from None

    agreed(run.engine, write)
    if pictures or texts:
        yield Sampled(run.step, pictures, texts)


def spelt(tokens: np.ndarray, examples: Examples) -> list[str]:
    """The text of each row of tokens (N, length); their numbers, where nobody says how to read them."""
    if isinstance(examples, Spelling):
        return [examples.decode(row) for row in tokens]
    return [" ".join(map(str, row)) for row in tokens.tolist()]


def save_texts(texts: list[str], path: Path) -> None:
    """Write texts one below the other. The file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(RULE.join(texts) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _array(values: Any) -> np.ndarray:
    found: np.ndarray = values.detach().cpu().numpy()
    return found
