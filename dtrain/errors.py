"""Errors that a user can cause and mend. The CLI prints them without a traceback and exits with 2."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

LONGEST = 200  # characters of a key that are shown


class DtrainError(Exception):
    """Base of every error that is the user's to mend rather than ours."""

    is_shared = True  # all ranks raise the same; where not, each that raises it says so itself


class Spot(NamedTuple):
    """A stretch of one line of a recipe, or of an argument of the command line."""

    source: str  # the file's path, or "argument 2"
    line: int  # counted from 1; 0 in an argument, which has one line alone
    column: int  # counted from 1, in characters
    length: int  # in characters, at least 1
    text: str  # the whole line

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else f"{self.source}:{self.column}"


class RecipeError(DtrainError):
    """One mistake in a recipe: `key` is the dotted TOML key, such as `optimizers.generator.lr`.

    `is_key` says that the key itself is wrong rather than its value; `suggestion` is the word that would do,
    where one is near; `within` is the first character of a string that is wrong, from 0, and how many are;
    `spot` is where the mistake was written, where that is known; `details` are lines to stand below it.
    """

    def __init__(
        self,
        key: str,
        message: str,
        *,
        is_key: bool = False,
        suggestion: str | None = None,
        within: tuple[int, int] | None = None,
        spot: Spot | None = None,
        details: Sequence[str] = (),
    ):
        hint = "" if suggestion is None else f'; did you mean "{suggestion}"?'
        shown = key if len(key) <= LONGEST else f"{key[: LONGEST // 2]}...{key[-LONGEST // 2 :]}"
        said = f"{shown}: {message}{hint}" if key else f"{message}{hint}"
        self.sentence = f"{spot}: {said}" if spot else said
        super().__init__("\n    ".join([self.sentence, *details]))
        self.key = key
        self.message = message + hint
        self.is_key = is_key
        self.suggestion = suggestion
        self.within = within
        self.spot = spot
        self.details = tuple(details)

    def written_at(self, key: str, spot: Spot | None, remark: str = "") -> "RecipeError":
        """The same mistake under the key and at the place where it was written."""
        said = self.message + remark
        moved = RecipeError(key, said, is_key=self.is_key, spot=spot, details=self.details)
        moved.suggestion = self.suggestion
        return moved


class RecipeErrors(RecipeError):
    """Every mistake found in a recipe, at once, in the order in which they were written."""

    def __init__(self, errors: Sequence[RecipeError], source: str):
        self.errors = tuple(errors)
        self.source = source
        lines = "\n".join(str(error) if error.spot else f"{source}: {error}" for error in errors)
        DtrainError.__init__(self, lines)
        first = self.errors[0]
        self.key, self.message, self.spot = first.key, first.message, first.spot
        self.is_key, self.suggestion, self.within = first.is_key, first.suggestion, first.within
        self.sentence, self.details = first.sentence, first.details


class DataError(DtrainError):
    """Data that is missing, unreadable, or not what the recipe says of it."""


class LaunchError(DtrainError):
    """The world that was started is not the one that was asked for."""


class RankError(DtrainError):
    """Some rank failed, and all of them end; it has been printed. `status` is what the processes end with."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class CheckpointError(DtrainError):
    """A checkpoint, or a file of weights, is missing, incomplete, altered, or does not fit the recipe.

    Or it cannot be written.
    """


class DivergedError(DtrainError):
    """A loss, a gradient or a weight is no longer a finite number; `checkpoint` is the last from before."""

    def __init__(self, message: str, checkpoint: Path | None):
        super().__init__(message)
        self.checkpoint = checkpoint
