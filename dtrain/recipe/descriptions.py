"""What tables and their keys mean, in words: the docstring of a class, and the comments beside its fields."""

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from functools import cache

from dtrain.spec.decode import fields_of
from dtrain.spec.table import key_of

SOURCE = "Source: "  # what begins the sentence of a docstring that names a paper


def descriptions(cls: type) -> Mapping[str, str]:
    """The comment beside each key of a table, or in the lines right above it; of each that has one."""
    said: dict[str, str] = {}
    for base in (*getattr(cls, "made_of", ()), *reversed(cls.__mro__)):
        if "__dataclass_fields__" in vars(base) and "made_of" not in vars(base):
            said |= _comments(base)
    return {key: said[key] for key in fields_of(cls) if key in said}


def paragraphs(cls: type) -> list[str]:
    """The docstring of a table, a line a paragraph, without its source."""
    return [said for said, _ in _docstring(cls) if said]


def source(cls: type) -> str:
    """The paper that the docstring of a table names; empty if it names none."""
    return "".join(paper for _, paper in _docstring(cls))


def _docstring(cls: type) -> Iterator[tuple[str, str]]:
    """Of each paragraph what it says, and the source that it names."""
    for paragraph in inspect.cleandoc(vars(cls).get("__doc__") or "").split("\n\n"):
        said, _, paper = " ".join(paragraph.split()).partition(SOURCE)
        yield said.rstrip(), paper


@cache
def _comments(cls: type) -> Mapping[str, str]:
    """The comments of the fields that a class itself has."""
    text = textwrap.dedent(inspect.getsource(cls))
    (tree,) = ast.parse(text).body
    assert isinstance(tree, ast.ClassDef)
    comments = dict(_comments_by_line(text))
    alone = {number for number, line in enumerate(text.splitlines(), 1) if line.lstrip().startswith("#")}
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            beside = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            numbers = [n for n in beside if n in comments] or list(_above(node.lineno, alone))
            if numbers:
                found[key_of(node.target.id)] = " ".join(comments[n] for n in numbers)
    return found


def _comments_by_line(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ").strip()


def _above(line: int, alone: set[int]) -> Iterator[int]:
    """The numbers of the lines with nothing but a comment that end right above a line."""
    first = line
    while first - 1 in alone:
        first -= 1
    return iter(range(first, line))
