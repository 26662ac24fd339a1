"""Layers of sequences: who knows of whom, and what they are to torch's own."""

from typing import Any

import pytest
import torch
from torch import nn

from dtrain.backends.torch_backend import build_model
from dtrain.backends.torch_sequence import turned
from dtrain.spec.decode import decoded
from dtrain.spec.models import ModelSpec

Table = dict[str, Any]
CAUSAL: list[Table] = [
    {"kind": "attention", "heads": 2},
    {"kind": "attention", "heads": 2, "rotary": True},
    {"kind": "gru", "out": 6},
]
BOTH_WAYS: Table = {"kind": "attention", "heads": 2, "causal": False}


def built(layers: list[Table], length: int = 7, features: int = 4) -> nn.Module:
    return build_model("model", decoded(ModelSpec, {"input": [length, features], "layers": layers}), seed=0)


def reaches(module: nn.Module, length: int = 7, features: int = 4) -> torch.Tensor:
    """Whether what comes out at an element (row) depends on the one that goes in at another (column)."""
    x = torch.randn(1, length, features)
    jacobian = torch.autograd.functional.jacobian(module, x)  # (1, length, out, 1, length, features)
    return jacobian.abs().sum((0, 2, 3, 5)) > 0


@pytest.mark.parametrize("layer", CAUSAL, ids=str)
def test_a_causal_layer_sees_itself_and_all_before_and_nothing_behind(layer: Table) -> None:
    assert torch.equal(reaches(built([layer])), torch.ones(7, 7).tril().bool())


def test_attention_that_is_not_causal_sees_everything() -> None:
    assert reaches(built([BOTH_WAYS])).all()


@pytest.mark.parametrize("layer", [*CAUSAL, BOTH_WAYS, {"kind": "position"}], ids=str)
def test_a_shorter_sequence_goes_through(layer: Table) -> None:
    x, module = torch.randn(2, 7, 4), built([layer])
    short = module(x[:, :3])
    assert short.shape[:2] == (2, 3)
    if layer is not BOTH_WAYS:
        torch.testing.assert_close(short, module(x)[:, :3])


def test_attention_tells_places_apart_only_by_a_position_or_by_turning() -> None:
    x, order = torch.randn(1, 7, 4), torch.randperm(7)
    plain, turning = built([BOTH_WAYS]), built([{**BOTH_WAYS, "rotary": True}])
    placed = built([{"kind": "position", "initial": {"kind": "normal", "std": 1.0}}, BOTH_WAYS])
    torch.testing.assert_close(plain(x[:, order]), plain(x)[:, order])
    for module in (turning, placed):
        assert not torch.allclose(module(x[:, order]), module(x)[:, order], atol=1e-3)


def test_turned_questions_and_keys_know_how_far_apart_they_are_and_no_more() -> None:
    question, key = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    scores = turned(question.expand(9, 6)) @ turned(key.expand(9, 6)).T
    for distance in range(-8, 9):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    torch.testing.assert_close(scores[0, 0], question @ key)


def test_each_pair_turns_by_its_angle() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    as_numbers = torch.complex(x[:, :2], x[:, 2:])
    place, speed = torch.arange(3.0).double()[:, None], torch.tensor([1.0, 0.01]).double()
    wanted = as_numbers * torch.exp(1j * place * speed)
    torch.testing.assert_close(turned(x), torch.cat([wanted.real, wanted.imag], 1))


def test_two_grus_in_a_row_are_torchs_of_two_layers() -> None:
    ours, theirs = (
        built([{"kind": "gru", "out": 5}, {"kind": "gru", "out": 5}]),
        nn.GRU(4, 5, 2, batch_first=True),
    )
    theirs.load_state_dict(
        {
            name.replace("_l0", f"_l{number}"): value
            for number in (0, 1)
            for name, value in ours[number].state_dict().items()
        }
    )
    x = torch.randn(2, 7, 4)
    torch.testing.assert_close(ours(x), theirs(x)[0])


def test_a_transformer_is_these_layers() -> None:
    attend: Table = {
        "kind": "residual",
        "layers": [{"kind": "layer_norm"}, {"kind": "attention", "heads": 2}],
    }
    think: Table = {
        "kind": "residual",
        "layers": [
            {"kind": "layer_norm"},
            {"kind": "linear", "out": 16},
            {"kind": "activation", "function": "gelu"},
            {"kind": "linear", "out": 4},
        ],
    }
    ours = built([{"kind": "repeat", "times": 2, "layers": [attend, think]}])
    x = torch.randn(3, 7, 4)
    wanted = x
    for number in (0, 1):
        theirs = nn.TransformerEncoderLayer(
            4, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        attends, thinks = (ours[0][number][place].layers for place in (0, 1))
        twins = {"norm1": attends[0], "self_attn": attends[1], "norm2": thinks[0]}
        twins |= {"linear1": thinks[1], "linear2": thinks[3]}
        theirs.load_state_dict(
            {
                f"{name}.{key}": value
                for name, twin in twins.items()
                for key, value in twin.state_dict().items()
            }
        )
        mask = nn.Transformer.generate_square_subsequent_mask(7)
        wanted = theirs(wanted, src_mask=mask, is_causal=True)
    torch.testing.assert_close(ours(x), wanted)
