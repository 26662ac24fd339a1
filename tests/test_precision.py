"""Precision: fp16's scale of losses, models that keep fp32, and what devices lack."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import Said, cut_off, start_world, written
from torch import Tensor, nn

import dtrain
from dtrain import Loss, Ops, Phase, System
from dtrain.backends.torch_weights import tensors_of
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint
from dtrain.engines.loss_scale import PERIOD, LossScale
from dtrain.engines.precision import check_precision, set_products
from dtrain.errors import RecipeError, RecipeErrors
from dtrain.systems.base import Batch, Models

Here = Callable[..., Said]
Weights = dict[str, Tensor]
STEPS = 30
SCALES = {
    "ddp": "",
    "fsdp": 'engine = { kind = "fsdp" }',
    "zero": 'engine = { kind = "zero", stage = 3, persistence_threshold = 0 }',
}
TWO_MODELS = f"""\
name = "two-models"

[system]
kind = "composed"

[[system.phases]]
updates = ["encoder", "decoder"]
losses.rebuilt = "mse(decoder(encoder(image)), image)"

[models.encoder]
input = [1, 8, 8]
layers = [
    {{ kind = "flatten" }},
    {{ kind = "linear", out = 16 }},
    {{ kind = "activation", function = "tanh" }},
]

[models.decoder]
input = [16]
layers = [{{ kind = "linear", out = 64 }}, {{ kind = "reshape", shape = [1, 8, 8] }}]

[optimizers."*"]
kind = "sgd"
lr = 0.2
momentum = 0.9

[data]
kind = "arrays"
path = "pictures.npz"

[train]
steps = {STEPS}
batch_size = 8
micro_batch_size = 4
precision = "bf16"

[track]
kinds = []
"""
STEEP = f"""\
name = "steep"
system = {{ kind = "classifier" }}
models.classifier = {{ kind = "test_precision:Steep" }}
optimizers.classifier = {{ kind = "sgd", lr = 1e-4, momentum = 0.9 }}
data = {{ kind = "arrays", path = "pictures.npz" }}
train = {{ steps = {STEPS}, batch_size = 8, micro_batch_size = 4, precision = "fp16" }}
every = {{ save = 4 }}
track = {{ kinds = [] }}
"""
WATCHED = """\
name = "watched"
system = { kind = "test_precision:Watched" }
models.watching = { kind = "test_precision:Watching" }
optimizers.watching = { kind = "sgd", lr = 1e-2 }
data = { kind = "arrays", path = "pictures.npz" }
train = { steps = 2, batch_size = 8, precision = "bf16" }
track = { kinds = [] }
"""


class Steep(nn.Module):
    """Of its weight the last row alone has gradients that overflow: it is in the second of two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 64))

    def forward(self, x: Tensor) -> Tensor:
        logits = F.linear(x.flatten(1), self.weight).float()
        return logits * torch.tensor([1.0, 1.0, 1.0, 300.0])


class Watching(nn.Module):
    """Notes the type that it computes in, and where it was called."""

    place = ""
    seen: ClassVar[set[tuple[str, torch.dtype]]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x.flatten(1))
        self.seen.add((Watching.place, out.dtype))
        return out


@dataclass(frozen=True)
class Watched(System):
    """Calls its model wherever a system may, with an input in half."""

    def phases(self) -> Sequence[Phase]:
        return (Phase(("watching",), self.loss, prepare=self.prepare),)

    def call(self, place: str, models: Models, batch: Batch) -> Any:
        Watching.place = place
        return models.watching(batch["image"].bfloat16())

    def prepare(self, models: Models, batch: Batch, ops: Ops) -> Batch:
        self.call("prepare", models, batch)
        return batch

    def loss(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        return Loss(ops.cross_entropy(self.call("loss", models, batch), batch["label"]))

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Mapping[str, Any]:
        return {"loss": ops.cross_entropy(self.call("evaluate", models, batch), batch["label"])}


def models_of(run: dtrain.Run) -> Weights:
    return {name: value.clone() for part, name, value in run.engine.tensors() if part == "models"}


def trained(recipe: Path, *overrides: str) -> tuple[Weights, list[Tensor], Weights]:
    """Train in this process: first weights, the pictures of each micro-batch, last weights."""
    with dtrain.setup(dtrain.load(recipe, overrides), runs=recipe.parent / "runs", fresh=True) as run:
        first = models_of(run)
        shares = [run.loader.load(update) for update in range(STEPS)]
        pictures = [torch.from_numpy(arrays["image"]).clone() for share in shares for _, arrays in share]
        for _ in dtrain.train(run):
            pass
        return first, pictures, models_of(run)


def by_hand(first: Weights, pictures: Sequence[Tensor], full: Sequence[str]) -> Weights:
    """The same in bf16, but for those models that are called in full."""
    models = nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh()),
            "decoder": nn.Sequential(nn.Linear(16, 64), nn.Unflatten(1, (1, 8, 8))),
        }
    )
    models.load_state_dict({name.replace("/", "."): value for name, value in first.items()})
    optimizer = torch.optim.SGD(models.parameters(), lr=0.2, momentum=0.9)

    def call(name: str, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=name not in full):
            out: Tensor = models[name](x)
        return out.float()

    batches = iter(pictures)
    seen = 0
    for image in batches:
        size = min(8, 20 - seen % 20)  # of the batch: an epoch of 20 has 8, 8 and 4
        parts = [image] if size == 4 else [image, next(batches)]
        seen += size
        optimizer.zero_grad()
        for part in parts:
            loss = F.mse_loss(call("decoder", call("encoder", part)), part)
            (loss * (len(part) / size)).backward()
        optimizer.step()
    return {name.replace(".", "/", 1): value for name, value in models.state_dict().items()}


