"""The report of a sweep: one HTML file with a table, pictures, and the library that draws them."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from plotly.offline import get_plotlyjs

from dtrain.errors import DtrainError
from dtrain.format.files import write_synced
from dtrain.format.sweeps import short
from dtrain.recipe.cells import in_words
from dtrain.spec.words import brief, show
from dtrain.sweep.results import best_of, outcome, ranked
from dtrain.sweep.setup import Setup
from dtrain.sweep.study import Record, Study

REPORT = "report.html"
PAGE = Path(__file__).with_name("report_page.html")
LAYOUT = {"margin": {"l": 110, "r": 60, "t": 50, "b": 50}, "height": 440, "template": "plotly_white"}
LONGEST = 16  # characters of a value beside an axis
TOP = 4  # of the best trials importance compares so many, or a tenth, with all; of few trials half
FEW = 8  # values of an axis that are each named
TO_SCRIPT = {"displaylogo": False, "responsive": True}  # of plotly.js


def write_report(setup: Setup, study: Study) -> Path:
    """Write it into the sweep's folder. Raises DtrainError if it cannot be written."""
    records = study.records()
    figures = dict(_figures(setup, study, records))
    parts = {
        "title": escape(setup.name),
        "summary": _summary(setup, study, records),
        "table": _table(setup, records),
        "figures": "\n".join(
            f"<section><h2>{escape(title)}</h2>{_drawn(figure)}</section>"
            for title, figure in figures.items()
        ),
        "script": get_plotlyjs(),
    }
    page = PAGE.read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)
    path = setup.folder / REPORT
    try:
        write_synced(path, page.encode())
    except OSError as error:
        raise DtrainError(f"{path} cannot be written: {error}") from None
    return path


def _drawn(figure: go.Figure) -> str:
    own = {key: value for key, value in figure.layout.to_plotly_json().items() if key != "template"}
    figure.update_layout({**LAYOUT, **own})
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=TO_SCRIPT))


def _summary(setup: Setup, study: Study, records: Sequence[Record]) -> str:
    states = [record.state for record in records]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    said = [
        f"{len(records)} of {study.count} trials of the recipe {setup.base.name}: {counts or 'none yet'}."
    ]
    if (best := best_of(records, setup.mode)) is not None:
        words = in_words(best.settings)
        said.append(f"Best: trial {best.number}, {outcome(best, setup.metric)}, where {words}.")
    return "".join(f"<p>{escape(line)}</p>" for line in said)


def _table(setup: Setup, records: Sequence[Record]) -> str:
    keys = list(setup.sweep.axes)
    names = short(keys)
    heads = ["trial", setup.metric, *(names[key] for key in keys), "state", "step", "run"]
    rows = []
    for record in ranked(records, setup.mode):
        step = max(record.curve, default=None)
        value = record.value if record.value is not None or step is None else record.curve[step]
        cells: list[Any] = [record.number, value, *(record.settings.get(key) for key in keys)]
        cells += [record.state, step]
        told = [_cell(cell) for cell in cells]
        told.append(_cell(record.cause or ", ".join(record.runs)))
        rows.append(f'<tr class="{record.state.replace(" ", "-")}">{"".join(told)}</tr>')
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(value: Any) -> str:
    """A cell with what it is sorted by."""
    if value is None:
        return '<td data-value="">-</td>'
    if isinstance(value, float):
        return f'<td data-value="{value!r}">{value:.6g}</td>'
    text = str(value) if isinstance(value, int | str) else show(value)
    return f'<td data-value="{escape(text)}">{escape(text)}</td>'


def _figures(setup: Setup, study: Study, records: Sequence[Record]) -> Iterator[tuple[str, go.Figure]]:
    """The pictures for which there is enough to draw."""
    done = [record for record in records if record.value is not None]
    if done and setup.sweep.axes:
        yield "Parallel coordinates", _coordinates(setup, done)
    if setup.sweep.axes and (found := _importances(study, done)):
        yield f"Importance of each axis, by {len(done)} finished trials", _bars(found)
    if any(record.curve for record in records):
        yield f"Curves{' of the first seed' * (setup.sweep.seeds > 1)}", _curves(setup, records)
    if done:
        yield "Values in the order of the trials", _history(setup, done)


