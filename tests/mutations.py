"""The mistakes that are put into recipes one at a time, and the rules by which some of them are none."""

import math
import re
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from mutating import Mutation, Scan, Token, entries, misspelt, position

REFERENCE = re.compile(r"\$\{([^{}:]+)\}")
CHOICES = {  # the words of each choice that a shipped recipe makes
    "loss": ("non_saturating", "hinge", "least_squares", "wasserstein"),
    "function": ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softplus"),
    "mode": ("max", "average", "global", "min", "nearest", "bilinear"),
    "precision": ("fp32", "fp64", "bf16", "fp16"),
    "kinds": ("console", "jsonl", "wandb"),
    "best": ("evaluate/loss", "evaluate/accuracy"),
}
KINDS = ("adam", "adamw", "sgd", "constant", "linear", "cosine")  # those that one letter might lead to
REQUIRED = {
    "name", "system", "models", "optimizers", "data", "train",
    "kind", "latent", "input", "layers", "lr", "path", "batch_size", "steps", "epochs",
    "out", "kernel", "shape", "function", "rate",
}  # fmt: skip
NUMBERS = ("out", "shape", "input", "latent", "kernel", "stride", "padding", "groups", "size", "factor")


def is_required(token: Token) -> bool:
    """Whether a recipe is broken without a key."""
    key = token.place[-1]
    if token.place[0] == "hyperparameters":
        return False  # what refers to it is wrong, not its table
    if token.place[0] == "averages":
        return key == "decay"
    if key == "mode":
        return "layers" in token.place  # of a pool
    return key in REQUIRED


# --- a letter ---


def in_key(scan: Scan, random: Random) -> Mutation | None:
    token = random.choice([t for t in scan.of("key", "header") if t.place[-1] != "*"])
    word = scan.text[token.start : token.end]
    return scan.mutation("key", token, misspelt(word, random), word=word)


def in_kind(scan: Scan, random: Random) -> Mutation | None:
    token = random.choice([t for t in scan.of("value") if t.place[-1] == "kind"])
    new = misspelt(token.value, random)
    return scan.mutation("kind", token, f'"{new}"', word=token.value, is_valid=new in KINDS)


def in_choice(scan: Scan, random: Random) -> Mutation | None:
    tokens = [t for t in scan.of("value") if isinstance(t.value, str) and _choice_of(t) in CHOICES]
    token = random.choice(tokens)
    new = misspelt(token.value, random)
    is_valid = new in CHOICES[_choice_of(token)]
    return scan.mutation("choice", token, f'"{new}"', word=token.value, is_valid=is_valid)


def _choice_of(token: Token) -> str:
    return next(str(part) for part in reversed(token.place) if isinstance(part, str))


def in_reference(scan: Scan, random: Random) -> Mutation | None:
    tokens = [t for t in scan.of("value") if isinstance(t.value, str) and REFERENCE.fullmatch(t.value)]
    if not tokens:
        return None
    token = random.choice(tokens)
    word = token.value[2:-1]
    return scan.mutation("reference", token, f'"${{{misspelt(word, random)}}}"', word=word)


def in_file(scan: Scan, random: Random) -> Mutation | None:
    token = scan.value_at(("data", "path"))
    while (new := misspelt(token.value, random)).startswith("/") or "//" in new:
        pass
    return scan.mutation("file", token, f'"{new}"', word=token.value)


# --- a value ---


def of_another_type(scan: Scan, random: Random) -> Mutation | None:
    token = random.choice(scan.of("value"))
    value = token.value
    if isinstance(value, str) and (found := REFERENCE.fullmatch(value)):
        value = scan.value_at(tuple(found[1].split("."))).value  # what else would do there
    return scan.mutation("type", token, random.choice(other_types(value)))


def other_types(value: Any) -> list[str]:
    """Values that can take the place of none of this type."""
    match value:
        case bool():
            return ['"true"', "1", "[true]", "{}"]
        case int():
            return [f'"{value}"', "true", f"{value}.5", f"[[{value}]]", "{ a = 1 }", "1979-05-27"]
        case float():
            return [f'"{value}"', "true", f"[{value}]", "{ a = 1 }", "07:32:00"]
        case str():
            return ["3", "true", "0.5", "[3]", "{ a = 1 }"]
        case list():
            return ["true", '"all"', "{ a = 1 }", "-1"]
        case _:
            return ["3", '"linear"', "true", '["linear"]']


# --- a key ---


def moved(scan: Scan, random: Random) -> Mutation | None:
    """A key with its value, to the begin or the end of another table."""
    pairs = [(key, value) for key, value in entries(scan) if is_of_section(scan, key)]
    key, value = random.choice(pairs)
    old = scan.section_of(key)
    new = random.choice([section for section in scan.sections if section != old])
    text = scan.text[key.start : value.end]
    at = random.choice((new.body, new.end))
    inside = new.place and new.place[0] == "hyperparameters"
    is_read = key.place[0] == "hyperparameters"
    is_valid = bool(inside) and not is_read and not is_required(key)
    what = f"{'.'.join(map(str, key.place))} -> [{'.'.join(map(str, new.place))}]"
    return moved_text(scan, (key.start, line_end(scan.text, value.end)), at, f"{text}\n", what, is_valid)


