"""The picture of a system: all of it is there, nothing lies on anything else, and it is good XML."""

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from conftest import Said
from own_systems import describe_cycle

import dtrain
from dtrain.explain.boxes import Arrow, Box, Graph, Line
from dtrain.explain.layout import lay_out
from dtrain.explain.picture import FONTS, Panel, picture, size_of

Here = Callable[..., Said]
FOLDER = Path(dtrain.__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.toml"))
SVG = "{http://www.w3.org/2000/svg}"
Rectangle = tuple[float, float, float, float]


def drawn(dtrain_here: Here, recipe: Path, *overrides: str) -> Element:
    """The picture of a recipe."""
    file = recipe.with_suffix(".svg")
    said = dtrain_here("explain", recipe, *overrides, "--svg", file)
    assert said.code == 0, said.errors
    return ElementTree.parse(file).getroot()


def panels_of(svg: Element) -> list[Element]:
    return [group for group in svg.iter(f"{SVG}g") if group.get("class") == "panel"]


def boxes_of(panel: Element) -> list[Element]:
    return [group for group in panel.iter(f"{SVG}g") if group.get("class", "").startswith("box ")]


def forms_of(panel: Element) -> list[tuple[str, ...]]:
    """The form of every box, and the first line of its text."""
    return sorted((box.get("class", "")[4:], str(box.findtext(f"{SVG}text"))) for box in boxes_of(panel))


def rectangle_of(box: Element) -> Rectangle:
    """Left, top, right, bottom of a box's outline."""
    outline = box[0]
    if outline.tag == f"{SVG}polygon":
        points = [tuple(map(float, point.split(","))) for point in outline.get("points", "").split()]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        return min(xs), min(ys), max(xs), max(ys)
    x, y, width, height = (float(outline.get(name, "")) for name in ("x", "y", "width", "height"))
    return x, y, x + width, y + height


def assert_nothing_overlaps(svg: Element) -> None:
    """No two boxes overlap, texts stay inside of theirs, and everything inside of the picture."""
    wide, high = float(svg.get("width", "")), float(svg.get("height", ""))
    for panel in panels_of(svg):
        rectangles = [rectangle_of(box) for box in boxes_of(panel)]
        for a, b in combinations(rectangles, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
        for box, (left, top, right, bottom) in zip(boxes_of(panel), rectangles, strict=True):
            assert 0 <= left < right <= wide
            assert 0 <= top < bottom <= high
            for text in box.iter(f"{SVG}text"):
                style = next(font for font in FONTS.values() if font.family == text.get("font-family"))
                assert len(text.text or "") * style.size * 0.5 < right - left
                assert top < float(text.get("y", "")) < bottom


def test_the_picture_of_a_gan_tells_trained_from_frozen(dtrain_here: Here, gan: Path) -> None:
    svg = drawn(dtrain_here, gan)
    assert_nothing_overlaps(svg)
    critic, generator, evaluation = map(forms_of, panels_of(svg))
    assert critic == [
        ("data", "image"),
        ("frozen", "generator"),
        ("loss", "loss"),
        ("noise", "normal(4, 4)"),
        ("stop", "made"),
        ("trained", "discriminator"),
        ("trained", "discriminator"),
    ]
    assert generator == [
        ("frozen", "discriminator"),
        ("loss", "loss"),
        ("noise", "normal(4, 4)"),
        ("trained", "generator"),
    ]
    assert ("average", "generator") in evaluation
    assert [name for form, name in evaluation if form == "metric"] == ["fake", "loss", "real"]
    assert {form for form, _ in evaluation} == {"data", "noise", "frozen", "average", "metric"}


def test_arrows_that_gradients_come_back_on_are_solid(dtrain_here: Here, gan: Path) -> None:
    generator = panels_of(drawn(dtrain_here, gan))[1]
    paths = [path for path in generator.iter(f"{SVG}path") if path.get("class")]
    kinds = [(path.get("class"), path.get("stroke-dasharray") is None) for path in paths]
    assert sorted(kinds) == [("data", False), ("gradient", True), ("gradient", True)]


def test_four_models_in_two_phases_fit(dtrain_here: Here, tmp_path: Path) -> None:
    svg = drawn(dtrain_here, describe_cycle(tmp_path))
    assert_nothing_overlaps(svg)
    translate, judge = map(forms_of, panels_of(svg))
    assert {name for form, name in translate if form == "trained"} == {"to_b", "to_a"}
    assert {name for form, name in translate if form == "frozen"} == {"judge_a", "judge_b"}
    assert {name for form, name in judge if form == "trained"} == {"judge_a", "judge_b"}
    assert sum(form == "stop" for form, _ in judge) == 2


@pytest.mark.parametrize("loss", ["hinge", "wasserstein", "least_squares"])
def test_every_loss_of_the_gan_fits(dtrain_here: Here, gan: Path, loss: str) -> None:
    overrides = [f"system.loss={loss}", "system.r1=1.0"]
    assert_nothing_overlaps(drawn(dtrain_here, gan, *overrides))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")))
def test_every_shipped_recipe_is_explained(
    dtrain_here: Here, shipped: Path, tmp_path: Path, path: Path
) -> None:
    said = dtrain_here("explain", shipped / path.relative_to(FOLDER), "--svg", tmp_path / "picture.svg")
    assert said.code == 0, said.errors
    assert "warning" not in said.out
    assert_nothing_overlaps(ElementTree.parse(tmp_path / "picture.svg").getroot())


def test_names_are_escaped() -> None:
    box = Box(0, "data", (Line('<script>&"\x07', "title"),))
    root = ElementTree.fromstring(picture("a & b", [Panel("<x>", "", Graph((box,), ()))]))
    assert root.findtext(f"{SVG}title") == "a & b: the data flow of every phase"
    assert '<script>&"\\u0007' in [text.text for text in root.iter(f"{SVG}text")]


def test_arrows_go_around_boxes() -> None:
    """Every arrow leaves on the right, arrives on the left, and passes no other box on its way."""
    arrows = {(0, 1): "a", (1, 2): "a", (2, 3): "a", (0, 3): "a", (0, 2): "b", (4, 3): "a", (5, 1): "a"}
    layout = lay_out({number: (60.0 + 30 * number, 40.0 + 9 * number) for number in range(6)}, arrows)
    for (start, end), route in layout.routes.items():
        first, last = layout.nodes[start], layout.nodes[end]
        assert route[0][0] == first.x + first.width
        assert route[-1][0] == last.x
        assert first.y < route[0][1] < first.y + first.height
        for (x, y), (to_x, to_y) in pairwise(route):
            low, high = min(y, to_y), max(y, to_y)  # the bend between two points stays between them
            for node in layout.nodes.values():
                is_beside = to_x <= node.x or node.x + node.width <= x
                assert is_beside or high <= node.y or node.y + node.height <= low


def test_a_box_is_as_large_as_its_text() -> None:
    small, large = (Box(0, "value", (Line("x" * count, "code"),)) for count in (3, 30))
    assert size_of(small)[0] < size_of(large)[0]
    assert size_of(large)[0] > 30 * FONTS["code"].letter


def test_a_file_that_cannot_be_written_is_said_in_a_line(dtrain_here: Here, gan: Path) -> None:
    said = dtrain_here("explain", gan, "--svg", gan.parent / "nowhere" / "gan.svg")
    assert said.code == 2
    assert said.errors.endswith("gan.svg cannot be written: No such file or directory\n")


def test_a_graph_has_each_arrow_once() -> None:
    arrows = (Arrow(0, 1, carries=True),)
    boxes = tuple(Box(number, "value", (Line("x", "code"),)) for number in range(2))
    root = ElementTree.fromstring(picture("one", [Panel("", "", Graph(boxes, arrows))]))
    panel = panels_of(root)[0]
    assert len(list(panel.iter(f"{SVG}path"))) == 1
