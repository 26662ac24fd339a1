"""Patterns that lead from names in a file to names in a model, and those that are proposed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtrain.spec.weights import captured, filled
from dtrain.spec.weights_rules import rules_for

LETTERS = st.text("ab.*", max_size=8)


@given(LETTERS, st.lists(st.text("ab.", max_size=4), max_size=9))
def test_what_a_pattern_captures_fills_it_again(pattern: str, texts: list[str]) -> None:
    count = pattern.count("*")
    name = filled(pattern, (texts + [""] * count)[:count])
    found = captured(pattern, name)
    assert found is not None
    assert filled(pattern, found) == name


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("encoder.*", "encoder.0.weight", ["0.weight"]),
        ("*.norm.*", "a.norm.b.norm.c", ["a", "b.norm.c"]),
        ("a*a", "a", None),
        ("a*b*c", "abbc", ["", "b"]),
        ("x", "x", []),
        ("x", "xy", None),
        ("*", "", [""]),
        ("*a" * 500, "a" * 10_000 + "b", None),
    ],
)
def test_patterns_take_the_shortest_texts(pattern: str, name: str, found: list[str] | None) -> None:
    assert captured(pattern, name) == found


def test_no_rule_is_proposed_where_two_would_do() -> None:
    own = {"0.weight": (4, 4), "2.weight": (4, 4), "4.weight": (3, 4), "4.bias": (3,)}
    theirs = {"a.weight": (4, 4), "b.weight": (4, 4), "c.weight": (3, 4), "c.bias": (3,)}
    assert rules_for(theirs, own) == {"c.*": "4.*"}
    assert rules_for({f"model.{name}": shape for name, shape in own.items()}, own) == {"model.*": "*"}
