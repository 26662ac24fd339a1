"""Whom a command trusts: what it was told, and the user's own config file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tomli

from dtrain.errors import DtrainError
from dtrain.spec.decode import decoded
from dtrain.spec.table import Matching, Table, table
from dtrain.spec.trust import TRUSTED_NAME, Trust

TrustedName = Annotated[
    str, Matching(TRUSTED_NAME, "a package, package.module:function or /folder/file.py:Name")
]


@table
class Config(Table):
    """The keys of the config file."""

    trust: tuple[TrustedName, ...] = ()  # packages that recipes from elsewhere may import from, too


def trust_of(untrusted: bool, names: Sequence[str]) -> Trust:
    """What recipes may import: everything, unless they are `untrusted`, and else what stands on the list.

    On the list are `names` and those of the config file. Raises DtrainError if either is not as it should be.
    """
    return Trust(everything=not untrusted, names=(*names, *read_config(config_path()).trust))


def config_path() -> Path:
    """Where the config file lies, if there is one."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    folder = Path(home) if os.path.isabs(home) else Path.home() / ".config"  # as its specification says
    return folder / "dtrain" / "config.toml"


def read_config(path: Path) -> Config:
    """Read the config file; one that is not there says nothing. Raises DtrainError if it cannot be read."""
    try:
        table = tomli.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return Config()
    except (OSError, ValueError) as error:
        raise DtrainError(f"{path} cannot be read: {error}") from None
    config: Config = decoded(Config, table, source=str(path))
    return config
