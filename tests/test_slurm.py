"""What `dtrain launch slurm` prints, on a real Slurm of two machines: it saves when asked, and carries on."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from conftest import only_run, start_two
from killing import assert_same_run, steps_logged
from launching import ROOT
from slurm_cluster import Cluster, cluster, missing, wait_for

from dtrain.checkpoint.read import checkpoints_in, step_of

pytestmark = [pytest.mark.alone, pytest.mark.skipif(missing() != "", reason=missing())]

SOON = 120  # seconds, after which a test gives up
LONG = ["train.steps=300", "every.save=0", "every.evaluate=0", "every.sample=0"]


def submit(slurm: Cluster, recipe: Path, runs: Path, *more: str) -> str:
    """Hand sbatch what dtrain prints, unchanged; the number of the job."""
    script = slurm.call(
        *(sys.executable, "-m", "dtrain", "launch", "slurm", str(recipe), *LONG, "--runs", str(runs)),
        *("--nodes", "2", "--devices", "1", "--cores", "1", "--grace", "60", "--partition", "low", *more),
        environment={"PYTHONPATH": str(ROOT)},
    )
    environment = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HOME": "/nonexistent"}
    environment["GLOO_SOCKET_IFNAME"] = "lo"  # both machines are this one
    environment["PATH"] = f"{Path(sys.executable).parent}:{slurm.variables['PATH']}"
    return slurm.call("sbatch", "--parsable", stdin=script, environment=environment).strip()


def said_by(slurm: Cluster, job: str) -> str:
    return (slurm.folder / f"slurm-tiny-gan-{job}.out").read_text()


def test_a_job_saves_when_asked_or_preempted_queues_itself_again_and_ends_with_the_same_bits(
    gan: Path, tmp_path: Path
) -> None:
    alone = start_two("run", gan, *LONG, "--runs", tmp_path / "alone", log=tmp_path / "alone.log")
    runs, folder = tmp_path / "runs", tmp_path / "slurm"
    folder.mkdir()
    with cluster(folder) as slurm:
        job = submit(slurm, gan, runs)

        def lives_on(restarts: int, steps: int) -> bool:
            assert slurm.job(job)["JobState"] not in ("FAILED", "CANCELLED"), said_by(slurm, job)
            return slurm.job(job)["Restarts"] == str(restarts) and steps_logged(runs) >= steps

        wait_for(lambda: lives_on(0, 5), seconds=SOON, what="the first life trains")
        slurm.call("scancel", "--batch", "--signal=USR1", job)  # what Slurm does near the time limit
        wait_for(lambda: lives_on(1, 0), seconds=SOON, what="it queues itself again")
        before = steps_logged(runs)
        wait_for(lambda: lives_on(1, before + 5), seconds=SOON, what="the second life trains")
        slurm.call("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=true")
        wait_for(lambda: lives_on(2, 0), seconds=SOON, what="Slurm queues it again")
        wait_for(lambda: slurm.job(job)["JobState"] == "COMPLETED", seconds=SOON, what="the last life ends")
        said = said_by(slurm, job)
    stops = re.findall(r"stopped by (SIG\w+) at step (\d+)", said)
    assert {number for number, _ in stops} == {"SIGUSR1", "SIGTERM"}, said
    steps = [int(step) for step in re.findall(r"carrying on from \S+step-(\d+)", said)]
    assert steps == sorted({int(step) for _, step in stops}), said
    assert [life.end() for life in alone] == [0, 0], [life.said for life in alone]
    for stopped in checkpoints_in(only_run(runs))[:-1]:
        stopped.rename(tmp_path / stopped.name)
    assert_same_run(only_run(runs), only_run(tmp_path / "alone"))


@pytest.mark.skipif(not os.environ.get("DTRAIN_TEST_LONG"), reason="Slurm counts in minutes")
def test_a_job_saves_before_its_time_is_over_and_is_not_queued_again_when_it_is_cancelled(
    gan: Path, tmp_path: Path
) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "slurm"
    folder.mkdir()
    with cluster(folder) as slurm:
        job = submit(slurm, gan, runs, "train.steps=1000000", "--time", "2")
        wait_for(lambda: slurm.job(job)["Restarts"] == "1", seconds=180, what="it queues itself again")
        before = steps_logged(runs)
        wait_for(lambda: steps_logged(runs) > before, seconds=SOON, what="the second life trains")
        slurm.call("scancel", job)
        ended = ("CANCELLED", "COMPLETED", "FAILED")
        wait_for(lambda: slurm.job(job)["JobState"] in ended, seconds=SOON, what="it ends")
        wait_for(lambda: "stopped by SIGTERM" in said_by(slurm, job), seconds=SOON, what="it saves")
        assert slurm.job(job)["JobState"] == "CANCELLED"
        assert slurm.job(job)["Restarts"] == "1"
        assert "stopped by SIGUSR1" in said_by(slurm, job)
    first, second = checkpoints_in(only_run(runs))
    assert step_of(first) < step_of(second)


def test_an_array_works_on_the_trials_of_a_sweep_together(classifier: Path, tmp_path: Path) -> None:
    runs, folder = tmp_path / "runs", tmp_path / "slurm"
    folder.mkdir()
    text = classifier.read_text().replace("epochs = 2", "steps = 1500").replace("save = 2", "save = 100")
    sweep = '\n[sweep]\nsampler = "grid"\nmetric = "evaluate/loss"\n[sweep.axes]\n'
    classifier.write_text(f'{text}{sweep}"optimizers.*.lr" = [1e-3, 2e-3, 3e-3, 4e-3]\n')
    with cluster(folder) as slurm:
        said = slurm.call(
            *(sys.executable, "-m", "dtrain", "sweep", str(classifier), "every.evaluate=100"),
            *("--runs", str(runs), "--submit", "slurm", "--parallel", "2", "--sbatch=--partition=low"),
            environment={
                "PYTHONPATH": str(ROOT),
                "CUDA_VISIBLE_DEVICES": "",
                "PATH": f"{Path(sys.executable).parent}:{slurm.variables['PATH']}",
            },
        )
        (job,) = re.findall(r"job +(\d+), 2 tasks", said)
        tasks = [f"{job}_0", f"{job}_1"]
        home = runs / "tiny-classifier"
        wait_for(lambda: len(list(home.glob("*/metrics.jsonl"))) >= 2, seconds=SOON, what="two trials train")
        slurm.call("scancel", "--batch", "--signal=USR1", tasks[0])  # what Slurm does near the time limit
        wait_for(lambda: slurm.job(tasks[0])["Restarts"] == "1", seconds=SOON, what="it queues itself again")

        def have_ended() -> bool:
            return all(slurm.job(task)["JobState"] == "COMPLETED" for task in tasks)

        wait_for(have_ended, seconds=SOON, what="both tasks end")
    outputs = [path.read_text() for path in (runs / "sweeps/tiny-classifier").glob("slurm-*.out")]
    trials = json.loads((runs / "sweeps/tiny-classifier/trials.json").read_text())["trials"]
    assert [each["state"] for each in trials] == ["finished"] * 4, outputs
    assert len(list(home.iterdir())) == 4
    began = [
        number for said in outputs for number in re.findall(r"^trial (\d): optimizers", said, re.MULTILINE)
    ]
    assert {*began} == {"0", "1", "2", "3"}
    assert len(began) == 5  # the one that was saved twice
