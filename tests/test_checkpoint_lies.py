"""Checkpoints made to mislead, by somebody who writes a manifest that fits: they are refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damaging import RAW, STRANGE, header, reseal
from readers import read_in_all_ways

from dtrain.format.files import LARGEST, MANIFEST, STATE, sealed

F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def tensor(**said: Any) -> dict[str, Any]:
    return {"generator/0.bias": {**F32, **said}}


HEADERS = {
    "claims 2^60 bytes": header(tensor(), length=1 << 60),
    "claims 2^64 - 1 bytes": header(tensor(), length=(1 << 64) - 1),
    "claims nothing": header(tensor(), length=0),
    "is empty": b"",
    "is half a length": b"\0\0\0",
    "is a list": header("[]"),
    "is a pickle": b"\x80\x04\x95" + bytes(100),
    "has NaN": header('{"a": NaN}'),
    "has more than a number can be": header('{"a": 1e999}'),
    "is deep": header('{"a":' * 100_000),
    "is deep in lists": header('{"a":' + "[" * 500_000),
    "says a tensor twice": header(f'{{"a": {json.dumps(F32)}, "a": {json.dumps(F32)}}}'),
    "is in UTF-16": header(json.dumps(tensor()).encode("utf-16").decode("latin-1")),
    "has 10^6 tensors": header("{" + ",".join(f'"{n}":{json.dumps(F32)}' for n in range(1_000_000)) + "}"),
    "has as many as fit": header("{" + ",".join(f'"{n}":{json.dumps(F32)}' for n in range(200_000)) + "}"),
    "lays tensors over another": header({"a": F32, "b": {**F32, "data_offsets": [2, 6]}}, 6),
    "lays tensors on the same place": header({"a": F32, "b": F32}),
    "leaves a gap": header({"a": F32, "b": {**F32, "data_offsets": [8, 12]}}, 12),
    "leaves the end": header(tensor(), 8),
    "goes beyond the end": header(tensor(shape=[1 << 40], data_offsets=[0, 1 << 42])),
    "goes backwards": header(tensor(data_offsets=[4, 0])),
    "begins before the file": header(tensor(data_offsets=[-4, 0])),
    "has fractions": header(tensor(data_offsets=[0.0, 4.0])),
    "has truths": header(tensor(shape=[True])),
    "has three offsets": header(tensor(data_offsets=[0, 2, 4])),
    "has a shape that overflows": header(tensor(shape=[1 << 40, 1 << 40], data_offsets=[0, 1 << 82])),
    "has a shape that overflows to its size": header(tensor(shape=[1 << 62, 4, 1 << 2, 1 << 2])),
    "overflows and has nothing": header(tensor(shape=[1 << 62, 1 << 62, 0], data_offsets=[0, 0]), 0),
    "has a negative shape": header(tensor(shape=[-1, -1])),
    "has huge numbers": header('{"a": {"dtype": "F32", "shape": [' + "9" * 5000 + "]}}"),
    "has many large numbers": header(tensor(shape=[10**4000] * 1000)),
    "has many axes": header(tensor(shape=[1] * 1000)),
    "has no such type": header(tensor(dtype="F99")),
    "has a type of objects": header(tensor(dtype="O")),
    "has more keys": header(tensor(more=1)),
    "has strange metadata": header({**tensor(), "__metadata__": F32}),
    "has no names": header({"": F32}),
    "has a name that leads out": header({"../../x": F32}),
    "has a name that is long": header({"x" * 1_000_000: F32}),
    "has a name that a terminal carries out": header({"\x1b[2J\r\n": F32}),
}  # fmt: skip


def test_headers_that_lie_are_refused(kept: Path) -> None:
    file = next(kept.glob("models-*"))
    data = file.read_bytes()
    for label, lie in HEADERS.items():
        file.write_bytes(lie)
        reseal(kept)
        assert read_in_all_ways(kept) == "refused", label
        file.write_bytes(data)
    reseal(kept, lambda manifest: manifest["tensors"].clear())
    assert read_in_all_ways(kept) == "refused"


NAMES = ("..", "../x", "/etc/passwd", "a/b", ".", "", "\0", "x" * 5000, "\ud800", "models", ".hidden", "a\nb")
ENTRIES = (None, 1, "x", [], {}, {"size": 1}, {"size": True, "hash": ""}, {"size": -1, "hash": ""})
KEYS = ("format", "step", "files", "tensors", "environment")
MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    **{
        f"a file {name[:9]!r}": lambda m, name=name: m["files"].update({name: m["files"][STATE]})
        for name in NAMES
    },
    **{f"an entry {entry}": lambda m, entry=entry: m["files"].update({STATE: entry}) for entry in ENTRIES},
    **{f"no {key}": lambda m, key=key: m.pop(key) for key in KEYS},
    **{
        f"{key} {str(value)[:20]!r}": lambda m, key=key, value=value: m.update({key: value})
        for key in KEYS
        for value in (None, True, 3, 0, -1, 1.0, "x", [], [1], 10**400)
        if (key, value) not in (("tensors", {}), ("environment", {}))
    },
    "a tensor without a hash": lambda m: m["tensors"].update({"models/generator/0.bias": None}),
    "a tensor with no hash's text": lambda m: m["tensors"].update({"models/generator/0.bias": ""}),
    "a tensor of no file": lambda m: m["tensors"].update({"models/x": "0" * 32}),
    "a tensor of no part": lambda m: m["tensors"].update({"\ud800": "0" * 32}),
    "a tensor less": lambda m: m["tensors"].popitem(),
    "200,000 tensors": lambda m: m["tensors"].update({str(n): "" for n in range(200_000)}),
    "all that is deep": lambda m: m.update(environment={"a": STRANGE[-1]}, step=-1),
}  # fmt: skip


def test_manifests_that_lie_are_refused(kept: Path) -> None:
    data = (kept / MANIFEST).read_bytes()
    for label, change in MANIFESTS.items():
        manifest = json.loads(data)
        del manifest["checksum"]
        change(manifest)
        (kept / MANIFEST).write_bytes(sealed(manifest))
        assert read_in_all_ways(kept) == "refused", label


def test_manifests_that_are_no_json_are_refused(kept: Path) -> None:
    text = (kept / MANIFEST).read_text()
    for raw in (*RAW, "[]", "1", "null", '"x"'):
        for changed in (raw, text.replace('"step": 4', f'"step": {raw}'), text + raw):
            if changed != text:
                (kept / MANIFEST).write_text(changed)
                assert read_in_all_ways(kept) == "refused", raw[:20]


LOSS = {"metric": "evaluate/loss", "mode": "min", "at": None}  # what the best checkpoint goes by
AT = (0, [], [3], ["3", 1.0], [3, "x"], [10**400, 1])
RANKED = (None, "x", -1, [[3]], [["../x", 1.0]], 10**400)
STATES: dict[str, Any] = {
    "step": [None, True, 1.0, "4", -1, 5, 10**400],
    "total": [None, True, 1.0, "8", -1, 10**400],
    "data": [None, [], "x"],
    "best": [
        *(0, [], "x", {}, {**LOSS, "metric": 1}, {**LOSS, "mode": "?"}),
        *({**LOSS, "at": at} for at in AT),
        *({**LOSS, key: value} for key in ("top", "waited", "stale") for value in RANKED),
    ],
    "schedules": [None, [], "x", {"generator": 1}, {"generator": {"metric": "x", "values": ["y"]}}],
    "skipped": [None, 1, [], [0], [0, "x"], [-1, 0], [0, 0, 0]],
    "optimizers": [
        *(None, [], {}, {"numbers": []}, {"numbers": {"generator/0.weight/step": {"a": 1}}}),
        *({"numbers": {"generator/0.weight/group:lr": 1.0}}, {"numbers": {"generator/0.weight/x": 1}}),
        *({"numbers": {"nobody/0.weight/step": 1}}, {"numbers": {"": 1}}),
    ],
    "loss_scales": [None, [], {"x": 1}, {"x": {"scale": 0.0, "good": 1}}, {"x": {"scale": "x", "good": 1}}],
    "averages": [None, [], {"generator": "x"}, {"generator": -1}, {"generator": 1.5}],
}  # fmt: skip


def test_states_that_lie_are_refused(kept: Path) -> None:
    data = (kept / STATE).read_bytes()
    for key, values in STATES.items():
        for value in values:
            (kept / STATE).write_text(json.dumps({**json.loads(data), key: value}))
            reseal(kept)
            assert read_in_all_ways(kept) == "refused", (key, value)


# --- memory ---

MEASURED = """
import sys
from pathlib import Path
from dtrain.checkpoint.verify import verify
if sys.argv[1] == "load":
    import torch
    import dtrain.checkpoint.models as models
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
for path in sys.argv[2:]:
    try:
        models.load_models(path) if sys.argv[1] == "load" else verify(Path(path))
    except Exception as error:
        assert type(error).__name__ == "CheckpointError", error