def apart(ours: Weights, theirs: Weights, first: Weights) -> float:
    """How far apart two runs ended, as a share of the way that the second has gone."""
    off = sum(float(((ours[name] - theirs[name]) ** 2).sum()) for name in theirs)
    gone = sum(float(((theirs[name] - first[name]) ** 2).sum()) for name in theirs)
    return (off / gone) ** 0.5


def on_two(recipe: Path, kind: str, *overrides: str) -> Path:
    """Train on two processes with an engine; the folder of the newest run."""
    scale = recipe.with_name(f"{kind}.toml")
    scale.write_text(SCALES[kind])
    runs, log = recipe.parent / "runs", recipe.with_name(kind)
    lives = start_world(2, "run", recipe, *overrides, "--scale", scale, "--runs", runs, log=log)
    assert [life.end() for life in lives] == [0, 0], [life.said for life in lives]
    return max(runs.glob("*/*"))


@pytest.mark.parametrize("full", [(), ("encoder",), ("decoder",), ("encoder", "decoder")])
def test_a_model_that_keeps_fp32_computes_as_in_a_loop_by_hand(
    full: Sequence[str], tmp_path: Path, on_cpu: None
) -> None:
    recipe = written(tmp_path, "two.toml", TWO_MODELS)
    first, pictures, last = trained(recipe, *(f"models.{name}.precision=fp32" for name in full))
    assert apart(last, by_hand(first, pictures, full), first) < 1e-6
    assert apart(last, by_hand(first, pictures, () if full else ("decoder",)), first) > 1e-4


@pytest.mark.parametrize("kind", SCALES)
def test_a_model_keeps_fp32_on_every_engine(kind: str, tmp_path: Path, on_cpu: None) -> None:
    recipe = written(tmp_path, "two.toml", TWO_MODELS)
    full = "models.encoder.precision=fp32", "models.decoder.precision=fp32"
    first, _, alone = trained(recipe, *full)
    found = dict(
        tensors_of(open_checkpoint(checkpoints_in(on_two(recipe, kind, *full, "--fresh"))[-1]), "models")
    )
    _, _, half = trained(recipe)
    assert apart(found, alone, first) < 1e-5
    assert apart(half, alone, first) > 1e-4


def test_a_model_that_keeps_fp32_does_so_in_training_preparation_and_evaluation(
    tmp_path: Path, on_cpu: None
) -> None:
    recipe = written(tmp_path, "watched.toml", WATCHED)
    for overrides, made in (((), torch.bfloat16), (("models.watching.precision=fp32",), torch.float32)):
        Watching.seen.clear()
        with dtrain.setup(dtrain.load(recipe, overrides), runs=tmp_path / "runs", fresh=True) as run:
            for _ in dtrain.train(run):
                pass
        assert Watching.seen == {(place, made) for place in ("prepare", "loss", "evaluate")}


def test_the_loss_scale_moves_as_torch_moves_its_own() -> None:
    ours, scaler = LossScale(), torch.amp.GradScaler("cpu")
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler.scale(weight.sum())  # it has no scale before
    overflows = {0, 1, 2, 300, 301, 2303, 4304, 4305, 4306}
    for update in range(3 * PERIOD):
        is_finite = update not in overflows
        weight.grad = torch.ones(1) if is_finite else torch.full((1,), float("inf"))
        before = weight.item()
        scaler.step(optimizer)
        scaler.update()
        assert (weight.item() != before) == is_finite
        ours.updated(is_finite=is_finite)
        assert ours.scale == scaler.get_scale(), update
    assert ours.good == scaler._get_growth_tracker()


