"""Language models: what counts, what is refused, and the texts that they write."""

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Said, cut_off, last_tensors, metrics_of, only_run
from torch import Tensor

import dtrain
from dtrain.backends.torch_ops import TorchOps
from dtrain.errors import DtrainError
from dtrain.run import Run
from dtrain.sampling import RULE
from dtrain.systems.language_model import likeliest

Here = Callable[..., Said]
TALE = "Once upon a time — née anno — lived a „cat“ who said: mew, mew, mew! "
RECIPE = """\
name = "tiny-language-model"

[system]
kind = "language_model"
sample = { prompt = "Once", length = 12, count = 3 }

[models.language_model]
input = [16]
layers = [
    { kind = "embedding", size = 256, out = 8 },
    { kind = "residual", layers = [{ kind = "layer_norm" }, { kind = "attention", heads = 2 }] },
    { kind = "gru", out = 24 },
    { kind = "linear", out = 256 },
]

[optimizers.language_model]
kind = "adam"
lr = 2e-2

[averages.language_model]
decay = 0.5

[data]
kind = "text"
path = "tale.txt"
evaluate = 0.25
length = 16

[train]
steps = 8
batch_size = 6
micro_batch_size = 3

[every]
log = 1
save = 4

[track]
kinds = ["jsonl"]
"""


