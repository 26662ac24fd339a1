"""Errors that a user can cause and mend. The CLI prints them without a traceback and exits with 2."""

from collections.abc import Sequence


class DtrainError(Exception):
    """Base of every error that is the user's to mend rather than ours."""

    is_shared = True  # all ranks raise the same; where not, each that raises it says so itself


class RecipeError(DtrainError):
    """One mistake in a recipe: `key` is the dotted TOML key, such as `optimizers.generator.lr`."""

    def __init__(self, key: str, message: str):
        super().__init__(f"{key}: {message}" if key else message)
        self.key = key
        self.message = message


class RecipeErrors(RecipeError):
    """Every mistake found in a recipe, at once."""

    def __init__(self, errors: Sequence[RecipeError], source: str):
        self.errors = tuple(errors)
        self.source = source
        lines = "\n".join(f"{source}: {error}" for error in errors)
        DtrainError.__init__(self, lines)
        self.key = errors[0].key
        self.message = errors[0].message


class DataError(DtrainError):
    """Data that is missing, unreadable, or not what the recipe says of it."""


class LaunchError(DtrainError):
    """The world that was started is not the one that was asked for."""


class CheckpointError(DtrainError):
    """A checkpoint is missing, incomplete, altered, cannot be written, or does not fit the recipe."""


class DivergedError(DtrainError):
    """A loss is no longer a finite number."""