def _coordinates(setup: Setup, done: Sequence[Record]) -> go.Figure:
    """A line for each finished trial through what it tried, coloured by its value."""
    names = short(list(setup.sweep.axes))
    values = [record.value for record in done]
    dimensions = [
        _dimension(
            names[key],
            [record.settings.get(key) for record in done],
            is_log=axis.log_uniform is not None or axis.log_range is not None,
        )
        for key, axis in setup.sweep.all_axes.items()
    ]
    line = {"color": values, "colorscale": "Viridis", "showscale": True, "reversescale": setup.mode == "min"}
    return go.Figure(
        go.Parcoords(line=line, dimensions=[*dimensions, {"label": setup.metric, "values": values}])
    )


def _dimension(label: str, values: Sequence[Any], *, is_log: bool) -> Mapping[str, Any]:
    """An axis of numbers, by their logarithm where they are so drawn or span a factor of 20; or of words."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        known = [*sorted(set(numbers)), *(v for v in values if v is not None and v not in numbers)]
        words = list(dict.fromkeys(["-"] * (None in values) + [brief(value) for value in known]))
        places = [words.index("-" if value is None else brief(value)) for value in values]
        return {
            "label": label,
            "values": places,
            "tickvals": list(range(len(words))),
            "ticktext": list(map(_tick, words)),
        }
    is_wide = min(numbers) > 0 and (is_log or max(numbers) / min(numbers) > 20)
    shown: list[float] = sorted({*numbers})
    if len(shown) > FEW:
        if not is_wide:
            return {"label": label, "values": numbers}
        low, high = (math.floor(math.log10(end)) for end in (shown[0], shown[-1]))
        shown = [one * 10.0**n for n in range(low, high + 1) for one in (1, 3)]
        shown = [value for value in shown if min(numbers) <= value <= max(numbers)]
    place = math.log10 if is_wide else float
    ticks = {"tickvals": list(map(place, shown)), "ticktext": [f"{value:.4g}" for value in shown]}
    return {"label": label, "values": list(map(place, numbers)), **ticks}


def _tick(word: str) -> str:
    """What fits between two axes."""
    return word if len(word) <= LONGEST else f"{word[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def _importances(study: Study, done: Sequence[Record]) -> Mapping[str, float]:
    """How much of the difference each axis makes, by PED-ANOVA; nothing where that cannot be said."""
    if len(done) < 4 or len({record.value for record in done}) < 2:
        return {}
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, min(0.5, TOP / len(done))))
    try:
        return get_param_importances(study.optuna, evaluator=evaluator)
    except (ValueError, RuntimeError, ArithmeticError):
        return {}


def _bars(found: Mapping[str, float]) -> go.Figure:
    names = short(list(found))
    ordered = sorted(found.items(), key=lambda item: item[1])
    bars = go.Bar(x=[v for _, v in ordered], y=[names[k] for k, _ in ordered], orientation="h")
    return go.Figure(
        bars, {"xaxis": {"title": {"text": "share of the difference (PED-ANOVA)"}, "range": [0, 1]}}
    )


def _curves(setup: Setup, records: Sequence[Record]) -> go.Figure:
    figure = go.Figure(
        layout={"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": setup.metric}}}
    )
    best = best_of(records, setup.mode)
    for record in records:
        if record.curve:
            words = escape(in_words(record.settings)).replace(", ", "<br>")
            is_best = best is not None and record.number == best.number
            figure.add_scatter(
                x=list(record.curve),
                y=list(record.curve.values()),
                mode="lines+markers" if len(record.curve) == 1 else "lines",
                name=f"{record.number}{' (best)' if is_best else ''}",
                line={"width": 4 if is_best else 1.5, "dash": "solid" if record.value is not None else "dot"},
                hovertemplate=f"trial {record.number}, step %{{x}}: %{{y}}<br>{words}<extra></extra>",
            )
    return figure


def _history(setup: Setup, done: Sequence[Record]) -> go.Figure:
    """Each trial's value, and the best up to it."""
    better = {"max": max, "min": min}[setup.mode]
    values = [record.value or 0.0 for record in done]
    best = [better(values[: number + 1]) for number in range(len(values))]
    numbers = [record.number for record in done]
    figure = go.Figure(
        layout={"xaxis": {"title": {"text": "trial"}}, "yaxis": {"title": {"text": setup.metric}}}
    )
    figure.add_scatter(x=numbers, y=values, mode="markers", name="value")
    figure.add_scatter(x=numbers, y=best, mode="lines", name="best so far", line={"shape": "hv"})
    return figure
