"""Systems as expressions: mistakes at their column, values in their order, weights, items, models' losses."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tomli
import torch
from conftest import written
from reading import changed, marked, spots_of

import dtrain
from dtrain.backends.torch_ops import TorchOps
from dtrain.errors import RecipeError, RecipeErrors
from dtrain.recipe.fit import check_data
from dtrain.recipe.load import from_document, from_table, read
from dtrain.recipe.write import encode, to_toml
from dtrain.spec.decode import decoded
from dtrain.spec.lengths import Pace
from dtrain.systems.base import AnySystem, Phase
from dtrain.systems.composed import Composed

SYSTEM = """\
[system]
kind = "composed"
values.made = "generator(normal(4))"
items = "sum(uniform())"

[[system.phases]]
updates = ["discriminator"]
values.fake = "detach(made)"
losses.real = "softplus(-discriminator(image))"
losses.fake = { of = "softplus(discriminator(fake))", weight = 2.0 }
logs.far = "mean(abs(fake - image), axis=[1, 2, 3])"

[[system.phases]]
updates = ["generator"]
prepare.image = "fgsm(discriminator(image), image, eps=0.1, low=-1, high=1)"
losses.close = "mse(made, image)"

[system.evaluate]
loss = "discriminator(made)"
[system.samples]
made = "made"

"""
RECIPE = changed(
    '[system]\nkind = "gan"\nlatent = 4\ncritic_steps = 2\n', SYSTEM.rstrip("\n") + "\n"
).replace("input = [4]", 'input = [4]\nlosses.fooled = "softplus(-discriminator(made))"')
REAL, FAKE = "softplus(-discriminator(image))", 'of = "softplus(discriminator(fake))"'
FOOLED = 'fooled = "softplus(-discriminator(made))"'
MISTAKES = [  # what stands in the recipe, what instead with ^ before the mistake, and words
    (REAL, "softplus(-^discriminater(image))", 'no op and no model "discriminater"; models are generator, d'),
    (REAL, "^sofplus(-discriminator(image))", 'did you mean "softplus"?'),
    (REAL, "softplus(-discriminator(^imag))", 'no field and no value "imag"; the data has image, label'),
    (REAL, "softplus(-discriminator(^imag))", 'did you mean "image"?'),
    (REAL, "softplus(-discriminator(^label))", "discriminator takes fractions, and this holds whole numbers"),
    (REAL, "softplus(-discriminator(^made[0]))", "only what split gives has numbered parts"),
    (REAL, "softplus(-discriminator(^normal(4)))", "discriminator takes (N, 1, 8, 8), and this is (N, 4)"),
    (REAL, "^softplus(-discriminator(image), 3)", "softplus takes other arguments: softplus(x)"),
    (REAL, "^mean(discriminator(image), axes=1)", 'mean has no argument "axes"'),
    (REAL, "^mse(discriminator(image), image)", "two arrays of the same shape, not (N, 1) and (N, 1, 8, 8)"),
    (REAL, "^discriminator(image) + label", "(N, 1) and (N,) would make (N, N), every example with every"),
    (REAL, "discriminator(^concat(image, image))", "and this is (N, 2, 8, 8)"),
    (REAL, "cross_entropy(discriminator(image), ^3)", "cross_entropy takes an array as its label, not 3"),
    (REAL, "softplus(^discriminator)", "discriminator is a model; call it, as in discriminator(image)"),
    (REAL, "^softplus + 1.0", "softplus is called, as in softplus(x)"),
    (REAL, "clamp(discriminator(image), 0, ^'a')", "clamp takes a number as its high"),
    (REAL, "split(discriminator(image), ^0.5)", "split takes a whole number as its parts"),
    (REAL, "mean(discriminator(image), axis=^[0.5])", "axes are whole numbers"),
    (REAL, "^discriminator(image) @ 2", "the operators are +, -, *, /, **"),
    (REAL, "^1.0", "is a number, and depends on nothing"),
    (REAL, "^10**200 * discriminator(image)", "this makes no number"),
    (REAL, "discriminator(image) if True else 1", ""),
    (REAL, "^split(image, 1)", "gives several arrays; take one of them"),
    (REAL, "split(image, 1)[^1]", "a whole number from 0 to 0 would do"),
    (REAL, "softplus^(discriminator(image)", "this is no expression"),
    (REAL, "(^lambda x: x)(image)", "an op or a model is called by its name"),
    (REAL, "^image.real", "calls, arithmetic, numbers and names alone"),
    (REAL, "gradient_penalty(^discriminator(made), image)", "this does not depend on image"),
    (REAL, "gradient_penalty(discriminator(image), ^-image)", "the second argument of gradient_penalty is a"),
    (REAL, "pgd(discriminator(image), image, eps=0.1, steps=2, low=0, high=1, norm=^'l3')", "linf"),
    (FAKE, 'of = "softplus(^é(fake))"', 'no op and no model "é"'),
    (FAKE, 'of = """\n  softplus(\n  discriminator(^fak))"""', 'did you mean "fake"?'),
    (FAKE, "of = 'softplus(discriminator(^fak))'", 'did you mean "fake"?'),
    (FAKE, 'of = "softplus(\\u0066ake + ^nothing)"', '"nothing"'),
    ("detach(made)", "detach(^fake)", "goes round in a circle: fake -> fake"),
    ("generator(normal(4))", "generator(^normal(5))", "generator takes (N, 4), and this is (N, 5)"),
    ("generator(normal(4))", "generator(normal(^4.0))", "normal takes a whole number as its shape"),
    ('values.made = "generator(normal(4))"', 'values.made = ^""', "is empty"),
    ('values.fake = "detach', 'values.other = "image"\nvalues.fake = "detach', "uses this value"),
    ("values.fake =", "values.^image =", "is a field of the data"),
    ("values.fake =", "values.^softplus =", "is an op's name"),
    ("values.fake =", "values.^generator =", "is a model's name"),
    ("losses.real =", "losses.^loss =", '"loss" is the sum of all losses'),
    ('updates = ["generator"]', 'updates = [^"generatr"]', 'no model "generatr"'),
    ('updates = ["generator"]', 'updates = ["generator", ^"generator"]', "stands there twice"),
    ("logs.far", "logs.^real", "a loss is logged by this name"),
    ("logs.far", "logs.^loss", "a loss is logged by this name"),
    ("logs.far", "^log.far", 'did you mean "logs"?'),
    ('loss = "discriminator(made)"', 'loss = "discriminator(^mad)"', 'did you mean "made"?'),
    ('made = "made"', 'made = "^mde"', 'did you mean "made"?'),
    ('items = "sum(uniform())"', 'items = "sum(^unifrm())"', 'did you mean "uniform"?'),
    (FOOLED, 'fooled = "softplus(-^discrimnator(made))"', 'did you mean "discriminator"?'),
    (FOOLED, 'fooled = { of = "softplus(^maed)" }', 'did you mean "made"?'),
    ("weight = 2.0", "wieght = 2.0", ""),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the pictures that the recipe reads."""
    written(tmp_path, "recipe.toml", RECIPE)
    return tmp_path


