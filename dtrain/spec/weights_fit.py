"""Whether the tensors of a file are those of a model, name by name, known by their headers alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dtrain.errors import RecipeError
from dtrain.spec.initial import Shape
from dtrain.spec.weights import WeightsFile, captured, renamed
from dtrain.spec.weights_rules import rules_for
from dtrain.spec.words import Place, dotted, nearest, quoted, show

SHOWN = 12  # names that are shown of each sort
RULES = 8  # that are proposed
FEW, MOST = 5, 50  # patterns that fit nothing, and names of a shape, for which a near one is looked for
LONGEST = 120  # letters of a name that are shown
FRACTIONS, WHOLE, TRUTH, COMPLEX = "fractions", "whole numbers", "true and false", "complex numbers"
SORTS = {  # of what safetensors calls its types; those of 8 bits need scales, so they are of no sort
    **dict.fromkeys(("F64", "F32", "F16", "BF16"), FRACTIONS),
    **dict.fromkeys((f"{kind}{bits}" for kind in "IU" for bits in (8, 16, 32, 64)), WHOLE),
    "BOOL": TRUTH,
    "C64": COMPLEX,
}


class Tensor(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: Shape
    sort: str  # of its numbers; "" where nothing is demanded
    dtype: str = ""  # as the file names it


@dataclass
class Fit:
    """Which tensor of a file goes where in a model, and which go nowhere."""

    source: WeightsFile
    given: Mapping[str, Tensor]  # of the file
    own: Mapping[str, Tensor]  # of the model
    taken: dict[str, str] = field(default_factory=dict)  # name in the model to name in the file
    twins: list[tuple[str, str]] = field(default_factory=list)  # two of the file that are one in the model
    missing: list[str] = field(default_factory=list)  # of the model
    unexpected: list[str] = field(default_factory=list)  # of the file
    misshaped: list[str] = field(default_factory=list)  # of the model
    doubled: dict[str, list[str]] = field(default_factory=dict)  # of the model: several of the file
    unused: list[str] = field(default_factory=list)  # patterns

    def in_words(self) -> str:
        """How many tensors of the model come from the file, and which do not."""
        lines = [f"{len(self.taken)} of {len(self.own)} tensors from {self.source.path}"]
        if self.missing:
            lines.append(f"first values as without it: {_some(self.missing)}")
        if left := [name for name in self.given if name not in self._used()]:
            lines.append(f"left in the file: {_some(left)}")
        return "; ".join(lines)

    def mistakes(self, place: Place) -> list[RecipeError]:
        """What is wrong, each thing at its key; `place` is that of the model's `weights`."""
        errors = [
            RecipeError(dotted((*place, "names", pattern)), self._said_of_unused(pattern), is_key=True)
            for pattern in self.unused
        ]
        if self.doubled:
            pairs = [
                f"{_short(name)}: {' and '.join(map(_short, files))}" for name, files in self.doubled.items()
            ]
            said = f"{self._path}: several of its names become one of the model's; names = {{ ... }} tells"
            errors.append(RecipeError(dotted(place), f"{said} them apart", details=pairs[:SHOWN]))
        counts = {"of another shape or type": self.misshaped}
        if not self.source.partial:
            counts |= {"missing": self.missing, "unexpected": self.unexpected}
        said = ", ".join(f"{len(names)} {what}" for what, names in counts.items() if names)
        if said:
            said = f"{self._path} does not fit the model ({said})"
        elif not self.taken and not self.doubled:
            counts = {"missing": self.missing, "unexpected": self.unexpected}
            said = f"{self._path} has none of the model's names"
        if said:
            details = [line for what, names in counts.items() for line in self._listed(what, names)]
            errors.append(RecipeError(dotted(place), f"{said}; {self._advice(counts)}", details=details))
        return errors

    @property
    def _path(self) -> str:
        return str(self.source.path)

    def _used(self) -> set[str]:
        return {*self.taken.values(), *(one for pair in self.twins for one in pair)}

    def _said_of_unused(self, pattern: str) -> str:
        if any(captured(pattern, name) is not None for name in self.given):
            return "patterns before it rename all that it fits; before them it would do"
        near = nearest(pattern, self.given) if len(self.unused) < FEW else None
        return f"fits no name of the file{f', which has {_short(near)}' if near else ''}"

    def _listed(self, what: str, names: list[str]) -> Iterator[str]:
        """A line for each name with which one thing is wrong, the first of them."""
        for name in names[:SHOWN]:
            if what == "missing":
                yield f"missing: {_short(name)} {self.own[name].shape}{self._alike(name)}"
            elif what == "unexpected":
                yield f"unexpected: {_short(name)} {self.given[name].shape}"
            else:
                yield self._misshaped(name)
        if len(names) > SHOWN:
            yield f"and {len(names) - SHOWN:,} more {what}"

    def _misshaped(self, name: str) -> str:
        file = self.taken[name]
        ours, theirs = self.own[name], self.given[file]
        numbers: tuple[object, object] = (theirs.shape, ours.shape)
        if ours.shape == theirs.shape:
            numbers = (f"{theirs.sort or 'numbers that need a scale'}, {theirs.dtype},", ours.sort)
        what = f"{_short(name)}{'' if file == name else f' ({_short(file)} in the file)'}"
        return f"{what}: {numbers[0]} in the file, {numbers[1]} in the model"

    def _alike(self, name: str) -> str:
        """The name in the file that a missing one likely has there."""
        shape = self.own[name].shape
        alike = [file for file in self.unexpected if self.given[file].shape == shape][:MOST]
        near = nearest(name, alike) or (alike[0] if len(alike) == 1 else None)
        return f"; {_short(near)} of the file has this shape" if near else ""

    def _advice(self, wrong: Mapping[str, list[str]]) -> str:
        """What would do, from what the names and shapes say."""
        ways = []
        fits = len(self.taken) - len(self.misshaped)
        if self.misshaped:
            left = f"names = {_in_toml({self.taken[self.misshaped[0]]: ''})} leaves one out"
            ways.append(left + ("" if self.source.partial else ", with partial = true"))
        elif fits and not self.source.partial:
            ways.append(f"partial = true takes the {fits} that fit")
        if wrong.get("missing") and wrong.get("unexpected"):
            own = {name: self.own[name].shape for name in self.missing}
            given = {name: self.given[name].shape for name in self.unexpected}
            rules = dict(list(rules_for(given, own).items())[:RULES])
            count = sum(name in own for name in renamed(given, rules)[0].values())
            found = f"names = {_in_toml(rules)} would bring {count} together"
            ways.append(found if rules else 'names = { "name in the file" = "name in the model" } would do')
        return ", ".join(ways) or "another file would do"