print(peak() - before)
"""


def memory_of(way: str, *paths: Path) -> int:
    """Bytes that reading takes at most, in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, way, *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout) << 10


FULL = {  # JSON as large as it may be, of what takes most memory once it is read
    "lists": '{"a":[' + "[]," * (LARGEST // 3 - 10) + "1]}",
    "tables": '{"a":[' + '{"a":1},' * (LARGEST // 8 - 10) + "1]}",
    "as many lists as may be": '{"a":[' + "[]," * 700_000 + "1]}",
    "as many tables as may be": '{"a":[' + '{"a":1},' * 700_000 + "1]}",
    "fractions": '{"a":[' + "1.5," * 1_400_000 + "1]}",
}


@pytest.mark.skipif(sys.platform != "linux", reason="others have no /proc")
@pytest.mark.parametrize("way", ["verify", "load"])
def test_reading_takes_no_more_than_twice_the_file(kept: Path, tmp_path: Path, way: str) -> None:
    """Plus 256 MB: what JSON of the largest size becomes, or the libraries' own."""
    copies = []
    for number, text in enumerate(FULL.values()):
        for name in (STATE, MANIFEST, "models.safetensors.index.json", next(kept.glob("models-*")).name):
            copy = Path(shutil.copytree(kept, tmp_path / f"{number}{name}" / kept.name))
            (copy / name).write_bytes(header(text) if name.endswith(".safetensors") else text.encode())
            if name != MANIFEST:
                reseal(copy)
            copies.append(copy)
    most = memory_of(way, *copies)
    print(f"\n{most >> 20} MB")
    assert most < 2 * LARGEST + (256 << 20)
