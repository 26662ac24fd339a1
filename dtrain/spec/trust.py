"""What a recipe may import: anything, or what stands on a list. Decided without importing."""

import re
from dataclasses import dataclass
from pathlib import Path

from dtrain.errors import DtrainError

OWN = Path(__file__).parents[1]  # dtrain's folder
TORCH = ("torch.nn", "torch.optim", "torch.optim.lr_scheduler")
# Not dtrain.data: its sources have short names, by which their paths are kept within the recipe's folder.
SYSTEMS = re.compile(r"dtrain\.systems\.([a-z]\w*)")
PATH = re.compile(r"(?P<home>[^\W\d]\w*(\.[^\W\d]\w*)*|[^:\0]*\.py):(?P<name>[^\W\d]\w*(\.[^\W\d]\w*)*)")
LONGEST = 1000  # letters of an import path
PLAIN = re.compile(r"[A-Za-z]\w*", re.ASCII)
TRUSTED_NAME = r"[^\W\d]\w*(\.[^\W\d]\w*)*(:[^\W\d]\w*)?|/[^:]*\.py:[^\W\d]\w*"


class ImportPathError(ValueError):
    """An import path names nothing, or something that may not be reached."""

    def __init__(self, message: str, suggestion: str | None = None):
        super().__init__(message + ("" if suggestion is None else f'; did you mean "{suggestion}"?'))
        self.message = message
        self.suggestion = suggestion  # the path that was meant


@dataclass(frozen=True)
class ImportPath:
    """`package.module:Name`, or `./my_system.py:MySystem` with the file that it names."""

    text: str
    module: str  # a local file's is its stem
    name: str
    file: Path | None = None

    @property
    def package(self) -> str:
        """The package at the top."""
        return self.module.partition(".")[0]


def is_import_path(text: str) -> bool:
    """Whether a string looks like an import path."""
    return len(text) <= LONGEST and PATH.fullmatch(text) is not None


def parse(text: str) -> ImportPath:
    """Take an import path apart. Raises ImportPathError if it is none."""
    if len(text) > LONGEST:
        raise ImportPathError(f"found an import path of {len(text)} letters; at most {LONGEST} would do")
    found = PATH.fullmatch(text)
    if found is None:
        raise ImportPathError(
            f"{text!r} is not an import path; package.module:Name or ./file.py:Name would do"
        )
    home, name = found["home"], found["name"]
    if not home.endswith(".py"):
        return ImportPath(text, home, name)
    file = Path(home).absolute()
    if not file.stem.isidentifier():
        raise ImportPathError(
            f"{text!r}: a file is imported as a module of its name, and {file.stem!r} cannot be one; "
            "letters, digits and underscores would do"
        )
    return ImportPath(text, file.stem, name, file)


@dataclass(frozen=True)
class Trust:
    """Whether a recipe may import everything that it names, or only what is on a list.

    On the list stand torch's modules, optimizers and schedules, dtrain's own systems, and `names`: packages,
    of which classes of the right sort may be used, `package.module:function` and `/folder/file.py:Name`.
    Raises DtrainError if a name is none of these.
    """

    everything: bool = False
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.names:
            if not re.fullmatch(TRUSTED_NAME, name):
                would = "a package, package.module:function or /folder/file.py:Name would do"
                raise DtrainError(f"cannot trust {name!r}; {would}")

    def names_whole(self, path: ImportPath) -> bool:
        """Whether this very path is trusted, and not only the package that it lies in."""
        return self.everything or path.text in self.names

    def covers(self, module: str) -> bool:
        """Whether a module is of a package that is trusted."""
        return self.everything or self._covers(module)

    def refusal(self, path: ImportPath) -> str | None:
        """Why nothing may be imported for a path; None if it may."""
        if self.names_whole(path):
            return None
        if path.file is not None:
            return (
                f"{path.text!r} is a local file, which is not imported for a recipe from elsewhere; "
                f"if you trust it, name it whole: --trust {path.file}:{path.name}"
            )
        if not PLAIN.fullmatch(path.name):
            return (
                f"{path.text!r} reaches into what it names; for a recipe from elsewhere one class, "
                "without dots and not first an underscore, would do"
            )
        if self._covers(path.module) or path.module in TORCH or _is_own(path.module):
            return None
        if path.package in ("torch", "dtrain"):
            return (
                f"{path.text!r} is not for a recipe from elsewhere; "
                f"{', '.join(TORCH)} and dtrain.systems would do"
            )
        return f"{path.text!r} is not in a trusted package; if you trust it, name it: --trust {path.package}"

    def is_home(self, module: str, path: ImportPath) -> bool:
        """Whether what a path gave, defined in `module`, is its package's own."""
        homes = [name for name in self.names if is_inside(path.module, name)]
        if path.module in TORCH or _is_own(path.module):
            homes.append(path.package)
        return any(is_inside(module, home) for home in homes)

    def _covers(self, module: str) -> bool:
        is_program = any(part.startswith("__") for part in module.split("."))
        return not is_program and any(is_inside(module, name) for name in self.names)


EVERYTHING = Trust(everything=True)


def is_inside(module: str, package: str) -> bool:
    """Whether a module is a package, or in it."""
    return module == package or module.startswith(f"{package}.")


def _is_own(module: str) -> bool:
    found = SYSTEMS.fullmatch(module)
    return found is not None and (OWN / "systems" / f"{found[1]}.py").is_file()
