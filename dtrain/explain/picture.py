"""The data flow of every phase as an SVG: what goes into what, what is trained, where gradients flow back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from dtrain.explain.boxes import Box, Form, Graph, Style
from dtrain.explain.layout import Layout, Node, Point, lay_out
from dtrain.spec.words import visible

MARGIN, HEADING = 24.0, 58.0  # around everything; above the boxes of a panel
PADDING, ACROSS = 9.0, 14.0  # inside a box, above and below, left and right
SANS = "system-ui, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"
MONO = "ui-monospace, 'Cascadia Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
INK, FAINT, PAPER, PANEL = "#1f2937", "#4b5563", "#ffffff", "#f6f7f9"
GRADIENT, DATA = "#15803d", "#6b7280"  # arrows that gradients come back on; others


@dataclass(frozen=True)
class Font:
    """Size, height of a line and width of a letter, in pixels: as wide as in any font that may be there."""

    size: float
    line: float
    letter: float
    family: str
    weight: str = "normal"
    color: str = INK


@dataclass(frozen=True)
class Look:
    """How boxes of one form are drawn: told apart by their outline as well as by their colour."""

    fill: str
    line: str
    width: float = 1.2
    dashes: str = ""
    corner: float = 4.0  # radius; below 0 the corners are cut off
    is_double: bool = False


FONTS: Mapping[Style, Font] = {
    "title": Font(14, 18, 8.7, SANS, "600"),
    "code": Font(12, 16, 7.4, MONO),
    "note": Font(11.5, 15, 6.7, SANS, color=FAINT),
}
LOOKS: Mapping[Form, Look] = {
    "data": Look("#dbeafe", "#1d4ed8", corner=0),
    "noise": Look("#ede9fe", "#6d28d9", corner=16),
    "trained": Look("#dcfce7", "#15803d", width=3.2),
    "frozen": Look("#e5e7eb", "#4b5563", width=1.6, dashes="6 4"),
    "average": Look("#fef9c3", "#854d0e", is_double=True),
    "value": Look("#ffffff", "#9ca3af"),
    "stop": Look("#fee2e2", "#b91c1c", width=1.6, corner=-9),
    "loss": Look("#ffedd5", "#c2410c", width=2.6, corner=14),
    "metric": Look("#ffffff", "#c2410c", corner=14),
}
LEGEND: Mapping[Form, str] = {
    "data": "data",
    "noise": "random numbers",
    "trained": "model that is trained",
    "frozen": "frozen model",
    "average": "average of a model's weights",
    "value": "computed value",
    "stop": "gradients stop",
    "loss": "loss",
    "metric": "metric",
}


@dataclass(frozen=True)
class Panel:
    """One phase: its heading, a line below that, and what is drawn."""

    title: str
    note: str
    graph: Graph


def picture(name: str, panels: Sequence[Panel]) -> str:
    """An SVG of the panels, one below the other, and a legend of the forms that are in them."""
    layouts = [_laid_out(panel.graph) for panel in panels]
    entries = legend_entries(panels)
    headings = [max(_width(p.title, "title") * 1.15, _width(p.note, "note")) for p in panels]
    widths = [layout.width for layout in layouts] + headings + [min(_legend_width(entries), 860.0)]
    width = max(widths) + 4 * MARGIN
    root = Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
    SubElement(root, "title").text = visible(f"{name}: the data flow of every phase")
    _defs(root)
    paper = SubElement(root, "rect", x="0", y="0", fill=PAPER, rx="10", width=_n(width))
    y = MARGIN
    for panel, layout in zip(panels, layouts, strict=True):
        y = _draw_panel(root, panel, layout, y, width) + MARGIN
    y = _draw_legend(root, entries, y, width)
    root.set("viewBox", f"0 0 {_n(width)} {_n(y)}")
    root.set("width", _n(width))
    root.set("height", _n(y))
    paper.set("height", _n(y))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def size_of(box: Box) -> Point:
    """Width and height of a box around its text."""
    width = max(_width(line.text, line.style) for line in box.lines) + 2 * ACROSS
    return max(width, 70.0), sum(FONTS[line.style].line for line in box.lines) + 2 * PADDING


def _laid_out(graph: Graph) -> Layout:
    sizes = {box.number: size_of(box) for box in graph.boxes}
    looks = {(arrow.start, arrow.end): "gradient" if arrow.carries else "data" for arrow in graph.arrows}
    return lay_out(sizes, looks)


def _draw_panel(root: Element, panel: Panel, layout: Layout, y: float, width: float) -> float:
    """Draw a panel with its upper edge at y; where its lower edge is."""
    height = HEADING + layout.height + MARGIN
    group = SubElement(root, "g", {"class": "panel"})
    SubElement(
        group,
        "rect",
        x=_n(MARGIN),
        y=_n(y),
        width=_n(width - 2 * MARGIN),
        height=_n(height),
        rx="8",
        fill=PANEL,
        stroke="#d1d5db",
    )
    _text(group, panel.title, 2 * MARGIN, y + 25, "title", size=16)
    _text(group, panel.note, 2 * MARGIN, y + 43, "note")
    inside = SubElement(group, "g", transform=f"translate({_n(2 * MARGIN)} {_n(y + HEADING)})")
    for arrow in panel.graph.arrows:
        _draw_arrow(inside, layout.routes[arrow.start, arrow.end], carries=arrow.carries)
    for box in panel.graph.boxes:
        _draw_box(inside, box, layout.nodes[box.number])
    return y + height


def _draw_box(group: Element, box: Box, node: Node) -> None:
    held = SubElement(group, "g", {"class": f"box {box.form}", "data-number": str(box.number)})
    _draw_outline(held, LOOKS[box.form], node)
    y = node.y + PADDING
    for line in box.lines:
        font = FONTS[line.style]
        _text(held, line.text, node.x + node.width / 2, y + font.size, line.style, anchor="middle")
        y += font.line


def _draw_outline(group: Element, look: Look, node: Node) -> None:
    style = {"fill": look.fill, "stroke": look.line, "stroke-width": _n(look.width)}
    if look.dashes:
        style["stroke-dasharray"] = look.dashes
    x, y, width, height = node.x, node.y, node.width, node.height
    if look.corner < 0:
        cut, right, low = min(-look.corner, height / 3), x + width, y + height
        points = [(x + cut, y), (right - cut, y), (right, y + cut), (right, low - cut)]
        points += [(right - cut, low), (x + cut, low), (x, low - cut), (x, y + cut)]
        SubElement(group, "polygon", style, points=" ".join(f"{_n(a)},{_n(b)}" for a, b in points))
        return
    for inset in (0.0, 3.5) if look.is_double else (0.0,):
        frame = {
            "x": _n(x + inset),
            "y": _n(y + inset),
            "width": _n(width - 2 * inset),
            "height": _n(height - 2 * inset),
        }
        SubElement(group, "rect", frame | style, rx=_n(min(look.corner, height / 2)))


def _draw_arrow(group: Element, route: Sequence[Point], *, carries: bool) -> None:
    """A line that is straight inside of columns and bends between them."""
    path = f"M{_n(route[0][0])} {_n(route[0][1])}"
    for (x, y), (to_x, to_y) in pairwise(route):
        half = (x + to_x) / 2
        is_straight = y == to_y
        end = f"{_n(to_x)} {_n(to_y)}"
        path += f"L{end}" if is_straight else f"C{_n(half)} {_n(y)} {_n(half)} {_n(to_y)} {end}"
    style = (
        {"stroke": GRADIENT, "stroke-width": "2.2"} if carries else {"stroke": DATA, "stroke-width": "1.4"}
    )
    if not carries:
        style["stroke-dasharray"] = "5 4"
    kind = "gradient" if carries else "data"
    SubElement(group, "path", style, d=path, fill="none", **{"marker-end": f"url(#{kind})", "class": kind})


def legend_entries(panels: Sequence[Panel]) -> list[tuple[Form, str]]:
    """What the legend says: a line for each form that there is."""
    there = {box.form for panel in panels for box in panel.graph.boxes}
    return [(form, text) for form, text in LEGEND.items() if form in there]


def _draw_legend(root: Element, entries: Sequence[tuple[Form, str]], y: float, width: float) -> float:
    """Rows of forms and arrows with their meaning; where they end."""
    x = MARGIN
    group = SubElement(root, "g", {"class": "legend"})
    arrows = ((True, "gradients flow back"), (False, "values alone"))
    for form, text in (*entries, *arrows):
        needed = 34 + _width(text, "note") + 22
        if x + needed > width - MARGIN:
            x, y = MARGIN, y + 24
        if isinstance(form, bool):
            _draw_arrow(group, [(x, y + 8), (x + 26, y + 8)], carries=form)
        else:
            _draw_outline(group, LOOKS[form], Node(26, 16, x=x, y=y))
        _text(group, text, x + 34, y + 12, "note")
        x += needed
    return y + 16 + MARGIN


def _legend_width(entries: Sequence[tuple[Form, str]]) -> float:
    return sum(56 + _width(text, "note") for _, text in entries) + 300


def _defs(root: Element) -> None:
    """Heads of arrows."""
    defs = SubElement(root, "defs")
    for name, color in (("gradient", GRADIENT), ("data", DATA)):
        place = {"viewBox": "0 0 10 10", "refX": "9", "refY": "5", "orient": "auto"}
        size = {"markerUnits": "userSpaceOnUse", "markerWidth": "11", "markerHeight": "11"}
        marker = SubElement(defs, "marker", {"id": name, **place, **size})
        SubElement(marker, "path", d="M0 0L10 5L0 10z", fill=color)


def _text(
    parent: Element,
    text: str,
    x: float,
    y: float,
    style: Style,
    *,
    anchor: str = "start",
    size: float | None = None,
) -> None:
    font = FONTS[style]
    look = {"font-family": font.family, "font-size": _n(size or font.size), "font-weight": font.weight}
    made = SubElement(parent, "text", look, x=_n(x), y=_n(y), fill=font.color, **{"text-anchor": anchor})
    made.text = visible(text)


def _width(text: str, style: Style) -> float:
    return len(visible(text)) * FONTS[style].letter


def _n(number: float) -> str:
    """A number with at most one decimal."""
    return f"{round(number, 1):g}"
