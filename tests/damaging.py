"""Checkpoints damaged in every way that a disk or an attacker has."""

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dtrain.errors import CheckpointError
from dtrain.format.files import MANIFEST, RECIPE, STATE, hash_of, sealed
from dtrain.format.hashes import digest_of, holds_tensors, part_of
from dtrain.format.safetensors_header import read_header

DEEP: Any = []
for _ in range(900):
    DEEP = [DEEP]
STRANGE = (
    *(None, True, False, -1, 0, 1, 7, 1 << 31, 1 << 60, 1 << 63, 1 << 64, 10**400, 0.5, -1e300, 1e308),
    *("", ".", "..", "../x", "/etc/passwd", "x" * 1000, "\ud800", "\0", "\x1b[2J", "a/b/c", "1"),
    *("F64", "I64", "C64", "F8_E4M3", [], {}, [[]], [1, 2], [-1], [1 << 62, 0], [1 << 63, 4]),
    *([1 << 40, 1 << 40], {"": 1}, {"a": {"b": []}}, DEEP),
)
RAW = (
    *("NaN", "Infinity", "-Infinity", "1e999", "[" * 5000, '{"a":' * 2000, '"a": 1, "a": 1', "1" * 5000),
    *("\\", "", "\xff"),
)
IN_TOML = (
    *("-1", "0", "1", "nan", "inf", "1e400", "1_000_000_000_000", "9" * 30, "9" * 5000, "true", "1979-05-27"),
    *('""', '"x"', "[]", "{}", "[" * 50, "[[1]]", '"os:system"', '"${env:HOME}"', '"../x"', '"\\u0000"'),
    *('"torch.nn:Linear"', '"gan"', '"fp64"', '"adamw"', '"sgd"', '"swa"', '"checkpoint"'),
)


def whole(form: int) -> Path:
    """The small checkpoint of a format: of the tiny GAN of conftest, after 4 of its 8 steps."""
    return Path(__file__).parent / "checkpoints" / f"format-{form}"


def copied(checkpoint: Path, run: Path) -> Path:
    """A copy of a checkpoint in the place where a run has its own."""
    step = json.loads((checkpoint / STATE).read_text())["step"]
    return Path(shutil.copytree(checkpoint, run / "checkpoints" / f"step-{step:08d}"))


def reseal(checkpoint: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
    """Write a manifest that fits whatever there is, as somebody can who may write the folder."""
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    del manifest["checksum"]
    form = manifest["format"]
    for file in checkpoint.iterdir():
        if file.name == MANIFEST or not file.is_file():
            continue
        try:
            digest = digest_of(file, form)
            data = file.read_bytes()
            for name, each in read_header(file).items() if holds_tensors(file.name) else ():
                own = hash_of(data[each.start : each.start + each.size], form)
                manifest["tensors"][f"{part_of(file.name)}/{name}"] = own
        except CheckpointError:
            digest = hash_of(file.read_bytes(), form)
        manifest["files"][file.name] = {"size": file.stat().st_size, "hash": digest}
    change(manifest)
    (checkpoint / MANIFEST).write_bytes(sealed(manifest))


def header(table: dict[str, Any] | str, values: int = 4, length: int | None = None) -> bytes:
    """A file of tensors that says whatever is wanted."""
    text = (table if isinstance(table, str) else json.dumps(table)).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(values)


# --- what is done to a checkpoint ---


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in JSON that something could stand in: what holds it, and its key."""
    for key in (
        list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from nodes(value[key])


def mutate(draw: random.Random, table: Any) -> None:
    """Put something strange into JSON, in one place or a few."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        places = list(nodes(table))
        if not places:
            return
        holder, key = draw.choice(places)
        match draw.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw.choice(["x", "..", "", "models/x", "\ud800", "__metadata__"])] = holder[key]
            case 2:
                other, there = draw.choice(places)
                with contextlib.suppress(LookupError):
                    holder[key] = other[there]
            case 3 if type(holder[key]) is int:
                holder[key] += draw.choice((-1, 1, 4, 8, 1 << 32, 1 << 63))
            case _:
                holder[key] = draw.choice(STRANGE)


def dumped(draw: random.Random, table: Any) -> bytes:
    """JSON as a file has it; at times with what is no JSON put into its text."""
    try:
        text = json.dumps(table)
    except (ValueError, RecursionError):  # what was put into itself
        text = "{}"
    if draw.random() < 0.2:
        words = [place for place, letter in enumerate(text) if letter in ",:[]{}"] or [0]
        place = draw.choice(words)
        text = text[: place + 1] + draw.choice(RAW) + text[place + draw.randrange(1, 9) :]
    return text.encode("utf-8", "surrogatepass")


