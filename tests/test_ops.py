"""Every op: what it gives, and that its shape rule says the shape that torch gives."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dtrain.backends.torch_ops import TorchOps
from dtrain.spec.lengths import Pace
from dtrain.spec.schedules import Linear
from dtrain.systems.ops import Ops
from dtrain.systems.shape_ops import ShapeOps
from dtrain.systems.shapes import Examples, Misfit, Shaped, shape_text

N = 6
X = torch.linspace(-2, 2, N * 4, dtype=torch.float64).reshape(N, 4)
Y = X.flip(0) * 0.5 + 0.1
POSITIVE = X.abs() + 0.1
IMAGE = torch.linspace(0, 1, N * 2 * 4 * 4, dtype=torch.float64).reshape(N, 2, 4, 4)
LABEL = torch.arange(N) % 4
WEIGHT = torch.tensor([1.0, 0, 2, 1, 0, 1], dtype=torch.float64)


def square(x: Any) -> Any:
    """A function whose slope is 2x."""
    return x * x if isinstance(x, Tensor) else x


# name -> arguments, and what torch gives by another way; None where only the shape is compared
CASES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Tensor | None]]] = {
    "normal": [((N, 3), {}, None)],
    "uniform": [((N, 3), {}, None)],
    "bernoulli": [((0.25, N, 3), {}, None), ((torch.full((N, 3), 1.0),), {}, torch.ones(N, 3))],
    "categorical": [((torch.eye(4)[LABEL] * 1e4,), {}, LABEL)],
    "random_shift": [((IMAGE, 0), {}, IMAGE), ((IMAGE, 2), {}, None)],
    "random_zoom": [((IMAGE, 1.0), {}, IMAGE), ((IMAGE, 2.0), {}, None)],
    "random_flip": [((IMAGE,), {}, None)],
    "abs": [((X,), {}, torch.maximum(X, -X))],
    "sign": [((X,), {}, (X > 0).double() - (X < 0).double())],
    "floor": [((X,), {}, X - X.remainder(1))],
    "exp": [((X,), {}, math.e**X)],
    "log": [((POSITIVE,), {}, torch.log2(POSITIVE) * math.log(2))],
    "sqrt": [((POSITIVE,), {}, POSITIVE**0.5)],
    "sin": [((X,), {}, (X - math.pi / 2).cos())],
    "cos": [((X,), {}, (X + math.pi / 2).sin())],
    "tanh": [((X,), {}, 2 / (1 + (-2 * X).exp()) - 1)],
    "sigmoid": [((X,), {}, 1 / (1 + (-X).exp()))],
    "relu": [((X,), {}, X * (X > 0))],
    "softplus": [((X,), {}, (1 + X.exp()).log())],
    "hinge": [((X,), {}, (1 - X) * (X < 1))],
    "clamp": [((X, -1.0, 0.5), {}, torch.where(X < -1, -1.0, torch.where(X > 0.5, 0.5, X)))],
    "minimum": [((X, Y), {}, torch.where(X < Y, X, Y)), ((X, 0), {}, X * (X < 0))],
    "maximum": [((X, Y), {}, torch.where(X > Y, X, Y)), ((X, 0.5), {}, torch.where(X > 0.5, X, 0.5))],
    "where": [((X > 0, X, Y), {}, (X > 0) * X + (X <= 0) * Y), ((X > 0, 1.0, 0.0), {}, (X > 0).double())],
    "sum": [((X,), {}, X.cumsum(0)[-1].cumsum(0)[-1]), ((IMAGE, (1, 2, 3)), {}, IMAGE.flatten(1) @ torch.ones(32).double())],
    "mean": [((X,), {}, X.sum() / X.numel()), ((IMAGE,), {"axis": 1}, (IMAGE[:, 0] + IMAGE[:, 1]) / 2), ((X > 0,), {}, torch.tensor(0.5).double())],
    "max": [((X,), {}, X[:, 3])],
    "argmax": [((X,), {}, torch.full((N,), 3))],
    "logsumexp": [((X,), {}, X.exp().sum(1).log())],
    "softmax": [((X,), {}, X.exp() / X.exp().sum(1, keepdim=True))],
    "log_softmax": [((X,), {}, X - X.exp().sum(1, keepdim=True).log())],
    "normalize": [((X,), {}, X / (X**2).sum(1, keepdim=True).sqrt())],
    "norm": [((IMAGE,), {}, (IMAGE**2).flatten(1).sum(1).sqrt())],
    "concat": [((IMAGE, IMAGE), {}, IMAGE.repeat(1, 2, 1, 1)), ((X, Y), {"axis": 0}, torch.vstack([X, Y]))],
    "split": [((IMAGE, 2), {}, None)],
    "slice": [((X, 1, 3), {}, X[:, 1:3]), ((X, 0, -1), {}, X[:, :-1])],
    "reshape": [((IMAGE, N, 32), {}, IMAGE.flatten(1))],
    "expand": [((X[:, :1, None, None], IMAGE), {}, X[:, 0].repeat_interleave(32).reshape(N, 2, 4, 4))],
    "transpose": [((IMAGE,), {}, IMAGE.permute(0, 1, 3, 2))],
    "matmul": [((X, Y.T), {}, torch.einsum("ni,mi->nm", X, Y))],
    "eye": [((X @ Y.T,), {}, torch.diag(torch.ones(N)))],
    "positions": [((X,), {}, torch.tensor(range(N)))],
    "one_hot": [((LABEL, 5), {}, (LABEL[:, None] == torch.arange(5)).double())],
    "detach": [((X,), {}, X)],
    "cross_entropy": [
        ((X, LABEL), {}, -(X.log_softmax(1)[range(N), LABEL]).mean()),
        ((X, LABEL), {"weight": WEIGHT}, -(X.log_softmax(1)[range(N), LABEL] * WEIGHT).sum() / 5),
        ((X, Y.softmax(1)), {}, -(X.log_softmax(1) * Y.softmax(1)).sum(1).mean()),
        ((X, LABEL), {"smoothing": 0.2}, -(0.8 * X.log_softmax(1)[range(N), LABEL] + 0.2 * X.log_softmax(1).mean(1)).mean()),
    ],
    "bce": [((X, X.sigmoid()), {}, -(X.sigmoid() * F.logsigmoid(X) + (-X).sigmoid() * F.logsigmoid(-X)).mean()), ((X, 1), {}, -F.logsigmoid(X).mean())],
    "mse": [((X, Y), {}, ((X - Y) ** 2).mean()), ((X, 1), {}, ((X - 1) ** 2).mean())],
    "l1": [((X, Y), {}, (X - Y).abs().mean()), ((X, 0.5), {}, (X - 0.5).abs().mean())],
    "huber": [((X, Y), {"delta": 0.5}, torch.where((X - Y).abs() < 0.5, (X - Y) ** 2 / 2, 0.5 * ((X - Y).abs() - 0.25)).mean())],
    "kl_normal": [((X, Y), {}, torch.distributions.kl_divergence(torch.distributions.Normal(X, (Y / 2).exp()), torch.distributions.Normal(torch.zeros_like(X), 1)).sum(1).mean())],
    "kl_categorical": [((X, Y), {}, torch.distributions.kl_divergence(torch.distributions.Categorical(logits=X), torch.distributions.Categorical(logits=Y)).mean())],
    "cosine": [((X, Y), {}, (X * Y).sum(1) / (X.norm(dim=1) * Y.norm(dim=1)))],
    "gradient": [((square, X), {}, 2 * X)],
    "gradient_penalty": [((square, X), {"target": 0.0}, (4 * X**2).sum(1).mean()), ((square, X), {}, (2 * X.norm(dim=1) - 1).square().mean())],
    "fgsm": [((square, IMAGE), {"eps": 0.1, "low": 0.0, "high": 1.0}, torch.where(IMAGE > 0, IMAGE + 0.1, IMAGE).clamp(0, 1))],
    "pgd": [
        ((square, IMAGE), {"eps": 0.1, "steps": 5, "low": 0.0, "high": 1.0, "random_start": False}, torch.where(IMAGE > 0, IMAGE + 0.1, IMAGE).clamp(0, 1)),
        ((square, IMAGE), {"eps": 0.1, "steps": 5, "low": 0.0, "high": 1.0, "norm": "l2"}, None),
    ],
}  # fmt: skip
FOR_PYTHON = {"factor", "call"}  # which have tests of their own


@pytest.fixture
def ops() -> TorchOps:
    torch.manual_seed(0)
    return TorchOps(torch.device("cpu"), torch.float64)


def names(cls: type) -> set[str]:
    return {name for name, value in vars(cls).items() if inspect.isfunction(value) and name[0] != "_"}


def shaped(value: Any) -> Any:
    """An array as its shape; N stands for the number of examples."""
    if not isinstance(value, Tensor):
        return value
    sort = (
        "fractions"
        if value.is_floating_point()
        else "truth values"
        if value.dtype == torch.bool
        else "whole numbers"
    )
    return Shaped(tuple(Examples(size // N) if size in (N, 2 * N) else size for size in value.shape), sort)  # type: ignore[arg-type]


def test_the_three_tables_have_the_same_ops_with_the_same_arguments() -> None:
    assert names(Ops) == names(ShapeOps) == names(TorchOps) == CASES.keys() | FOR_PYTHON
    for name in names(Ops):
        taken = [
            [(p.name, p.kind, p.default) for p in inspect.signature(getattr(cls, name)).parameters.values()]
            for cls in (Ops, ShapeOps, TorchOps)
        ]
        assert taken[0] == taken[1] == taken[2], name
        assert inspect.getdoc(getattr(Ops, name)), name


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, cases in CASES.items() for number in range(len(cases))]
)
def test_an_op_gives_what_it_says_in_the_shape_of_its_rule(ops: TorchOps, name: str, number: int) -> None:
    arguments, options, wanted = CASES[name][number]
    made = getattr(ops, name)(*arguments, **options)
    sizes = [Examples() if isinstance(value, int) and value == N else shaped(value) for value in arguments]
    rule = getattr(ShapeOps(), name)(*sizes, **{key: shaped(value) for key, value in options.items()})
    found = made if isinstance(made, tuple) else (made,)
    rules = rule if isinstance(rule, tuple) else (rule,)
    assert [shape_text(shaped(value).shape) for value in found] == [shape_text(one.shape) for one in rules]
    assert [shaped(value).sort for value in found] == [one.sort for one in rules]
    if wanted is not None:
        torch.testing.assert_close(made, wanted.to(made.dtype), rtol=1e-12, atol=1e-12)


def test_parts_put_behind_each_other_are_what_was_split(ops: TorchOps) -> None:
    assert ops.concat(*ops.split(IMAGE, 2)).equal(IMAGE)


@pytest.mark.parametrize(
    ("norm", "length"), [("linf", lambda d: d.abs().amax(1)), ("l2", lambda d: d.norm(dim=1))]
)
def test_an_attack_stays_within_eps_and_the_range(
    ops: TorchOps, norm: Any, length: Callable[..., Tensor]
) -> None:
    image = IMAGE * 0.8 + 0.1
    moved = ops.pgd(
        lambda x: (x * X.sum(1)[:, None, None, None]).sum(), image, eps=0.3, steps=7, low=0, high=1, norm=norm
    )
    assert (length((moved - image).flatten(1)) <= 0.3 + 1e-12).all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert not moved.requires_grad


def test_an_attack_needs_no_gradients_to_be_on(ops: TorchOps) -> None:
    with torch.no_grad():
        moved = ops.fgsm(square, X, eps=0.5, low=-9, high=9)
    torch.testing.assert_close(moved, X + 0.5 * X.sign())


def test_a_shifted_picture_is_a_window_of_it_with_its_edge_repeated(ops: TorchOps) -> None:
    moved = ops.random_shift(IMAGE, 1)
    padded = F.pad(IMAGE, (1, 1, 1, 1), mode="replicate")
    windows = [padded[:, :, top : top + 4, left : left + 4] for top in range(3) for left in range(3)]
    assert all(any(moved[i].equal(window[i]) for window in windows) for i in range(N))


def test_numbers_have_the_precision_of_the_models(ops: TorchOps) -> None:
    condition = torch.tensor([True, False])
    assert ops.where(condition, 0.1, 0.2).tolist() == [0.1, 0.2]
    assert ops.maximum(torch.tensor([0, 1]), 0.1).tolist() == [0.1, 1.0]
    assert ops.where(condition, 1, 0).dtype == torch.int64


def test_where_models_compute_in_half_ops_do_not() -> None:
    ops, image = TorchOps(torch.device("cpu"), torch.float32), IMAGE.float()
    zoomed = []
    for is_half in (True, False):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            zoomed.append(ops.random_zoom(image, 1.5))
            assert ops.matmul(image, image).dtype == torch.float32
    assert zoomed[0].equal(zoomed[1])


def test_the_slope_of_a_slope_is_there_for_penalties(ops: TorchOps) -> None:
    weight = torch.tensor(3.0, requires_grad=True, dtype=torch.float64)
    ops.gradient_penalty(lambda x: weight * x, X, target=0.0).backward()
    assert weight.grad is not None
    assert float(weight.grad) == pytest.approx(2 * 3.0 * 4)  # of 9 * 4: four slopes of 3 each


def test_a_factor_goes_by_the_step_of_the_run(ops: TorchOps) -> None:
    ops.step, ops.pace = 5, Pace(total=11, examples=1, batch_size=1, steps_for=int)
    assert ops.factor(Linear()) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda o, x, n: o.mse(x, n), "the same shape"),
        (lambda o, x, n: o.softplus(n), "takes fractions"),
        (lambda o, x, n: o.cross_entropy(x, x.__class__((Examples(), 9), "whole numbers")), "takes labels (N,)"),
        (lambda o, x, n: o.reshape(x, Examples(), 5), "does not hold as many values"),
        (lambda o, x, n: o.split(x, 3), "does not divide into 3"),
        (lambda o, x, n: o.slice(x, 0, 1, axis=0), "that of the examples"),
        (lambda o, x, n: o.matmul(x, x), "must agree"),
        (lambda o, x, n: o.concat(x, n), "hold the same"),
        (lambda o, x, n: o.mean(x, 5), "no axis 5"),
        (lambda o, x, n: o.minimum(x, Shaped((Examples(),), "fractions")), "do not go together"),
        (lambda o, x, n: o.minimum(Shaped((Examples(), 1), "fractions"), Shaped((Examples(),), "fractions")), "every example with every other"),
        (lambda o, x, n: o.normal(Examples(), 10**13), "more than any machine holds"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(wrong: Callable[..., Any], said: str) -> None:
    x, whole = Shaped((Examples(), 4), "fractions"), Shaped((Examples(),), "whole numbers")
    with pytest.raises(Misfit, match=said.replace("(", r"\(").replace(")", r"\)")):
        wrong(ShapeOps(), x, whole)
