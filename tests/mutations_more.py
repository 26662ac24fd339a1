"""More mistakes than letters and single keys: tables, layers, duplicates, capitals, TOML itself."""

import re
from random import Random

from mutating import LETTERS, Mutation, Scan, Section, Token, entries, misspelt, position
from mutations import REFERENCE, fits, is_of_section, is_required, line_end, moved_text, other_types

ANY = LETTERS + LETTERS.upper() + "0123456789_"
REQUIRED_TABLES = ("system", "optimizers", "data", "train")


def any_letter(scan: Scan, random: Random) -> Mutation | None:
    """Any character in place of any other, in keys, kinds and choices."""
    words = [t for t in scan.of("key", "header") if t.place[-1] != "*"]
    words += [t for t in scan.of("value") if t.place[-1] in ("kind", "function", "mode", "precision")]
    token = random.choice(words)
    text = scan.text[token.start : token.end]
    word = text.strip('"')
    at = random.randrange(len(word))
    new = word[:at] + random.choice(ANY) + word[at + 1 :]
    if new == word:
        return None
    return scan.mutation("letter", token, text.replace(word, new), word=word)


def two_letters(scan: Scan, random: Random) -> Mutation | None:
    """Two mistakes in one long word."""
    token = random.choice([t for t in scan.of("key", "header") if len(str(t.place[-1])) > 7])
    word = scan.text[token.start : token.end]
    new = misspelt(misspelt(word, random), random)
    return None if new == word else scan.mutation("two letters", token, new, word=word)


def case_or_dash(scan: Scan, random: Random) -> Mutation | None:
    """A capital, or - in place of _."""
    token = random.choice([t for t in scan.of("key", "header") if t.place[-1] != "*"])
    word = scan.text[token.start : token.end]
    new = random.choice((word.capitalize(), word.upper(), word.replace("_", "-"), word.replace("_", "")))
    return None if new == word else scan.mutation("case", token, new, word=word)


def plural(scan: Scan, random: Random) -> Mutation | None:
    token = random.choice([t for t in scan.of("key", "header") if t.place[-1] != "*"])
    word = scan.text[token.start : token.end]
    new = word[:-1] if word.endswith("s") else word + "s"
    return scan.mutation("plural", token, new, word=word, is_valid=False)


def scalar_table(scan: Scan, random: Random) -> Mutation | None:
    """An inline table, an array or a section as a single value."""
    tokens = [t for t in scan.of("value") if isinstance(t.value, dict | list)]
    token = random.choice(tokens)
    return scan.mutation("scalar", token, random.choice(other_types(token.value)[:2]))


def scalar_section(scan: Scan, random: Random) -> Mutation | None:
    section = random.choice([s for s in scan.sections if len(s.place) == 1])
    new = f"{section.place[0]} = 3\n"
    text = scan.text[: section.start] + scan.text[section.end :]
    at = scan.sections[0].end
    text = text[:at] + new + text[at:]
    return Mutation("section", str(section.place), text, *position(text, at + len(new) - 2), None, False)


def quoted(scan: Scan, random: Random) -> Mutation | None:
    """A number or a truth as a string, or a string without its quotes."""
    token = random.choice([t for t in scan.of("value") if not isinstance(t.value, list | dict)])
    if isinstance(token.value, str):
        bare = token.value if re.fullmatch(r"[a-z_][\w/.]*", token.value) else "word"
        return scan.mutation("quotes", token, bare)
    return scan.mutation("quotes", token, f'"{scan.text[token.start : token.end]}"')


def layer_key_out(scan: Scan, random: Random) -> Mutation | None:
    """A key of an inline table in a section's table."""
    inline = [(k, v) for k, v in entries(scan) if not is_of_section(scan, k)]
    key, value = random.choice(inline)
    section = random.choice([s for s in scan.sections if s.place])
    in_hyperparameters = section.place[0] == "hyperparameters"
    if key.place[-1] in _keys_of(scan, section) or (in_hyperparameters and not is_required(key)):
        return None
    text = scan.text[key.start : value.end] + "\n"
    return moved_text(
        scan, _cut(scan, key, value), section.end, text, f"{key.place} -> {section.place}", False
    )


def section_key_in(scan: Scan, random: Random) -> Mutation | None:
    """A key of a section's table in an inline one."""
    key, value = random.choice([(k, v) for k, v in entries(scan) if is_of_section(scan, k)])
    tables = [t for t in scan.of("value") if isinstance(t.value, dict) and key.place[-1] not in t.value]
    tables = [t for t in tables if not value.start <= t.start < value.end]
    if not tables or "\n" in scan.text[key.start : value.end]:
        return None
    table = random.choice(tables)
    text = ", " + scan.text[key.start : value.end]
    at = table.end - 1 - (scan.text[table.end - 2] == " ")
    cut = (key.start, line_end(scan.text, value.end))
    return moved_text(scan, cut, at, text, f"{key.place} -> {table.place}", False, ahead=2)