@pytest.fixture
def recipe(tmp_path: Path, on_cpu: None) -> Path:
    """A language model of a text of 1,120 characters in more bytes than that."""
    (tmp_path / "tale.txt").write_text(TALE * 16, encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


def trained(recipe: Path, runs: Path, *overrides: str) -> Path:
    """Train to the end; the folder of the run."""
    with (
        dtrain.setup(dtrain.load(recipe, overrides), runs=runs, fresh=True) as run,
        dtrain.watch(run) as observe,
    ):
        for event in dtrain.train(run):
            observe(event)
    return run.folder


def text_of(run: Path) -> str:
    return (run / "samples" / "step-00000008-language_model.txt").read_text(encoding="utf-8")


# --- what counts ---


@pytest.mark.parametrize("micro", [1, 2, 6])
def test_bits_per_character_are_all_bits_over_all_characters(
    recipe: Path, tmp_path: Path, micro: int
) -> None:
    overrides = (f"train.micro_batch_size={micro}", 'train.precision="fp64"', "train.steps=1")
    run = trained(recipe, tmp_path / "runs", *overrides, "optimizers.language_model.lr=0")
    (found,) = (values for _, values in metrics_of(run) if "evaluate/loss" in values)

    text = (TALE * 16).encode()
    held_out = text[len(text) - len(text) // 4 :]
    with dtrain.setup(dtrain.load(recipe), runs=tmp_path, fresh=True) as ready:
        nats = sum(surprises(ready.engine.bare["language_model"].double().eval(), held_out, window=16))
    characters = sum(byte & 0xC0 != 0x80 for byte in held_out)
    assert found["evaluate/loss"] == pytest.approx(nats / len(held_out), rel=1e-6)
    assert found["evaluate/bits_per_character"] == pytest.approx(nats / math.log(2) / characters, rel=1e-6)


def surprises(model: torch.nn.Module, text: bytes, window: int) -> Iterator[float]:
    """-log p of each byte given those before it, back to where its window begins."""
    half, end = window // 2, len(text) - window
    padded = torch.tensor([0, *text])
    for place, byte in enumerate(text):
        number = max(0, -(-(place + 1 - window) // half))  # of the first window that reaches this byte
        first = min(number * half, end)
        with torch.no_grad():
            logits = model(padded[None, first : place + 1])[0, -1]
        yield F.cross_entropy(logits, torch.tensor(byte)).item()


def test_a_model_of_a_text_that_repeats_itself_learns_it(recipe: Path, tmp_path: Path) -> None:
    sample = 'system.sample={ prompt = "upon a ", length = 4, temperature = 0.1 }'
    run = trained(recipe, tmp_path / "runs", "train.steps=150", "every.log=50", "every.save=0", sample)
    values = dict(metrics_of(run)[-2][1])
    assert values["evaluate/bits_per_character"] < 0.7
    assert (run / "samples/step-00000150-language_model.txt").read_text().startswith("upon a time")


@pytest.mark.parametrize("held_out", ["0.25", '"other.txt"'])
def test_another_text_is_evaluated_whole(
    dtrain_here: Here, recipe: Path, tmp_path: Path, held_out: str
) -> None:
    (tmp_path / "other.txt").write_text("Twice upon a time. " * 20)
    (tmp_path / "third.txt").write_text(f"{TALE}Twice upon a time. " * 10, encoding="utf-8")
    run = trained(recipe, tmp_path / "runs", f"data.evaluate={held_out}")
    said = dtrain_here("evaluate", run, "--data", tmp_path / "third.txt", "--json")
    assert said.code == 0, said.errors
    loaded = dtrain.load(recipe, [f"data.evaluate={held_out}"])
    with dtrain.setup(loaded, runs=tmp_path, resume=run) as ready:
        text = (tmp_path / "third.txt").read_bytes()
        ready.engine.averages.show(["language_model"])  # type: ignore[attr-defined]
        nats = sum(surprises(ready.engine.bare["language_model"].eval(), text, window=16))
    assert json.loads(said.out)["metrics"]["evaluate/loss"] == pytest.approx(nats / len(text), rel=1e-5)


# --- what is drawn ---


def test_samples_go_on_from_the_prompt_and_are_the_same_whenever_they_are_drawn(
    recipe: Path, tmp_path: Path
) -> None:
    text = text_of(trained(recipe, tmp_path / "whole"))
    texts = text.removesuffix("\n").split(RULE)
    assert len(set(texts)) == 3
    assert all(text.startswith("Once") for text in texts)
    cut_off(recipe, tmp_path / "parts", 4)
    again = trained_on(recipe, tmp_path / "parts")
    assert text_of(again) == text
    assert last_tensors(again) == last_tensors(only_run(tmp_path / "whole"))


def trained_on(recipe: Path, runs: Path) -> Path:
    """Carry a run on that was cut off."""
    with dtrain.setup(dtrain.load(recipe), runs=runs) as run, dtrain.watch(run) as observe:
        assert run.step == 4
        for event in dtrain.train(run):
            observe(event)
    return run.folder


def drawn(ready: Run, batch: dict[str, Any]) -> Tensor:
    tokens: Tensor = ready.engine.run(ready.system.samples, batch, key=(0, "sample"))["language_model"]
    return tokens


@pytest.mark.parametrize("choice", ["top_k = 1", "temperature = 1e-6"])
def test_the_likeliest_token_alone_is_drawn_where_the_recipe_says_so(
    recipe: Path, tmp_path: Path, choice: str
) -> None:
    loaded = dtrain.load(recipe, [f'system.sample={{ prompt = "On", length = 30, count = 2, {choice} }}'])
    with dtrain.setup(loaded, runs=tmp_path) as ready:
        tokens = drawn(ready, ready.loader.load(0)[0][1])
        ready.engine.averages.show(["language_model"])  # type: ignore[attr-defined]
        model, wanted = ready.engine.bare["language_model"].eval(), [*b"On"]
        for _ in range(30):  # goes beyond the window of 16
            with torch.no_grad():
                wanted.append(int(model(torch.tensor([wanted[-16:]]))[0, -1].argmax()))
    assert tokens.tolist() == [wanted, wanted]


def test_without_a_prompt_samples_go_on_from_the_data(recipe: Path, tmp_path: Path) -> None:
    loaded = dtrain.load(recipe, ["system.sample={ length = 5, count = 2 }"])
    with dtrain.setup(loaded, runs=tmp_path) as ready:
        batch = ready.loader.load(0)[0][1]
        tokens = drawn(ready, batch)
    np.testing.assert_array_equal(tokens[:, :8], batch["token"][:2, :8])
    assert tokens.shape == (2, 13)


def test_tokens_are_drawn_by_their_probabilities() -> None:
    ops = TorchOps(torch.device("cpu"), torch.float64)
    logits = torch.tensor([1.0, 2.0, 0.0, 3.0]).double()
    torch.manual_seed(0)
    kept = likeliest(logits.expand(20_000, 4), 3, ops)
    shares = ops.categorical(kept / 0.7).bincount(minlength=4) / 20_000
    wanted = torch.tensor([1.0, 2.0, -math.inf, 3.0]).double().div(0.7).softmax(0)
    torch.testing.assert_close(shares.double(), wanted, atol=0.01, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 5, 6, 100])
def test_the_likeliest_are_as_many_as_asked_for(count: int) -> None:
    logits = torch.randn(3, 6)
    kept = likeliest(logits, count, TorchOps(torch.device("cpu"), torch.float32))
    assert torch.equal(kept.isfinite().sum(1), torch.full((3,), min(count, 6)))
    assert torch.equal(kept[kept.isfinite()], logits[kept.isfinite()])
    assert (kept.isfinite() == (logits >= logits.sort(1).values[:, -min(count, 6), None])).all()


def test_tokens_that_nobody_can_spell_are_written_as_numbers(recipe: Path, tmp_path: Path) -> None:
    token = np.random.default_rng(0).integers(0, 9, (12, 16))
    np.savez(tmp_path / "tokens.npz", token=token, next_token=token, weight=np.ones((12, 16)))
    text = RECIPE.replace('kind = "text"\npath = "tale.txt"\nevaluate = 0.25\nlength = 16', ARRAYS)
    recipe.write_text(text.replace('prompt = "Once", ', ""))
    first = text_of(trained(recipe, tmp_path / "runs")).split(RULE)[0]
    assert first.split()[:8] == [str(number) for number in token[0, :8]]
    assert len(first.split()) == 8 + 12


ARRAYS = 'kind = "arrays"\npath = "tokens.npz"'


def test_texts_are_shown_kept_and_named_at_the_end(
    dtrain_here: Here, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = dtrain_here("run", recipe, "every.sample=4", 'track.kinds=["console", "jsonl"]')
    assert (said.code, said.errors) == (0, "")
    run = only_run(tmp_path / "runs")
    names = [f"samples/step-{step:08d}-language_model.txt" for step in (4, 8)]
    assert sorted(path.relative_to(run).as_posix() for path in run.glob("samples/*")) == names
    assert [v["language_model"] for _, v in metrics_of(run) if "language_model" in v] == names
    lines = said.out.splitlines()
    at = lines.index(f"step 8/8  language_model in {names[1]}")
    first = (run / names[1]).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("Once")
    assert lines[at + 1][:8] == "    Once"
    assert lines[-1] == f"texts       {(run / names[1]).relative_to(tmp_path)}"


# --- what is refused ---

CHEATS = [
    (
        '{ kind = "gru", out = 24 }',
        '{ kind = "conv", out = 16, kernel = 1 }',
        "layers[2].kind",
        "conv may let",
    ),
    ('{ kind = "gru", out = 24 }', '{ kind = "group_norm", groups = 2 }', "layers[2].kind", "group_norm may"),
    ("heads = 2", "heads = 2, causal = false", "layers[1].layers[1].causal", "false lets a token see"),
]
WRONG = [
    ("input = [16]", "input = [4, 4]", "models.language_model.input", "found [4, 4]; [4] would"),
    (
        '    { kind = "linear", out = 256 },\n',
        '    { kind = "flatten" },\n',
        "models.language_model",
        "gives",
    ),
    ('{ kind = "linear", out = 256 }', '{ kind = "linear", out = 99 }', "data", "has 256 tokens, but models"),
    ("size = 256", "size = 99", "models.language_model.layers[0].size", "is 99, but the data has 256 tokens"),
    ("input = [16]", "input = [8]", "models.language_model.input", "is [8], but the data's token is [16]"),
    ("length = 16", "length = 9999", "", "windows of 9999 need 19997"),
    ('kind = "language_model"', 'kind = "language_model"\nweight = "weights"', "system.weight", '"weight"?'),
]


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [*((old, new, f"models.language_model.{at}", said) for old, new, at, said in CHEATS), *WRONG],
)
def test_what_cannot_be_learnt_is_refused(
    dtrain_here: Here, recipe: Path, old: str, new: str, at: str, said: str
) -> None:
    assert old in RECIPE
    recipe.write_text(RECIPE.replace(old, new))
    refused = dtrain_here("check", recipe)
    assert refused.code == 2
    assert any(f"{at}: " in line and said in line for line in refused.errors.splitlines()), refused.errors


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"next_token": np.ones((12, 16))}, '"next_token" must hold a whole number for each of "token"'),
        ({"next_token": np.ones((12, 8), int)}, '"next_token" must hold a whole number for each of "token"'),
        ({"weight": np.ones(12)}, '"weight" must hold a number for each of "token"'),
        ({}, "a prompt is spelt in bytes"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    recipe: Path, tmp_path: Path, change: dict[str, np.ndarray], said: str
) -> None:
    whole = np.ones((12, 16), int)
    np.savez(tmp_path / "tokens.npz", **{"token": whole, "next_token": whole, "weight": whole, **change})
    recipe.write_text(
        RECIPE.replace('kind = "text"\npath = "tale.txt"\nevaluate = 0.25\nlength = 16', ARRAYS)
    )
    with pytest.raises(DtrainError, match=said), dtrain.setup(dtrain.load(recipe), runs=tmp_path):
        pass


def test_a_text_is_weighed_alike_by_one_micro_batch_and_many(recipe: Path, tmp_path: Path) -> None:
    """Sentences of all lengths, some of none: the gradient is a mean over tokens."""
    random = np.random.default_rng(0)
    token = random.integers(0, 9, (12, 17))
    weight = (np.arange(16) < random.integers(0, 17, (12, 1))).astype(float)
    weight[3] = 0
    np.savez(tmp_path / "tokens.npz", token=token[:, :-1], next_token=token[:, 1:], weight=weight)
    text = RECIPE.replace('kind = "text"\npath = "tale.txt"\nevaluate = 0.25\nlength = 16', ARRAYS)
    plain = text.replace('kind = "adam"\nlr = 2e-2', 'kind = "sgd"\nlr = 0.5')  # adam would enlarge rounding
    recipe.write_text(plain.replace('prompt = "Once", ', ""))
    fine = [
        last_tensors(trained(recipe, tmp_path / str(micro), f"train.micro_batch_size={micro}", PRECISE))
        for micro in (6, 3, 1)
    ]
    for one, other in itertools.pairwise(fine):
        for name, (_, _, values) in one.items():
            if name.startswith("models/"):
                theirs = np.frombuffer(other[name][2])
                np.testing.assert_allclose(np.frombuffer(values), theirs, rtol=0, atol=1e-12, err_msg=name)


PRECISE = 'train.precision="fp64"'