def in_bytes(draw: random.Random, file: Path) -> None:
    """What a disk does to a file."""
    data = bytearray(file.read_bytes())
    place = draw.randrange(len(data) + 1)
    count = draw.choice((1, 1, 2, 8, 64, 512))
    match draw.randrange(6):
        case 0:
            data[place : place + count] = bytes(count)
        case 1:
            data[place:place] = draw.randbytes(count)
        case 2:
            del data[place : place + count]
        case 3:
            del data[place:]
        case 4:
            data += draw.randbytes(count)
        case _:
            for _ in range(count):
                if data:
                    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def in_place_of(draw: random.Random, file: Path) -> None:
    """Something else under the name of a file."""
    data = file.read_bytes()
    file.unlink()
    match draw.randrange(7):
        case 0:
            file.mkdir()
        case 1:
            os.mkfifo(file)
        case 2:
            file.symlink_to(file.name)
        case 3:
            file.symlink_to("/dev/zero")
        case 4:
            file.with_name("elsewhere").write_bytes(data)
            file.symlink_to("elsewhere")
        case 5:
            file.touch()
        case _:
            pass


def in_header(draw: random.Random, file: Path) -> None:
    """Another header before the same values."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    mutate(draw, table)
    text = dumped(draw, table)
    claimed = len(text) if draw.random() < 0.9 else draw.choice((0, 1, 1 << 60, (1 << 64) - 1, length))
    values = data[8 + length :]
    if draw.random() < 0.1:
        values = values[: draw.randrange(len(values) + 1)]
    file.write_bytes(claimed.to_bytes(8, "little") + text + values)


def in_types(draw: random.Random, file: Path) -> None:
    """The same bytes read as numbers of another type, or of another shape: all of it fits."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    name = draw.choice([key for key in table if key != "__metadata__"])
    entry = table[name]
    size = entry["data_offsets"][1] - entry["data_offsets"][0]
    dtype, width = draw.choice(
        (("U8", 1), ("F16", 2), ("I32", 4), ("F64", 8), ("C64", 8), ("I64", 8), ("BOOL", 1))
    )
    if size % width == 0:
        table[name] = {**entry, "dtype": dtype, "shape": draw.choice(([size // width], [1, size // width]))}
    if draw.random() < 0.3:
        table[draw.choice(["x", f"{name}/x", "other/0.weight", name.upper()])] = table.pop(name)
    text = json.dumps(table).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def in_json(draw: random.Random, file: Path) -> None:
    table = json.loads(file.read_bytes())
    mutate(draw, table)
    file.write_bytes(dumped(draw, table))


def in_recipe(draw: random.Random, file: Path) -> None:
    """Another recipe, which its author hopes will be read."""
    lines = file.read_text().splitlines()
    for _ in range(draw.choice((1, 1, 2, 5))):
        number = draw.randrange(len(lines))
        key, equals, _ = lines[number].partition(" = ")
        match draw.randrange(5):
            case 0:
                del lines[number]
            case 1:
                lines.insert(number, draw.choice(lines))
            case 2 if not equals and key.startswith("["):
                lines[number] = draw.choice(
                    ["[models.x]", "[[models.generator.layers]]", "[a.b.c]", "[data]"]
                )
            case _ if equals:
                lines[number] = f"{key} = {draw.choice(IN_TOML)}"
    file.write_bytes("\n".join(lines).encode() + draw.choice((b"", b"", b"", b"\xff\xfe", b"\0")))


def damage(draw: random.Random, checkpoint: Path) -> str:
    """Do one of all these things to a checkpoint, and say what."""
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    tensors = [path for path in files if holds_tensors(path.name)]
    indexes = [path for path in files if path.name.endswith(".index.json")] or tensors
    how, file, fits = draw.choice(
        (
            (in_bytes, draw.choice(files), False),
            (in_bytes, draw.choice(files[:-1]), True),
            (in_place_of, draw.choice(files), False),
            (in_header, draw.choice(tensors), True),
            (in_header, draw.choice(tensors), True),
            (in_types, draw.choice(tensors), True),
            (in_json, checkpoint / STATE, True),
            (in_json, checkpoint / STATE, True),
            (in_json if indexes is not tensors else in_header, draw.choice(indexes), True),
            (in_recipe, checkpoint / RECIPE, True),
            (in_json, checkpoint / MANIFEST, False),
        )
    )
    how(draw, file)
    if fits and file.name != MANIFEST:
        reseal(checkpoint)
    if file.name == MANIFEST and how is in_json:
        seal_anyway(file)
    return f"{how.__name__} {file.name}{' resealed' if fits else ''}"


def seal_anyway(manifest: Path) -> None:
    """Give a manifest the checksum of whatever it says, where it can be had."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        table = json.loads(manifest.read_bytes())
        table.pop("checksum", None)
        manifest.write_bytes(sealed(table))