def layer_to_layer(scan: Scan, random: Random) -> Mutation | None:
    """A key of one layer in another."""
    inline = [(k, v) for k, v in entries(scan) if "layers" in k.place[:-1]]
    key, value = random.choice(inline)
    if not is_required(key) or key.place[-1] == "kind":
        return None
    tables = [t for t in scan.of("value") if isinstance(t.value, dict) and "layers" in t.place]
    table = random.choice([t for t in tables if key.place[-1] not in t.value] or [None])
    if table is None:
        return None
    at = table.end - 1 - (scan.text[table.end - 2] == " ")
    text = ", " + scan.text[key.start : value.end]
    cut = _cut(scan, key, value)
    return moved_text(scan, cut, at, text, f"{key.place} -> {table.place}", False, ahead=2)


def table_dropped(scan: Scan, random: Random) -> Mutation | None:
    section = random.choice([s for s in scan.sections if s.place and s.place[0] in REQUIRED_TABLES])
    text = scan.text[: section.start] + scan.text[section.end :]
    return Mutation("table dropped", str(section.place), text, 1, 1, None, False)


def doubled(scan: Scan, random: Random) -> Mutation | None:
    """A key with its value once more, at the end of its table."""
    key, value = random.choice([(k, v) for k, v in entries(scan) if is_of_section(scan, k)])
    at = scan.section_of(key).end
    text = scan.text[:at] + scan.text[key.start : value.end] + "\n" + scan.text[at:]
    return Mutation("doubled", str(key.place), text, *position(text, at), None, False)


def doubled_inline(scan: Scan, random: Random) -> Mutation | None:
    key, value = random.choice([(k, v) for k, v in entries(scan) if not is_of_section(scan, k)])
    more = ", " + scan.text[key.start : value.end]
    text = scan.text[: value.end] + more + scan.text[value.end :]
    return Mutation("doubled", str(key.place), text, *position(text, value.end + 2), None, False)


def array_item(scan: Scan, random: Random) -> Mutation | None:
    """A shape with a number more or fewer."""
    arrays = [t for t in scan.of("value") if t.place[-1] in ("input", "shape", "betas")]
    token = random.choice(arrays)
    items = [str(item) for item in token.value]
    if random.random() < 0.5:
        items.insert(random.randrange(len(items) + 1), random.choice(("2", "7", "28")))
    else:
        items.pop(random.randrange(len(items)))
    mutation = scan.mutation("items", token, f"[{', '.join(items)}]")
    is_valid = token.place[-1] != "betas" and fits(Scan(mutation.text).table)
    return Mutation(**{**vars(mutation), "is_valid": is_valid})


def negative(scan: Scan, random: Random) -> Mutation | None:
    token = random.choice(
        [t for t in scan.of("value") if type(t.value) in (int, float) and t.place[-1] != "slope"]
    )
    return scan.mutation(
        "range", token, random.choice((f"-{token.value or 1}", "nan", "inf", "-inf", "1e400"))
    )


def wrong_kind(scan: Scan, random: Random) -> Mutation | None:
    """A kind of another family."""
    token = random.choice([t for t in scan.of("value") if t.place[-1] == "kind"])
    other = random.choice([t for t in scan.of("value") if t.place[-1] == "kind"])
    if (
        token.place[0] == other.place[0]
        or token.value == other.value
        or "linear" in (token.value, other.value)
    ):
        return None
    return scan.mutation("other kind", token, f'"{other.value}"')


def reference_lost(scan: Scan, random: Random) -> Mutation | None:
    """A reference to what is not there, or with a part of it gone."""
    tokens = [t for t in scan.of("value") if isinstance(t.value, str) and REFERENCE.fullmatch(t.value)]
    if not tokens:
        return None
    token = random.choice(tokens)
    word = token.value[2:-1]
    new = random.choice(
        (word.split(".")[-1], f"hyperparameters.{word.split('.')[-1]}s", f"{word}.x", "", word + ".")
    )
    return scan.mutation("reference lost", token, f'"${{{new}}}"')


def reference_to_itself(scan: Scan, random: Random) -> Mutation | None:
    token = random.choice([t for t in scan.of("value") if len(t.place) == 2])
    name = ".".join(map(str, token.place))
    if "*" in name:
        return None
    return scan.mutation("circle", token, f'"${{{name}}}"')


def _keys_of(scan: Scan, section: Section) -> set[object]:
    return {t.place[-1] for t in scan.of("key") if t.place[:-1] == section.place}


def _cut(scan: Scan, key: Token, value: Token) -> tuple[int, int]:
    """A pair of an inline table, with one comma."""
    if comma := re.match(r"\s*,\s*", scan.text[value.end :]):
        return key.start, value.end + comma.end()
    comma = re.search(r"\s*,\s*$", scan.text[: key.start])
    return (comma.start() if comma else key.start), value.end


SORTS = {
    "any letter": any_letter,
    "two letters": two_letters,
    "case": case_or_dash,
    "plural": plural,
    "scalar": scalar_table,
    "section": scalar_section,
    "quotes": quoted,
    "out of a layer": layer_key_out,
    "into a layer": section_key_in,
    "between layers": layer_to_layer,
    "table dropped": table_dropped,
    "doubled": doubled,
    "doubled inside": doubled_inline,
    "items": array_item,
    "range": negative,
    "other kind": wrong_kind,
    "reference lost": reference_lost,
    "circle": reference_to_itself,
}