def fit(
    source: WeightsFile,
    given: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    tied: Mapping[str, str],
) -> Fit:
    """Compare what a file has with what a model has; of `tied` names of the model, the one for each."""
    names, unused = renamed(given, source.names)
    found = Fit(source, given, own, unused=unused)
    wanted: dict[str, dict[str, list[str]]] = {}  # name in the model, the same or one tied to it, of the file
    for file, name in names.items():
        if name:
            wanted.setdefault(tied.get(name, name), {}).setdefault(name, []).append(file)
    for name, ways in wanted.items():
        if several := [files for files in ways.values() if len(files) > 1]:
            found.doubled[name] = several[0]
        first, *others = [
            files[0] for files in sorted(ways.values(), key=lambda files: names[files[0]] != name)
        ]
        found.twins += [(first, other) for other in others]
        if name not in own:
            found.unexpected += [file for files in ways.values() for file in files]
            continue
        found.taken[name] = first
    found.missing = [name for name in own if name not in found.taken]
    for name, ours in own.items():
        theirs = given[found.taken[name]] if name in found.taken else ours
        if ours.shape != theirs.shape or (ours.sort and ours.sort != theirs.sort):
            found.misshaped.append(name)
    return found


def _in_toml(names: Mapping[str, str]) -> str:
    return "{ " + ", ".join(f"{quoted(key)} = {quoted(name)}" for key, name in names.items()) + " }"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(_short(name) for name in names[:SHOWN]) + more


def _short(name: str) -> str:
    """A name as it is shown: whole, but for one that is longer than any that people think of."""
    return name if len(name) <= LONGEST else show(name)