def mistakes_of(folder: Path, text: str) -> list[RecipeError]:
    """What `dtrain check` finds."""
    document = read(written(folder, "recipe.toml", text))
    with pytest.raises(RecipeErrors) as caught:
        check_data(from_document(document), document, 1)
    return list(caught.value.errors)


@pytest.mark.parametrize(("old", "new", "said"), MISTAKES)
def test_a_mistake_in_an_expression_is_found_at_its_column(
    folder: Path, old: str, new: str, said: str
) -> None:
    if "^" not in new:
        (error, *_) = mistakes_of(folder, changed(old, new, RECIPE))
        assert said in error.message
        return
    text, where = marked(changed(old, new, RECIPE))
    (error, *_) = mistakes_of(folder, text)
    assert spots_of([error]) == [("recipe.toml", *where)], error
    assert said in error.message


def test_the_recipe_itself_is_good_and_trains(folder: Path) -> None:
    recipe = dtrain.load(written(folder, "recipe.toml", RECIPE))
    with dtrain.setup(recipe, runs=folder / "runs") as run:
        metrics = [event.metrics for event in dtrain.train(run) if isinstance(event, dtrain.events.Stepped)]
    assert metrics[0].keys() >= {"discriminator/real", "discriminator/fake", "discriminator/far"}
    assert metrics[0].keys() >= {"generator/close", "generator/fooled", "generator/loss"}
    first = metrics[0]
    total = first["discriminator/real"] + 2 * first["discriminator/fake"]
    assert first["discriminator/loss"] == pytest.approx(total, rel=1e-5)


def test_a_model_whose_losses_nobody_asks_for_is_a_mistake(folder: Path) -> None:
    text = changed("input = [4]", 'input = [4]\nlosses.own = "mse(generator(image), image)"')
    (error,) = mistakes_of(folder, text)
    assert error.key == "models.generator.losses"
    assert "the gan has losses of its own" in error.message


def test_a_model_that_no_gradient_reaches_is_a_mistake(folder: Path) -> None:
    text = RECIPE.replace('fooled = "softplus(-discriminator(made))"', 'fooled = "mse(detach(made), image)"')
    text = text.replace('losses.close = "mse(made, image)"', 'losses.close = "discriminator(detach(made))"')
    (error,) = mistakes_of(folder, text)
    assert error.key == "system.phases[1].updates[0]"
    assert "no gradient of this phase's losses reaches generator" in error.message


def test_a_model_that_no_expression_calls_is_a_mistake(folder: Path) -> None:
    text = RECIPE + '\n[models.idle]\ninput = [1]\nlayers = [{ kind = "linear", out = 1 }]\n'
    (error,) = mistakes_of(folder, text)
    assert (error.key, error.message) == ("models.idle", "no expression calls this model")


