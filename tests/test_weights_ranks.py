"""Two processes that begin with the weights of a file train as one does, whole or in parts."""

from pathlib import Path

import numpy as np
import pytest
from conftest import metrics_of, only_run, start, start_two
from test_weights import recipe as recipe  # a fixture

pytestmark = pytest.mark.alone
SHORT = ("train.epochs=1", 'train.precision="fp64"', "models.classifier.layers[5].rate=0.0")


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_train_as_one(recipe: Path, engine: str) -> None:
    scale = recipe.with_name("scale.toml")
    scale.write_text(f'[engine]\nkind = "{engine}"\n')
    runs = [recipe.parent / name for name in ("one", "two")]
    commands = [("run", recipe, "--runs", folder, *SHORT) for folder in runs]
    alone = start(*commands[0], log=recipe.parent / "one.log")
    assert alone.end() == 0, alone.said
    both = start_two(*commands[1], "--scale", scale, log=recipe.parent / "two.log")
    assert [life.end() for life in both] == [0, 0], both[0].said
    assert "classifier: 9 of 9 tensors from" in both[0].said
    assert "tensors from" not in both[1].said
    one, two = (metrics_of(only_run(folder)) for folder in runs)
    for (step, ours), (other, theirs) in zip(one, two, strict=True):
        assert (step, ours.keys()) == (other, theirs.keys())
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-9)
