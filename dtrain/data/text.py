"""Examples from text files: their bytes, cut into windows."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dtrain.data.source import Description, Field, Part, Source
from dtrain.errors import DataError
from dtrain.spec.table import Fraction, Natural, Positive, Wrong, kind

if TYPE_CHECKING:
    from dtrain.data.text_examples import TextExamples

TOKENS = 256  # every byte is one


class Span(NamedTuple):
    """The bytes of one part, and how many windows they are cut into."""

    path: Path
    start: int
    size: int  # bytes
    windows: int


@kind(Source, "text")
class Text(Source):
    """A text file in windows of bytes. Fields, each (length): `token`, `next_token`, `weight`.

    A token is a byte, so that any file in any language can be read, of any size, and evaluation meets none
    that is unknown; of ASCII each is a character. `token` is what a model reads, `next_token` what it is to
    say, one place ahead, and `weight` is 0 where that does not count. Where it does, weights add up to the
    characters of the part: 1 each in ASCII, less where UTF-8 has several bytes for one. Token 0, which no
    text has in it, is what is read before the first.

    The windows of training lie side by side, and begin elsewhere in each epoch; what is left over at
    both ends, less than two windows, waits for another. Those of evaluation overlap, so that what counts has
    at least `context` tokens before it, but for the beginning, and every byte counts exactly once.
    """

    path: Path  # a file of text
    # another file to evaluate on, or the share at the end of `path` that is held out for it
    evaluate: Path | Fraction = 0.1
    length: Positive  # tokens of a window
    # tokens of a window of evaluation that lead up to those that count; half of `length` if left out
    context: Natural | None = None

    evaluated = "evaluate"

    def __post_init__(self) -> None:
        if self.context is not None and self.context >= self.length:
            said = f"{self.context} leaves nothing of a window of {self.length}; a number below would do"
            raise Wrong("context", said)

    @property
    def stride(self) -> int:
        """Tokens that count in each window of evaluation but the first and the last."""
        return self.length - (self.length // 2 if self.context is None else self.context)

    def open(self, part: Part, seed: int) -> "TextExamples":
        from dtrain.data.text_examples import TextExamples

        return TextExamples(self, part, seed, span=self._span(part), fields=self._fields())

    def describe(self, part: Part, seed: int) -> Description:
        return Description(self._span(part).windows, self._fields())

    def _fields(self) -> dict[str, Field]:
        shape = (self.length,)
        return {
            "token": Field(shape, "int64", TOKENS),
            "next_token": Field(shape, "int64", TOKENS),
            "weight": Field(shape, "float32"),
        }

    def _span(self, part: Part) -> Span:
        """Where a part lies. Raises DataError where there is too little of it."""
        if isinstance(self.evaluate, Path):
            path, start = self.path if part == "train" else self.evaluate, 0
            size = _size(path)
        else:
            path, whole = self.path, _size(self.path)
            held_out = int(whole * self.evaluate)
            start, size = (0, whole - held_out) if part == "train" else (whole - held_out, held_out)
        least = 2 * self.length - 1 if part == "train" else 1
        if size < least:
            raise DataError(
                f"{path} has {size} bytes for {part}, but windows of {self.length} need {least}; "
                "a longer text or a shorter data.length would do"
            )
        if part == "train":
            return Span(path, start, size, (size - self.length + 1) // self.length)
        return Span(path, start, size, 1 + -(-max(size - self.length, 0) // self.stride))


def _size(path: Path) -> int:
    """The bytes of a file. Raises DataError if it is not there, or is none."""
    if not path.is_file():
        said = "is not a file" if path.exists() else "does not exist"
        raise DataError(f"{path} {said}; give the path of a file of text")
    return path.stat().st_size