def moved_text(
    scan: Scan, cut: tuple[int, int], at: int, text: str, what: str, is_valid: bool, ahead: int = 0
) -> Mutation:
    """The text between two offsets put in elsewhere; what it begins with before the key is `ahead` long."""
    start, end = cut
    if at >= end:
        whole = scan.text[:start] + scan.text[end:at] + text + scan.text[at:]
        at -= end - start
    else:
        whole = scan.text[:at] + text + scan.text[at:start] + scan.text[end:]
    return Mutation("moved", what, whole, *position(whole, at + ahead), None, is_valid)


def is_of_section(scan: Scan, key: Token) -> bool:
    """Whether a key stands on a line of its own, and not in an inline table."""
    return key.place[:-1] == scan.section_of(key).place


def line_end(text: str, at: int) -> int:
    return text.find("\n", at) + 1


def dropped(scan: Scan, random: Random) -> Mutation | None:
    """A key that must be there, with its value."""
    key, value = random.choice([pair for pair in entries(scan) if is_required(pair[0])])
    return without(scan, key, value)


def without(scan: Scan, key: Token, value: Token) -> Mutation:
    what = ".".join(map(str, key.place))
    if is_of_section(scan, key):
        text = scan.text[: key.start] + scan.text[line_end(scan.text, value.end) :]
        return Mutation("dropped", what, text, *place_of_section(scan, key), None, False)
    table = scan.value_at(key.place[:-1])
    start, end = key.start, value.end
    if comma := re.match(r"\s*,\s*", scan.text[end:]):
        end += comma.end()
    elif comma := re.search(r"\s*,\s*$", scan.text[:start]):
        start = comma.start()
    text = scan.text[:start] + scan.text[end:]
    return Mutation("dropped", what, text, *position(text, table.start), None, False)


def place_of_section(scan: Scan, key: Token) -> tuple[int, int]:
    """Where the table's header stands; of the top the begin of the file."""
    section = scan.section_of(key)
    return position(scan.text, section.start) if section.place else (1, 1)


# --- a shape ---


def of_another_shape(scan: Scan, random: Random) -> Mutation | None:
    numbers = [
        t
        for t in scan.of("value")
        if type(t.value) is int and _choice_of(t) in NUMBERS and t.place[0] != "data"
    ]
    token = random.choice(numbers)
    old = token.value
    new = random.choice(
        (old + 1, old - 1, old * 2, old // 2, old * 10, old + random.randrange(2, 9), 3, 10, 64)
    )
    if new == old or new < (_choice_of(token) == "padding"):
        return None
    mutation = scan.mutation("shape", token, str(new))
    table = Scan(mutation.text).table
    return Mutation(**{**vars(mutation), "is_valid": fits(table)})


PICTURE, CLASSES = (1, 28, 28), 10  # of the data that comes with the recipes


def fits(table: Mapping[str, Any]) -> bool:
    """Whether the shapes of a shipped recipe agree: the formulas of the layers, worked out once more."""
    try:
        out = {name: shape_of(model) for name, model in table["models"].items()}
    except ValueError:
        return False
    inputs = {name: tuple(model["input"]) for name, model in table["models"].items()}
    if table["system"]["kind"] == "classifier":
        return (
            inputs["classifier"] == PICTURE
            and len(out["classifier"]) == 1
            and out["classifier"][0] >= CLASSES
        )
    return (
        inputs["generator"] == (table["system"]["latent"],)
        and out["generator"] == inputs["discriminator"] == PICTURE
        and out["discriminator"] == (1,)
    )


def shape_of(model: Mapping[str, Any]) -> tuple[int, ...]:
    shape = tuple(model["input"])
    for layer in model["layers"]:
        shape = after(layer, shape)
    return shape


def after(layer: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape behind a layer. Raises ValueError where there is none."""
    kind, pictures = layer["kind"], len(shape) == 3
    if kind == "linear" and len(shape) <= 2:
        return (*shape[:-1], layer["out"])
    if kind == "flatten":
        return (math.prod(shape),)
    if kind == "reshape" and math.prod(shape) == math.prod(layer["shape"]):
        return tuple(layer["shape"])
    if kind in ("activation", "dropout", "batch_norm") or (kind == "layer_norm" and not pictures):
        return shape
    if kind == "group_norm" and shape[0] % layer["groups"] == 0:
        return shape
    if kind in ("conv", "conv_transpose", "pool") and pictures:
        formula: Callable[[int], int] = {"conv": _conv, "conv_transpose": _transposed, "pool": _pool}[kind](
            layer
        )
        sides = [formula(side) for side in shape[1:]]
        if min(sides) > 0:
            return (layer.get("out", shape[0]), *sides)
    raise ValueError(f"{kind} does not take {shape}")


def _conv(layer: Mapping[str, Any]) -> Callable[[int], int]:
    padding, stride = layer.get("padding", 0), layer.get("stride", 1)
    return lambda side: (side + 2 * padding - layer["kernel"]) // stride + 1


def _transposed(layer: Mapping[str, Any]) -> Callable[[int], int]:
    padding, stride = layer.get("padding", 0), layer.get("stride", 1)
    return lambda side: (side - 1) * stride - 2 * padding + layer["kernel"]


def _pool(layer: Mapping[str, Any]) -> Callable[[int], int]:
    size = layer.get("size", 2)
    return lambda side: side // size


SORTS = {
    "key": in_key,
    "kind": in_kind,
    "choice": in_choice,
    "reference": in_reference,
    "file": in_file,
    "type": of_another_type,
    "moved": moved,
    "dropped": dropped,
    "shape": of_another_shape,
}
