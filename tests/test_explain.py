"""dtrain explain: what is followed is what the engine does, and the words say it."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement.cases import CASES, FROZEN, write_examples
from agreement.ranks import ready, watch_updates
from conftest import Said
from own_systems import SAID, describe_own

import dtrain
from dtrain.data.opening import describe
from dtrain.explain.expressions import expression
from dtrain.explain.flow import Flow
from dtrain.explain.gradients import reach_of
from dtrain.explain.names import name_values
from dtrain.explain.record import Recorder
from dtrain.explain.text import phase_lines
from dtrain.explain.trace import trace
from dtrain.recipe.load import from_table

Here = Callable[..., Said]
GANS = {
    "non_saturating": ("mean(softplus(-real)) + mean(softplus(fake))", "mean(softplus(-fake))"),
    "hinge": ("mean(relu(1 - real)) + mean(relu(fake + 1))", "-mean(fake)"),
    "least_squares": ("mean((real - 1)**2) / 2 + mean(fake**2) / 2", "mean((fake - 1)**2) / 2"),
    "wasserstein": ("mean(fake) - mean(real) + penalty", "-mean(fake)"),
}


def followed(recipe: dtrain.Recipe) -> tuple[list[Flow], Flow | None]:
    """The phases and the evaluation of a recipe."""
    return trace(recipe, describe(recipe.data, "train", recipe.seed).fields)


def of_case(table: Mapping[str, Any], folder: Path) -> list[Flow]:
    """The phases of one of the recipes whose agreement is tested."""
    write_examples(folder / "examples.npz")
    return followed(from_table(table, folder=folder, source="cases.py"))[0]


@pytest.mark.parametrize("loss", GANS)
def test_a_gan_is_said_in_the_words_of_its_paper(dtrain_here: Here, gan: Path, loss: str) -> None:
    said = dtrain_here("explain", gan, f"system.loss={loss}")
    assert said.code == 0, said.errors
    critic, generator, evaluation = said.out.split("\n\n")[1:]
    assert critic.startswith("1. train discriminator\n   2 updates, each on 8 fresh examples\n")
    assert "trained: discriminator (sgd lr 0.05 constant, clip 1)" in critic
    assert re.search(r"made = detach\(generator\(normal\(4, 4\)\)\) +\(4, 1, 8, 8\)", critic)
    assert f"loss = {GANS[loss][0]}\n" in critic
    assert "logged beside it: real = mean(real), fake = mean(fake)" in critic
    assert "gradients stop at: made = detach" in critic
    assert "frozen:  generator\n" in critic
    assert "fake = discriminator(generator(normal(4, 4)))" in generator
    assert f"loss = {GANS[loss][1]}\n" in generator
    assert "frozen:  discriminator (gradients pass through it)" in generator
    assert "with moving averages in place of generator" in evaluation


def test_a_classifier_is_said(dtrain_here: Here, classifier: Path) -> None:
    said = dtrain_here("explain", classifier, "evaluate.metrics.apart.kind='torch.nn:CrossEntropyLoss'")
    phase, evaluation = said.out.split("\n\n")[1:]
    for line in ("logits = classifier(image)", "loss = cross_entropy(logits, label, smoothing=0.1)"):
        assert line in phase
    assert "logged beside it: accuracy = mean(argmax(logits, -1) == label)" in phase
    assert "frozen" not in phase
    assert "accuracy = mean(argmax(logits, -1) == label)" in evaluation
    assert "and, of predictions and targets: apart" in evaluation


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_said_to_be_trained_is_what_moves(tmp_path: Path, on_cpu: None, name: str) -> None:
    flows = of_case(FROZEN[name], tmp_path)
    with ready(dict(FROZEN[name]), tmp_path, "1", "-") as run:
        updates = {tuple(update["trains"]): update["moved"] for update in watch_updates(run, 2)}
        assert set(updates) == {flow.trained for flow in flows}
        for flow in flows:
            assert updates[flow.trained] == sorted(flow.reach[flow.loss.number].models)
            assert not set(flow.frozen()) & set(flow.trained)


def test_every_parameter_that_a_gradient_reaches_is_counted(tmp_path: Path, on_cpu: None) -> None:
    table = CASES["gan, wasserstein"].recipe
    critic, generator = of_case(table, tmp_path)
    with ready(dict(table), tmp_path, "1", "-") as run:
        counts = {name: len(list(module.parameters())) for name, module in run.engine.bare.items()}
    assert critic.reach[critic.loss.number].parameters == {"discriminator": counts["discriminator"]}
    assert generator.reach[generator.loss.number].parameters == {"generator": counts["generator"]}


def test_what_prepare_computes_comes_first_and_carries_no_gradient(tmp_path: Path, on_cpu: None) -> None:
    flow = of_case(FROZEN["two models at once"], tmp_path)[0]
    prepared = [value for value in flow.values if value.is_prepared]
    assert any(value.call == "gradient" and value.models == {"encoder"} for value in prepared)
    assert not any(value.carries for value in prepared)
    hard = flow.fields["hard"]
    assert hard.call == "prepared"
    assert flow.fields["image"].kind == "field"  # given back as it was
    assert max(value.number for value in prepared) < flow.loss.number
    assert flow.through() == ("judge",)


def test_a_system_of_ones_own_is_followed_to_its_every_value(dtrain_here: Here, tmp_path: Path) -> None:
    said = dtrain_here("explain", describe_own(tmp_path))
    assert said.code == 0, said.errors
    for line in SAID:
        assert line in said.out


def test_values_in_a_recipe_keep_their_names(dtrain_here: Here) -> None:
    said = dtrain_here("explain", Path(dtrain.__file__).parents[1] / "recipes" / "composed" / "gan.toml")
    critic, generator = said.out.split("\n\n")[1:3]
    assert re.search(r"fake = detach\(generator\(normal\(32, 16\)\)\) +\(32, 1, 28, 28\)", critic)
    assert "loss = real + fake_loss\n      real       reaches discriminator\n" in critic
    assert "loss = mean(softplus(-discriminator(generator(normal(32, 16)))))" in generator


def test_a_teacher_is_frozen_and_from_where_its_weights_are(dtrain_here: Here, shipped: Path) -> None:
    said = dtrain_here("explain", shipped / "distillation.toml").out
    assert f"teacher begins with the weights of classifier in {shipped.parent}/runs/classifier/1" in said
    assert "frozen:  teacher\n" in said
    assert "1. train student\n" in said


@pytest.mark.parametrize(
    "compute",
    [
        lambda x, y: x - (y - x) - (x + y),
        lambda x, y: (x - y) * 2 + 3 * (1 - x) / (y / x),
        lambda x, y: -(x**2) + (-x) ** 2 + 2**x + (x + y) ** 2 + x ** (y - 1) + x**-1,
        lambda x, y: (x @ y.T)[0, 1:] + x.mean() * (x > y)[0, :1],
        lambda x, y: ((x > 0) == (y > 0)) & (x < y),
        lambda x, y: sum([x, y, x * y]) / (1 + x.exp().sum(1, keepdim=True)),
        lambda x, y: torch.cat([x, y], 1).softmax(-1)[:, None] - 1e-3,
        lambda x, y: x.chunk(2, 1)[1] * y.chunk(2, dim=1)[0].detach().clone(),
    ],
    ids=range(8),
)
def test_an_expression_computes_what_it_says(compute: Callable[..., torch.Tensor]) -> None:
    x, y = torch.rand(2, 4, 4, dtype=torch.float64) + 0.5
    recorder = Recorder({})
    for name, tensor in (("x", x), ("y", y)):
        recorder.field(name, tensor)
    with recorder.following():
        made = compute(x, y)
    text = expression(recorder.value_of(made), lambda value: value.name if value.kind == "field" else None)
    functions = {name: getattr(torch, name) for name in ("mean", "exp", "softmax", "cat", "chunk", "detach")}
    functions["sum"] = lambda x, axis, keepdim: x.sum(axis, keepdim=keepdim)
    torch.testing.assert_close(eval(text, {"x": x, "y": y, "T": torch.t, **functions}), made)


def test_a_long_loss_is_said_in_steps() -> None:
    """A sum of three hundred terms is no expression that anybody reads, nor one too deep to write."""
    net = torch.nn.ParameterList(list(torch.rand(300, 3)))
    weights, recorder = list(net.parameters()), Recorder({"net": net})
    with recorder.following():
        total = torch.zeros(())
        for weight in weights:
            total = total + (weight**2).sum()
    loss = recorder.value_of(total)
    reach = {loss.number: reach_of(recorder.edges_of(loss), {"net": weights})}
    flow = Flow(("net",), (), tuple(recorder.values), {}, {"loss": loss}, reach)
    name_values(flow)
    said = list(phase_lines(flow))
    assert max(map(len, said)) < 800
    assert reach[loss.number].parameters == {"net": 300}


def test_a_system_that_fails_is_said_in_a_line(dtrain_here: Here, tmp_path: Path) -> None:
    said = dtrain_here("explain", describe_own(tmp_path), "system.fails=true")
    assert (said.code, said.out) == (2, "")
    assert said.errors == "dtrain: own cannot be followed, as it raises KeyError: 'nothing'\n"
