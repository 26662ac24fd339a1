"""Rows, sizes and times as text; values as JSON has them."""

import json
import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

UNITS = ("bytes", "kB", "MB", "GB")
AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, each column as wide as its widest cell."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def bytes_text(size: float) -> str:
    """A size in the unit that suits it: 3.1 MB."""
    for unit in UNITS:
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def moment(seconds: float) -> str:
    """A time of this place: 2026-11-22 19:30:01."""
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"


def age(seconds: float) -> str:
    """How long ago a time was: 3 min ago."""
    passed = max(datetime.now().timestamp() - seconds, 1)
    unit, name = next((unit, name) for unit, name in AGES if passed >= unit)
    return f"{passed // unit:.0f} {name} ago"


def finite(value: Any) -> Any:
    """A value as JSON can hold it: numbers that are not finite are texts, as in metrics.jsonl."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return json.dumps(value) if isinstance(value, float) and not math.isfinite(value) else value