def test_a_loss_scale_that_never_helps_is_hopeless_and_one_that_may_is_not() -> None:
    scale = LossScale()
    for _ in range(30):  # from 2**16 to 2**-14
        scale.updated(is_finite=False)
    assert not scale.is_hopeless
    scale.updated(is_finite=False)
    assert scale.is_hopeless


def test_a_loss_scale_of_torchs_own_is_taken_up_from_older_checkpoints() -> None:
    ours = LossScale()
    ours.restore({**torch.amp.GradScaler("cpu", init_scale=128.0).state_dict(), "_growth_tracker": 7})
    assert ours == LossScale(scale=128.0, good=7)


def test_fp16_trains_as_torchs_scaler_does_updates_that_overflow_left_out(
    tmp_path: Path, on_cpu: None
) -> None:
    recipe = written(tmp_path, "steep.toml", STEEP)
    with dtrain.setup(dtrain.load(recipe, ["train.micro_batch_size=8"]), runs=tmp_path / "runs") as run:
        shares = [run.loader.load(update)[0][1] for update in range(STEPS)]
        batches = [{name: torch.from_numpy(array).clone() for name, array in each.items()} for each in shares]
        for _ in dtrain.train(run):
            pass
        found, scales = models_of(run), run.engine.scalars()["loss_scales"]
    model, scaler = Steep(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(batch["image"]), batch["label"])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() < 2.0**15
    assert scales == {"classifier": {"scale": scaler.get_scale(), "good": scaler._get_growth_tracker()}}
    assert torch.equal(found["classifier/weight"], model.weight.detach())


@pytest.mark.parametrize("kind", SCALES)
def test_an_overflow_in_one_ranks_part_is_one_on_all_and_its_scale_goes_on_elsewhere(
    kind: str, tmp_path: Path, on_cpu: None
) -> None:
    recipe = written(tmp_path, "steep.toml", STEEP)
    alone = open_checkpoint(checkpoints_in(cut_off(recipe, tmp_path / "alone", 28))[-1])
    early = open_checkpoint(checkpoints_in(cut_off(recipe, tmp_path / "runs", 4))[-1])
    assert (
        early.state["loss_scales"]["classifier"]["scale"] > alone.state["loss_scales"]["classifier"]["scale"]
    )
    run = on_two(recipe, kind)  # carries on from there
    found = open_checkpoint(run / "checkpoints" / alone.path.name)
    assert found.state["loss_scales"] == alone.state["loss_scales"]
    ours, theirs = (dict(tensors_of(each, "models"))["classifier/weight"] for each in (found, alone))
    assert torch.allclose(ours, theirs, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("precision", ["tf32", "fp64"])
def test_a_model_cannot_keep_fp32_where_the_run_has_no_less(precision: str, tmp_path: Path) -> None:
    recipe = written(tmp_path, "two.toml", TWO_MODELS)
    with pytest.raises(
        RecipeErrors, match=r"models\.encoder\.precision: train\.precision = .* leave this out"
    ):
        dtrain.load(recipe, ["models.encoder.precision=fp32", f"train.precision={precision}"])


def test_tf32_is_refused_at_its_line_where_there_is_no_gpu(tmp_path: Path, dtrain_here: Here) -> None:
    recipe = written(tmp_path, "two.toml", TWO_MODELS.replace('"bf16"', '"tf32"'))
    said = dtrain_here("run", recipe, "--runs", tmp_path / "runs")
    line = TWO_MODELS.splitlines().index('precision = "bf16"') + 1
    assert said.code == 2
    assert f"two.toml:{line}:13: train.precision: the run is on the CPU, which has no tf32" in said.errors


LACKING: Mapping[str, Any] = {
    "tf32": ("cuda", "is_tf32_supported", "has no tf32, which came with NVIDIA's Ampere"),
    "bf16": ("cuda", "is_bf16_supported", 'has no bf16; "fp16" or "fp32" would do'),
    "fp64": ("mps", None, 'GPUs of Apple have no fp64; "fp32" would do'),
}


@pytest.mark.parametrize("precision", LACKING)
def test_what_a_gpu_lacks_is_refused(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, question, said = LACKING[precision]
    if question is not None:
        monkeypatch.setattr(torch.cuda, question, lambda **_: False)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(RecipeError, match=said):
        check_precision(precision, torch.device(kind))


def test_only_tf32_rounds_products_on_gpus() -> None:
    backends = torch.backends
    for precision, rounding in (("tf32", "tf32"), ("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")):
        set_products(precision)
        found = (
            backends.cuda.matmul.fp32_precision,
            backends.cudnn.conv.fp32_precision,
            backends.cudnn.rnn.fp32_precision,
        )
        assert found == (rounding,) * 3
    assert not backends.cuda.matmul.allow_tf32