NO_EXPRESSIONS = [
    "(" * 300 + "image" + ")" * 300, "-" * 1900 + "image", "-" * 3000 + "image", "9**9**9**9*image",
    "é" * 1900 + "(", "\x00", "x\\\n", "f'{image}'", "image and image", "*image", "softplus(*image)",
    "softplus(**image)", "image.__class__", "[image for image in image]", "(yield)", "await image",
    "image := 3", "1e400*image", "image[0]",
    "image['a']", "...", "None", "b'a'", "1j*image", "softplus(x=image, y=1)",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_EXPRESSIONS, ids=range(len(NO_EXPRESSIONS)))
def test_what_is_no_expression_is_refused_in_words(folder: Path, text: str) -> None:
    system = tomli.loads(SYSTEM)["system"]
    system["phases"][0]["losses"]["real"] = text
    recipe = {**tomli.loads(RECIPE), "system": system}
    with pytest.raises(RecipeErrors) as caught:
        from_table(recipe, folder=folder, source="r.toml")
    assert {error.key for error in caught.value.errors} == {"system.phases[0].losses.real"}


def test_it_comes_back_from_a_text_as_it_was(folder: Path) -> None:
    recipe = dtrain.load(written(folder, "recipe.toml", RECIPE))
    again = dtrain.load(written(folder, "again.toml", to_toml(recipe)))
    assert encode(again) == encode(recipe)
    assert to_toml(again) == to_toml(recipe)


def phase_of(loss: Any, **more: Any) -> Phase:
    """The one phase of a system that trains `model`."""
    table = {"kind": "composed", "phases": [{"updates": ["model"], "losses": {"only": loss}, **more}]}
    system: Composed = decoded(AnySystem, table)
    (phase,) = system.joined({"model": object()}).phases()  # type: ignore[dict-item]  # its shapes are not asked
    return phase


def call(phase: Phase, model: Callable[..., Any] = torch.square, *, step: int = 0, **batch: Any) -> Any:
    ops = TorchOps(torch.device("cpu"), torch.float64)
    ops.step, ops.pace = step, Pace(total=11, examples=None, batch_size=1, steps_for=int)
    seen: Mapping[str, Any] = {"x": torch.arange(6.0, dtype=torch.float64).reshape(3, 2), **batch}
    torch.manual_seed(0)
    models = SimpleNamespace(model=model)
    return phase.loss(models, phase.prepare(models, seen, ops) if phase.prepare else seen, ops)


def test_a_loss_is_the_mean_of_its_expression_times_its_weight() -> None:
    loss = call(phase_of({"of": "model(x) + 1", "weight": -0.5}))
    mean = (torch.arange(6.0) ** 2 + 1).mean()
    assert float(loss.value) == pytest.approx(-0.5 * float(mean))
    assert float(loss.terms["only"]) == pytest.approx(float(mean))
    assert loss.weight is None


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (5, 0.5), (10, 0.0)])
def test_a_schedule_moves_the_weight_of_a_loss(step: int, factor: float) -> None:
    phase = phase_of({"of": "model(x)", "weight": 4, "schedule": {"kind": "linear"}})
    loss = call(phase, step=step)
    assert float(loss.value) == pytest.approx(4 * factor * float(loss.terms["only"]))


def test_no_loss_takes_the_place_of_another_of_its_name() -> None:
    losses = {"x": "model(x) * 1", "model_x": "model(x) * 10"}
    table = {"kind": "composed", "phases": [{"updates": ["model"], "losses": losses}]}
    system: Composed = decoded(AnySystem, table)
    own = SimpleNamespace(losses={"x": "model(x) * 100"})
    (phase,) = system.joined({"model": own}).phases()  # type: ignore[dict-item]
    loss = call(phase)
    assert list(loss.terms) == ["x", "model_x", "model_model_x"]
    assert float(loss.value) == pytest.approx(111 * float((torch.arange(6.0) ** 2).mean()))


def test_items_are_what_a_loss_is_a_mean_over() -> None:
    loss = call(phase_of("model(x)", items="sum(mask)"), mask=torch.tensor([1.0, 0, 2]))
    assert float(loss.weight) == 3


def test_what_is_prepared_replaces_fields_for_the_losses() -> None:
    loss = call(phase_of("model(x)", prepare={"x": "x * 0 + 3.0"}))
    assert float(loss.value) == 9.0


def test_values_are_computed_once_and_drawn_in_their_order() -> None:
    values = {"first": "uniform(1)", "second": "uniform(1)", "both": "first - second"}
    loss = call(phase_of("model(second) + first * 0 + both + both", values=values))
    torch.manual_seed(0)
    first, second = torch.rand(3, 1, dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)
    assert float(loss.value) == pytest.approx(float((second**2 + 2 * (first - second)).mean()))


def test_an_op_that_takes_a_slope_is_given_a_function_of_the_name() -> None:
    phase = phase_of("gradient(model(x) * y, x) + 0 * model(x)", values={"y": "x * 2"})
    loss = call(phase)  # y is not what is varied: the slope of x² y in x is 2xy, with y = 2x
    assert float(loss.value.detach()) == pytest.approx(float((4 * torch.arange(6.0) ** 2).mean()))
