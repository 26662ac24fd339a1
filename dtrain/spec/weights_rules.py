"""Which names of a file are likely those that a model lacks, by their ends and shapes."""

from collections import Counter
from collections.abc import Iterator, Mapping

from dtrain.spec.initial import Shape

MOST = 300  # names of one end and shape that are compared with each other


def rules_for(given: Mapping[str, Shape], own: Mapping[str, Shape]) -> dict[str, str]:
    """Patterns that turn names of a file into names of a model, most of them of the same shapes.

    Each changes what stands before the dots that two names have in common: `encoder.*` to `0.*`. One is
    proposed only if no other would do as well for the same names.
    """
    votes = Counter(
        (first, second)
        for theirs, ours in _alike(given, own)
        if (first := _before(theirs, ours)) is not None and (second := _before(ours, theirs)) is not None
    )
    good = {pair: count for pair, count in votes.items() if _fits(pair, given, own)}
    rules: dict[str, str] = {}
    explained: set[str] = set()
    for (first, second), count in sorted(good.items(), key=lambda item: (-item[1], item[0])):
        names = _under(first, given)
        rivals = [n for (a, b), n in good.items() if (a == first) != (b == second)]
        if names & explained or any(n >= count for n in rivals):
            continue
        rules[_pattern(first)] = _pattern(second)
        explained |= names
    return rules


def _alike(given: Mapping[str, Shape], own: Mapping[str, Shape]) -> Iterator[tuple[str, str]]:
    """Pairs of names with the same last part and shape."""
    groups: dict[tuple[str, Shape], list[str]] = {}
    for name, shape in own.items():
        groups.setdefault((name.rpartition(".")[2], shape), []).append(name)
    counts: Counter[tuple[str, Shape]] = Counter()
    for name, shape in given.items():
        key = (name.rpartition(".")[2], shape)
        counts[key] += 1
        if counts[key] <= MOST:
            yield from ((name, other) for other in groups.get(key, ())[:MOST])


def _before(name: str, other: str) -> str | None:
    """What of a name stands before the parts that end both."""
    parts, others = name.split("."), other.split(".")
    while parts and others and parts[-1] == others[-1]:
        parts.pop()
        others.pop()
    return ".".join(parts)


def _fits(pair: tuple[str, str], given: Mapping[str, Shape], own: Mapping[str, Shape]) -> bool:
    """Whether every name under the first prefix becomes one of the model's."""
    first, second = pair
    return all(_moved(name, first, second) in own for name in _under(first, given))


def _under(prefix: str, names: Mapping[str, Shape]) -> set[str]:
    return {name for name in names if not prefix or name.startswith(f"{prefix}.")}


def _moved(name: str, first: str, second: str) -> str:
    rest = name.removeprefix(f"{first}.") if first else name
    return f"{second}.{rest}" if second else rest


def _pattern(prefix: str) -> str:
    return f"{prefix}.*" if prefix else "*"
