"""What does not fit together in the shipped systems is named at its key, before anything is built."""

from pathlib import Path

import pytest

import dtrain
from dtrain.errors import RecipeErrors
from dtrain.recipe.fit import check_data
from dtrain.recipe.load import from_document, read

FLAT = '[{ kind = "flatten" }, { kind = "linear", out = %d }]'
MISFITS = [  # recipe, an override, the key of the mistake, what is said
    ("adversarial", "system.high=0.0", "system.high", "a number above `low`, which is 0, would do"),
    ("adversarial", "data.range=[-1.0, 1.0]", "system.low", "is 0, but the data goes from -1 to 1"),
    ("adversarial", "system.eps=0.0", "system.eps", "a number above 0 would do"),
    (
        "adversarial",
        'system={ kind = "adversarial", method = "fgsm", norm = "l2", eps = 1.0, low = 0.0, high = 1.0 }',
        "system.norm",
        'method = "pgd" with steps = 1 would do',
    ),
    (
        "adversarial",
        'system={ kind = "adversarial", method = "trades", random_start = false, eps=1, low=0, high=1 }',
        "system.random_start",
        "at the example itself its slope is 0",
    ),
    ("distillation", f"models.student.layers={FLAT % 9}", "models.student.layers[1].out", "10 would fit"),
    (
        "distillation",
        "models.teacher=${unset}",
        "models.teacher",
        "required by the distillation, but missing",
    ),
    ("cycle", "models.discriminator_b.input=[1, 30, 28]", "models.discriminator_b.input", "both read b"),
    ("cycle", 'system.a="sneaker"', "system.a", 'the data has no field "sneaker"'),
    ("contrastive", "system.zoom=0.5", "system.zoom", "a number at least 1 would do"),
    ("contrastive", "models.projector.input=[64]", "models.encoder.layers[10].out", "64 would fit"),
]


@pytest.mark.parametrize(("name", "override", "key", "said"), MISFITS)
def test_a_misfit_is_named_at_its_key(shipped: Path, name: str, override: str, key: str, said: str) -> None:
    document = read(shipped / f"{name}.toml", [override])
    with pytest.raises(RecipeErrors) as caught:
        check_data(from_document(document), document, 1)
    (error,) = caught.value.errors
    assert error.key == key
    assert said in error.message


def test_translators_between_shapes_that_differ_have_no_identity_to_keep(shipped: Path) -> None:
    wide = '{ input = [1, 30, 30], layers = [{ kind = "conv", out = 1, kernel = 3 }] }'
    slim = '{ input = [1, 28, 28], layers = [{ kind = "conv", out = 1, kernel = 3, padding = 2 }] }'
    overrides = [f"models.a_to_b={wide}", f"models.b_to_a={slim}", "models.discriminator_a.input=[1, 30, 30]"]
    with pytest.raises(RecipeErrors, match=r"system\.identity: .* 0 would do"):
        dtrain.load(shipped / "cycle.toml", overrides)
    assert dtrain.load(shipped / "cycle.toml", [*overrides, "system.identity=0.0"])
