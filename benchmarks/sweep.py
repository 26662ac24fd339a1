"""A sweep by TPE with pruning against a grid of 60 learning rates; and trials side by side.

    python benchmarks/sweep.py                 # about eleven minutes on two cores

Both are `dtrain sweep recipes/sweeps/classifier.toml`, the grid with other axes. Told are the best accuracy
of each, the steps that all trials together were trained, and the time of four trials, two at a time against
one after the other.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dtrain.format.runs import standing

RECIPE = Path(__file__).parents[1] / "recipes/sweeps/classifier.toml"
RATES = 'sweep.axes."optimizers.classifier.lr"'
GRID = ["sweep.sampler=grid", "sweep.trials=${unset}", "sweep.prune=${unset}"]


def sweep(name: str, runs: Path, parallel: int, *overrides: str) -> tuple[float, int, float]:
    """The best accuracy, the steps of all runs, and the seconds that it took."""
    since = time.perf_counter()
    command = [sys.executable, "-m", "dtrain", "sweep", str(RECIPE), f"sweep.name={name}", f"name={name}"]
    command += ['track.kinds=["jsonl"]', *overrides, "--runs", str(runs), "--parallel", str(parallel)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - since
    trials = json.loads((runs / "sweeps" / name / "trials.json").read_text())["trials"]
    steps = sum(standing(runs / name / run).step for each in trials for run in each["runs"])
    return max(each["value"] for each in trials if each["value"] is not None), steps, seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        four = [*GRID, f"{RATES}=[1e-4, 1e-3, 3e-3, 1e-2]"]
        one = sweep("one", runs, 1, *four)[2]
        two = sweep("two", runs, 2, *four)[2]
        print(
            f"four trials: {one:.1f} s one after the other, {two:.1f} s two at a time ({two / one:.2f})",
            flush=True,
        )
        best, steps, seconds = sweep("tpe", runs, 2)
        print(f"TPE, 20 trials: accuracy {best:.3f}, {steps:,} steps, {seconds:.0f} s", flush=True)
        rates = f"{RATES}={{ log_uniform = [1e-5, 1.0], points = 60 }}"
        of_grid, all_steps, seconds = sweep("grid", runs, 2, *GRID, rates)
        print(f"grid of 60: accuracy {of_grid:.3f}, {all_steps:,} steps, {seconds:.0f} s")
        print(f"TPE against the grid: {best - of_grid:+.3f} accuracy, {steps / all_steps:.2f} of its steps")


if __name__ == "__main__":
    main()
