import json
import os
import pty
import resource
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from dtrain.errors import DtrainError, RecipeError
from dtrain.events import Evaluated, Finished, Sampled, Saved, Started, Stepped
from dtrain.format.metrics import read_metrics
from dtrain.track import TRACKERS, open_trackers
from dtrain.track.base import RunInfo
from dtrain.track.jsonl import open_jsonl


def run_in(folder: Path) -> RunInfo:
    return RunInfo(folder, "run1", "gan", "dtrain", {"seed": 0}, "one process")


def tell(observe, folder: Path, step: int, total: int) -> None:
    observe(Started(step, total, 64))
    for done in range(step + 1, total + 1):
        observe(
            Stepped(
                done, {"generator/loss": 1 / done, "examples_per_second": 1234.4} if done % 2 == 0 else {}
            )
        )
        if done % 4 == 0:
            observe(Evaluated(done, {"evaluate/accuracy": done / 100}))
            observe(Sampled(done, {"samples/generator": folder / "samples" / f"{done}.png"}))
            observe(Saved(done, folder / "checkpoints" / f"step-{done:08}"))
    observe(Finished(total))


def test_importing_the_trackers_imports_none_of_their_libraries():
    code = "import sys, dtrain.track; print({'wandb', 'rich', 'torch', 'psutil'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_a_kind_that_is_not_there_is_refused_with_the_nearest(tmp_path):
    assert set(TRACKERS) == {"console", "jsonl", "wandb"}
    with (
        pytest.raises(RecipeError, match=r"track.kinds.*did you mean 'jsonl'"),
        open_trackers(["json"], run_in(tmp_path), 0),
    ):
        pass


def test_every_tracker_is_told(tmp_path, capsys):
    with open_trackers(["console", "jsonl"], run_in(tmp_path), 0) as observe:
        tell(observe, tmp_path, 0, 2)
    assert "step 2/2  generator/loss 0.5" in capsys.readouterr().out
    assert (
        tmp_path / "metrics.jsonl"
    ).read_text() == '{"step": 2, "generator/loss": 0.5, "examples_per_second": 1234.4}\n'


def test_jsonl_holds_metrics_evaluations_and_pictures_each_as_a_line_at_once(tmp_path):
    with open_jsonl(run_in(tmp_path), 0) as observe:
        tell(observe, tmp_path, 0, 4)
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 2, "generator/loss": 0.5, "examples_per_second": 1234.4},
        {"step": 4, "generator/loss": 0.25, "examples_per_second": 1234.4},
        {"step": 4, "evaluate/accuracy": 0.04},
        {"step": 4, "samples/generator": "samples/4.png"},
    ]


def test_jsonl_writes_numbers_that_are_not_finite_as_words_and_reads_them_back(tmp_path):
    values = {"a": float("nan"), "b": float("inf"), "c": float("-inf")}
    with open_jsonl(run_in(tmp_path), 0) as observe:
        observe(Stepped(1, values))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1,
        "a": "NaN",
        "b": "Infinity",
        "c": "-Infinity",
    }
    assert repr(list(read_metrics(tmp_path / "metrics.jsonl"))) == repr([(1, values)])


@pytest.mark.parametrize("torn", ["", '{"step": 2, "gen', '{"step": 12, "generator/loss": 1'])
def test_a_resumed_jsonl_equals_one_of_a_run_that_was_never_broken(tmp_path, torn):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder, lives in ((whole, [(0, 16)]), (broken, [(0, 11), (8, 16)])):
        folder.mkdir()
        for step, total in lives:
            with open_jsonl(run_in(folder), step) as observe:
                tell(observe, folder, step, total)
            if total == 11:
                with (folder / "metrics.jsonl").open("a") as file:
                    file.write(torn)
    assert (broken / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert [path.name for path in broken.iterdir()] == ["metrics.jsonl"]


def test_a_line_that_is_not_ours_is_named_and_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nhello\n{"step": 2}\n')
    with (
        pytest.raises(DtrainError, match=r"metrics.jsonl:2: not a JSON object"),
        open_jsonl(run_in(tmp_path), 1),
    ):
        pass
    assert "hello" in (tmp_path / "metrics.jsonl").read_text()


def test_a_line_that_cannot_be_written_is_a_users_error(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limit)
        observe = stack.enter_context(open_jsonl(run_in(tmp_path), 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limit[1]))
        with pytest.raises(DtrainError, match="File too large"):
            observe(Stepped(1, {"generator/loss": 1.0}))
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_the_console_prints_plain_aligned_lines_to_a_pipe(tmp_path, capsys):
    with open_trackers(["console"], run_in(tmp_path), 0) as observe:
        tell(observe, tmp_path, 0, 12)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"step  0/12  gan: 12 steps to go on one process, in {tmp_path}",
        "step  2/12  generator/loss 0.5        1,234 examples/s  0:00 left",
    ]
    assert lines[3:6] == [
        "step  4/12  evaluate/accuracy 0.04",
        "step  4/12  samples/generator in samples/4.png",
        "step  4/12  saved checkpoints/step-00000004",
    ]
    assert lines[6] == "step  6/12  generator/loss 0.1667     1,234 examples/s  0:00 left"
    assert lines[-1] == "step 12/12  finished in 0:00"
    assert len(lines) == 1 + 6 + 3 * 3 + 1


def test_the_console_shows_how_a_text_begins_and_carries_out_nothing_in_it(tmp_path, capsys):
    path = tmp_path / "samples" / "text.txt"
    path.parent.mkdir()
    path.write_text("It is\x1b[31m red\n" + "\n".join(f"line {number}" for number in range(2, 30)))
    with open_trackers(["console", "jsonl"], run_in(tmp_path), 0) as observe:
        observe(Sampled(4, {}, {"model": path}))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 4/0  model in samples/text.txt"
    assert lines[1:] == ["    It is\\u001b[31m red", *(f"    line {number}" for number in range(2, 9))]
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 4, "model": "samples/text.txt"}


def test_the_console_draws_a_bar_on_a_terminal(tmp_path):
    code = (
        "from pathlib import Path; from tests.test_track import *\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "with open_trackers(['console'], run_in(folder), 0) as observe: tell(observe, folder, 0, 12)\n"
    )
    terminal, child_end = pty.openpty()
    environment = {
        **os.environ,
        "TERM": "xterm",
        "COLUMNS": "100",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    with subprocess.Popen([sys.executable, "-c", code], stdout=child_end, env=environment) as process:
        os.close(child_end)
        shown = b""
        try:
            while part := os.read(terminal, 65536):
                shown += part
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(terminal)
    assert process.returncode == 0
    text = shown.decode()
    assert "━" in text
    assert "12/12" in text
    assert "generator/loss 0.08333  1,234 examples/s" in text
    assert "step  4/12  evaluate/accuracy 0.04" in text
    assert "step 12/12  finished in 0:0" in text
