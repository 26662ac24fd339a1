"""torch.compile of losses and of blocks: the same noise, and numbers that differ by rounding alone.

`aot_eager` traces and derives as every backend does, and computes what torch would: with it no bit differs.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GAN, last_tensors, only_run, start_two, written
from torch._dynamo.utils import counters

import dtrain
from dtrain.errors import DtrainError
from dtrain.events import Stepped
from dtrain.scale.tables import DDP, FSDP, Activations, Compile, Parallel, Scale

pytestmark = [
    pytest.mark.alone,
    # torch's own, while it compiles
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
LOSSES = Compile(what="losses", backend="aot_eager")
BLOCKS = Compile(what="blocks", backend="aot_eager")
PLAIN = ("every.save=0", "every.evaluate=0", "checkpoint.best=${unset}", "checkpoint.mode=${unset}")

TRANSFORMER = """\
name = "tiny-transformer"

[system]
kind = "language_model"

[models.language_model]
input = [16]
layers = [
    { kind = "embedding", size = 256, out = 8 },
    { kind = "repeat", times = 3, layers = [
        { kind = "residual", layers = [{ kind = "layer_norm" }, { kind = "attention", heads = 2 }] },
        { kind = "dropout", rate = 0.1 },
    ] },
    { kind = "linear", out = 256 },
]

[optimizers.language_model]
kind = "adamw"
lr = 1e-2

[data]
kind = "text"
path = "text.txt"
length = 16

[train]
steps = 6
batch_size = 8
micro_batch_size = 4

[every]
log = 1
save = 0
evaluate = 0

[track]
kinds = ["jsonl"]
"""

COMPOSED = (
    GAN.partition("[system]")[0]
    + """
[system]
kind = "composed"

[[system.phases]]
updates = ["discriminator"]
values.fake = "detach(generator(normal(4)))"
losses.real = "softplus(-discriminator(image))"
losses.fake = "softplus(discriminator(fake))"

[[system.phases]]
updates = ["generator"]
losses.fake.of = "softplus(-discriminator(generator(normal(4))))"
losses.fake.schedule = { kind = "linear" }

[models.generator]
"""
    + GAN.partition("[models.generator]")[2]
)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Nothing compiled before, and every compilation counted."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def transformer(tmp_path: Path, on_cpu: None) -> Path:
    """A transformer of three blocks alike, with dropout."""
    (tmp_path / "text.txt").write_text("It is a truth universally acknowledged, that " * 40)
    (tmp_path / "transformer.toml").write_text(TRANSFORMER)
    return tmp_path / "transformer.toml"


def trained(recipe: Path, scale: Scale, *overrides: str) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The tensors of a run in this process, and its metrics but for the speed."""
    with dtrain.setup(
        dtrain.load(recipe, overrides), runs=recipe.parent / "runs", fresh=True, scale=scale
    ) as run:
        steps = [event.metrics for event in dtrain.train(run) if isinstance(event, Stepped)]
        tensors = {f"{part}/{name}": tensor.clone() for part, name, tensor in run.engine.tensors()}
    return tensors, [{key: step[key] for key in step.keys() - {"examples_per_second"}} for step in steps]


def assert_alike(one: Any, other: Any, relative: float = 0.0) -> None:
    """The same tensors and metrics, but for so much."""
    torch.testing.assert_close(one, other, rtol=relative, atol=relative)


@pytest.mark.parametrize(("precision", "relative"), [("fp32", 0.0), ("bf16", 1e-2)])
def test_compiled_losses_draw_note_and_step_as_others_do(gan: Path, precision: str, relative: float) -> None:
    said = (*PLAIN, f'train.precision="{precision}"')
    assert_alike(trained(gan, Scale(compile=LOSSES), *said), trained(gan, Scale(), *said), relative)
    assert (counters["stats"]["unique_graphs"], dict(counters["graph_break"])) == (
        2,
        {},
    )  # one for each phase


def test_the_last_batch_of_an_epoch_is_compiled_once_more_and_no_other(classifier: Path) -> None:
    said = ("train.micro_batch_size=8", "train.epochs=4", "every.save=0", "every.evaluate=0")
    assert_alike(trained(classifier, Scale(compile=LOSSES), *said), trained(classifier, Scale(), *said))
    assert counters["stats"]["unique_graphs"] == 2  # for 8 examples, and for any number


def test_weights_of_losses_that_change_every_step_are_not_compiled_every_step(
    tmp_path: Path, on_cpu: None
) -> None:
    recipe = written(tmp_path, "composed.toml", COMPOSED)
    assert_alike(trained(recipe, Scale(compile=LOSSES), *PLAIN), trained(recipe, Scale(), *PLAIN))
    assert counters["stats"]["unique_graphs"] <= 6


def test_a_phase_with_a_slope_in_its_loss_stays_as_it_is_and_says_so_once(gan: Path) -> None:
    said = (*PLAIN, 'system.loss="wasserstein"')
    with pytest.warns(UserWarning, match="discriminator: a slope inside its loss") as warned:
        compiled = trained(gan, Scale(compile=LOSSES), *said)
    assert len(warned) == 1
    assert_alike(compiled, trained(gan, Scale(), *said))
    assert counters["stats"]["unique_graphs"] >= 1  # of the generator


@pytest.mark.parametrize("engine", [DDP(), FSDP()], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("anew", [None, Activations()], ids=["", "computed anew"])
def test_blocks_alike_are_compiled_once(
    transformer: Path, engine: Parallel, anew: Activations | None
) -> None:
    scale = Scale(engine=engine, compile=BLOCKS, activation_checkpointing=anew)
    assert_alike(trained(transformer, scale), trained(transformer, Scale(engine=engine)))
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.skipif("DTRAIN_TEST_LONG" not in os.environ, reason="compiles for a minute")
def test_inductor_differs_by_rounding_alone(classifier: Path) -> None:
    said = ("every.save=0", "every.evaluate=0", 'train.precision="fp64"')
    compiled = trained(classifier, Scale(compile=Compile(what="losses")), *said)
    # 2e-9 were measured, of a bias without slope, whose noise Adam makes large; in fp32 1e-7 of a loss.
    assert_alike(compiled, trained(classifier, Scale(), *said), 1e-7)


@pytest.mark.parametrize(
    ("recipe", "what"), [("transformer", "losses"), ("transformer", "blocks"), ("gan", "losses")]
)
def test_two_ranks_compile(request: pytest.FixtureRequest, recipe: str, what: str) -> None:
    found = []
    given: Path = request.getfixturevalue(recipe)
    for scale in ("", f'[compile]\nwhat = "{what}"\nbackend = "aot_eager"\n'):
        path = given.parent / f"scale-{bool(scale)}.toml"
        path.write_text(scale)
        runs = given.parent / f"runs-{bool(scale)}"
        ranks = start_two("run", given, "--scale", path, "--runs", runs, log=runs.with_suffix(".log"))
        assert [rank.end(300) for rank in ranks] == [0, 0], ranks[0].said + ranks[1].said
        found.append(last_tensors(only_run(runs)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Compile(what="losses", backend="aot_egaer"), "there is no 'aot_egaer'; torch has .*aot_eager"),
        (Compile(what="losses"), "needs a C.. compiler on a CPU; apt-get install g.."),
        (Compile(what="blocks", backend="eager"), "no model is made of repeated blocks"),
    ],
)
def test_what_is_not_there_is_refused_before_training(gan: Path, options: Compile, said: str) -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nonexistent/g++",)}),
        pytest.raises(DtrainError, match=said),
    ):
        trained(gan, Scale(compile=options))
