"""How far gradients flow back from a value, asked of autograd itself."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from dtrain.explain.flow import Reach

Edge = tuple[Any, int]  # a node of autograd's graph, and which of its outputs


def edges(tensors: Iterable[Tensor]) -> frozenset[Edge]:
    """Where the gradients of these tensors enter autograd's graph; none of those that have no gradient."""
    found = (get_gradient_edge(tensor) for tensor in tensors if tensor.requires_grad)
    return frozenset((edge.node, edge.output_nr) for edge in found)


def reached(
    start: frozenset[Edge], inputs: Mapping[int, frozenset[Edge]], weights: Container[int]
) -> tuple[frozenset[int], bool]:
    """Which of the inputs, by number, gradients from `start` come to before they come to any other.

    And whether they come to weights, by their ids, on a way that passes none of the inputs.
    """
    owners: dict[Edge, set[int]] = {}
    for number, own in inputs.items():
        for edge in own:
            owners.setdefault(edge, set()).add(number)
    found: set[int] = set()
    comes_to_weights = False
    for edge in _walk(start, stop=owners):
        found |= owners.get(edge, set())
        comes_to_weights |= id(getattr(edge[0], "variable", None)) in weights
    return frozenset(found), comes_to_weights


def reach_of(start: frozenset[Edge], parameters: Mapping[str, Sequence[Tensor]]) -> Reach:
    """How many of each model's parameters gradients from `start` arrive at."""
    owners = {id(parameter): name for name, own in parameters.items() for parameter in own}
    hit: dict[str, set[int]] = {name: set() for name in parameters}
    for node, _ in _walk(start, stop={}):
        leaf = getattr(node, "variable", None)  # of the nodes that end at a leaf alone
        if leaf is not None and id(leaf) in owners:
            hit[owners[id(leaf)]].add(id(leaf))
    return Reach({name: len(found) for name, found in hit.items()})


def _walk(start: frozenset[Edge], stop: Mapping[Edge, Any]) -> Iterator[Edge]:
    """Every edge that gradients pass from `start` on, each once; not beyond those to stop at."""
    seen, waiting = set(start), list(start)
    while waiting:
        edge = waiting.pop()
        yield edge
        if edge in stop:
            continue
        for node, number in edge[0].next_functions:
            if node is not None and (node, number) not in seen:
                seen.add((node, number))
                waiting.append((node, number))
