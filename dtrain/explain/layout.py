"""Where boxes and arrows go: in columns from left to right, each after all that go into it.

Columns by the longest way, places for long arrows in the columns that they pass, an order with few crossings,
then positions near those of neighbours. Source: Sugiyama, Tagawa & Toda 1981, doi:10.1109/TSMC.1981.4308636.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

GAP, SPACE = 46.0, 22.0  # between columns; between boxes of one
SWEEPS = 12
Point = tuple[float, float]


@dataclass
class Node:
    """A box, or the place where an arrow passes a column; x and y are those of its upper left corner."""

    width: float
    height: float
    column: int = 0
    x: float = 0.0
    y: float = 0.0
    before: list["Node"] = field(default_factory=list)
    after: list["Node"] = field(default_factory=list)

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


@dataclass(frozen=True)
class Layout:
    """Boxes by their keys, the points of every arrow, and the size of the whole."""

    nodes: Mapping[int, Node]
    routes: Mapping[tuple[int, int], Sequence[Point]]
    width: float
    height: float


def lay_out(sizes: Mapping[int, Point], arrows: Mapping[tuple[int, int], str]) -> Layout:
    """Place boxes of these widths and heights; arrows go from one to another and never in a circle.

    Long arrows from one box share their way if they look alike, as their values say.
    """
    nodes = {key: Node(*size) for key, size in sizes.items()}
    _choose_columns(nodes, list(arrows))
    lanes: dict[tuple[int, str, int], Node] = {}
    chains = {arrow: _chain(nodes, arrow, look, lanes) for arrow, look in arrows.items()}
    passed = list(lanes.values())
    columns: list[list[Node]] = [[] for _ in range(1 + max(node.column for node in nodes.values()))]
    for node in (*nodes.values(), *passed):
        columns[node.column].append(node)
    _order(columns)
    _place(columns)
    width = sum(max(node.width for node in column) + GAP for column in columns) - GAP
    height = max(node.y + node.height for node in nodes.values())
    routes = {arrow: _route(chain, columns) for arrow, chain in chains.items()}
    lowest = max((y for route in routes.values() for _, y in route), default=0.0)
    return Layout(nodes, routes, width, max(height, lowest))


def _choose_columns(nodes: Mapping[int, Node], arrows: Sequence[tuple[int, int]]) -> None:
    """Right of all that go into it; what nothing goes into stands just left of the first that needs it."""
    for _ in nodes:
        for start, end in arrows:
            nodes[end].column = max(nodes[end].column, nodes[start].column + 1)
    entered = {end for _, end in arrows}
    for key, node in nodes.items():
        ends = [nodes[end].column for start, end in arrows if start == key]
        if key not in entered and ends:
            node.column = min(ends) - 1


def _chain(
    nodes: Mapping[int, Node],
    arrow: tuple[int, int],
    look: str,
    lanes: dict[tuple[int, str, int], Node],
) -> list[Node]:
    """The nodes that an arrow visits: a place in every column that it passes."""
    start, end = nodes[arrow[0]], nodes[arrow[1]]
    passed = [
        lanes.setdefault((arrow[0], look, column), Node(0, 0, column))
        for column in range(start.column + 1, end.column)
    ]
    chain = [start, *passed, end]
    for left, right in pairwise(chain):
        if not any(right is node for node in left.after):
            left.after.append(right)
            right.before.append(left)
    return chain


def _order(columns: list[list[Node]]) -> None:
    """Sort every column by where its neighbours stand, back and forth, and keep the best order found."""
    best, fewest = [list(column) for column in columns], _crossings(columns)
    for sweep in range(SWEEPS):
        goes_right = sweep % 2 == 0
        for column in columns[1:] if goes_right else columns[-2::-1]:
            place = {id(node): number for other in columns for number, node in enumerate(other)}

            def wish(node: Node, place: dict[int, int] = place, goes_right: bool = goes_right) -> float:
                others = node.before if goes_right else node.after
                places = [place[id(other)] for other in others] or [place[id(node)]]
                return sum(places) / len(places)

            column.sort(key=wish)
        if (count := _crossings(columns)) < fewest:
            best, fewest = [list(column) for column in columns], count
    columns[:] = best


def _crossings(columns: Sequence[Sequence[Node]]) -> int:
    """How many pairs of arrows cross."""
    count = 0
    for left, right in pairwise(columns):
        place = {id(node): number for number, node in enumerate(right)}
        ends = [(number, place[id(end)]) for number, node in enumerate(left) for end in node.after]
        count += sum(a < c and b > d for a, b in ends for c, d in ends)
    return count


def _place(columns: Sequence[Sequence[Node]]) -> None:
    """Columns side by side; in each the boxes one below the other, near their neighbours."""
    x = 0.0
    for column in columns:
        width = max(node.width for node in column)
        y = 0.0
        for node in column:
            node.x, node.y = x + (width - node.width) / 2, y
            y += node.height + SPACE
        x += width + GAP
    for sweep in range(SWEEPS):
        for column in columns if sweep % 2 == 0 else columns[::-1]:
            _settle(column)
    top = min(node.y for column in columns for node in column)
    for column in columns:
        for node in column:
            node.y -= top


def _settle(column: Sequence[Node]) -> None:
    """Move each node towards the mean of its neighbours, as far as those beside it allow.

    Nodes that would overlap form a block, which stands at the mean of its members' wishes.
    """
    blocks: list[tuple[list[Node], float, float]] = []  # nodes, wish for the first one's top, its weight
    for node in column:
        others = [*node.before, *node.after]
        middle = sum(other.middle for other in others) / len(others) if others else node.middle
        members, wish, weight = [node], middle - node.height / 2, 1.0
        while blocks and blocks[-1][1] + _extent(blocks[-1][0]) > wish:
            above, wished, weighed = blocks.pop()
            wish = (wished * weighed + (wish - _extent(above)) * weight) / (weighed + weight)
            members, weight = above + members, weighed + weight
        blocks.append((members, wish, weight))
    for members, top, _ in blocks:
        for node in members:
            node.y = top
            top += node.height + SPACE


def _extent(nodes: Sequence[Node]) -> float:
    return sum(node.height + SPACE for node in nodes)


def _route(chain: Sequence[Node], columns: Sequence[Sequence[Node]]) -> list[Point]:
    """From the right side of a box to the left side of another; straight inside of columns."""
    points = []
    for place, node in enumerate(chain):
        left = min(other.x for other in columns[node.column])
        right = max(other.x + other.width for other in columns[node.column])
        if place > 0:
            y = _port(node.before, chain[place - 1], node)
            points += [(left, y), (node.x, y)]
        if place < len(chain) - 1:
            y = _port(node.after, chain[place + 1], node)
            points += [(node.x + node.width, y), (right, y)]
    return points


def _port(others: Sequence[Node], other: Node, node: Node) -> float:
    """Where on a side of a node the arrow from or to another one touches it: in the order of those."""
    order = sorted(others, key=lambda item: item.middle)
    place = next(number for number, item in enumerate(order) if item is other)
    return node.y + node.height * (place + 1) / (len(others) + 1)
