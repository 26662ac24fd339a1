"""Runs that are copied to S3, over HTTP: whole or not there, whatever ends them, and brought back.

DTRAIN_TEST_LONG=1: more moments at which a run is killed, and more ways for a bucket to go.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Life, Said, last_tensors, only_run, start, start_two, tensors_of
from killing import assert_same_run
from s3_server import BUCKET, Impatient, Network, empty, refuse_all, serve

import dtrain
from dtrain.checkpoint.read import checkpoints_in
from dtrain.format.files import MANIFEST, RECORD, UNSENT
from dtrain.format.metrics import METRICS
from dtrain.format.remote import bring, place, steps_in, whole_steps
from dtrain.format.urls import Remote, open_store

pytestmark = pytest.mark.alone
IS_LONG = "DTRAIN_TEST_LONG" in os.environ
if_long = pytest.mark.skipif(not IS_LONG, reason="takes long; DTRAIN_TEST_LONG=1 runs it")

Here = Callable[..., Said]
URL = f"s3://{BUCKET}/runs"
NAME = "tiny-gan"
REGULAR = (
    "every.evaluate=0",
    "checkpoint.best=${unset}",
    "checkpoint.mode=${unset}",
)  # no checkpoints but each `every.save`
FEW = (*REGULAR, "every.save=4")  # two of them


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Network, dict[str, str]]]:
    with serve(tmp_path_factory.mktemp("s3") / "log") as found:
        yield found


@pytest.fixture
def network(
    served: tuple[Network, dict[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Network]:
    """A network to an empty bucket, for this process and those that it starts."""
    from s3fs import S3FileSystem

    network, environment = served
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dtrain.format.urls.PAUSES", (0.05, 0.05, 0.05))
    monkeypatch.setattr("dtrain.checkpoint.lease.BEAT", 0.3)
    monkeypatch.setattr("dtrain.checkpoint.lease.PATIENCE", 3.0)
    monkeypatch.setattr("dtrain.checkpoint.lease.SETTLE", 0.2)
    empty(network)
    S3FileSystem.clear_instance_cache()
    yield network
    empty(network)


@pytest.fixture
def begin(
    served: tuple[Network, dict[str, str]], network: Network, gan: Path, tmp_path: Path
) -> Callable[..., Life]:
    """Start a run of the GAN, copied to the bucket, in a process of its own."""
    _, environment = served

    def begin(*arguments: str | Path) -> Life:
        command = ["run", gan, f'checkpoint.path="{URL}"', "--runs", tmp_path / "runs", *arguments]
        return start(*command, log=tmp_path / "log", action=Impatient(environment))

    return begin


def store_of(run: str = "") -> Remote:
    found = open_store(f"{URL}/{NAME}" + (f"/{run}" if run else ""))
    assert isinstance(found, Remote)
    return found


def assert_copied(run: Path, to: Path) -> None:
    """What is there are the run's checkpoints, each with the same bits, and no other file."""
    store = store_of(run.name)
    own = checkpoints_in(run)
    assert steps_in(store, "") == whole_steps(store, "")
    assert list(store.entries("checkpoints")) == [path.name for path in own]
    for step, path in zip(steps_in(store, ""), own, strict=True):
        assert store.entries(place("", step)).keys() == {file.name for file in path.iterdir()}
        bring(store, place("", step), to / "checkpoints" / path.name)
        assert tensors_of(to / "checkpoints" / path.name) == tensors_of(path)
    assert store.read("recipe.toml") == (run / "recipe.toml").read_bytes()
    assert set(store.entries("")) == {"recipe.toml", METRICS, RECORD, "checkpoints"}


def wait(condition: Callable[[], object], life: Life | None = None) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        assert life is None or life.process.is_alive(), life.said
        time.sleep(0.01)


def alone(gan: Path, tmp_path: Path, dtrain_here: Here, *overrides: str) -> Path:
    """The same run where nothing happens to it."""
    assert dtrain_here("run", gan, *overrides, "--runs", tmp_path / "alone").code == 0
    return only_run(tmp_path / "alone")


def test_a_run_is_copied_the_manifest_last_and_swept_once_a_successor_is_whole(
    network: Network, gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    said = dtrain_here("run", gan, f'checkpoint.path="{URL}"', "--runs", tmp_path / "runs")
    assert said.code == 0, said.errors
    run = only_run(tmp_path / "runs")
    assert f"copy        {URL}/{NAME}/{run.name}\n" in said.out
    assert_copied(run, tmp_path / "fetched")
    prefix = f"/{BUCKET}/runs/{NAME}/{run.name}/"
    calls = [call.replace(prefix, "") for call in network.calls if call[:3] in ("PUT", "DEL")]
    calls = [call for call in calls if "held.json" not in call]
    assert calls[0] == "PUT recipe.toml"
    for step in (2, 4, 6, 8):
        own = [call for call in calls if call.startswith(f"PUT checkpoints/step-{step:08d}/")]
        assert own[-1].endswith(MANIFEST)
        assert sum(call.endswith(MANIFEST) for call in own) == 1
    removed = [call for call in calls if call.startswith("DELETE")]
    assert removed[0].endswith(MANIFEST)
    first = calls.index(removed[0])
    assert any(call.endswith(f"step-00000008/{MANIFEST}") for call in calls[:first]) or any(
        call.endswith(f"step-00000006/{MANIFEST}") for call in calls[:first]
    )
    assert "held.json" not in store_of(run.name).entries("")


@if_long
def test_a_run_whose_machine_was_taken_away_ends_with_the_bits_of_one_left_alone(
    network: Network, gan: Path, tmp_path: Path, dtrain_here: Here, begin: Callable[..., Life]
) -> None:
    steps = "train.steps=16"
    life = begin(steps)
    wait(lambda: any(f"step-00000004/{MANIFEST}" in call for call in network.calls), life)
    life.kill()
    name = only_run(tmp_path / "runs").name
    shutil.rmtree(tmp_path / "runs")
    life = begin(steps)
    assert life.end() == 0, life.said
    run = only_run(tmp_path / "runs")
    assert run.name == name
    assert "carrying on from" in life.said
    whole = alone(gan, tmp_path, dtrain_here, steps)
    assert [path.name for path in checkpoints_in(run)] == [path.name for path in checkpoints_in(whole)]
    assert_same_run(run, whole)
    assert_copied(run, tmp_path / "fetched")


KILLED_AT = (  # before what is sent or deleted, and whether the folder here is gone, too
    (f"step-00000004/{MANIFEST}", True),
)
if IS_LONG:
    KILLED_AT += (
        (f"DELETE {MANIFEST}", True),  # a sweep begins
        ("step-00000004/averages-00001", False),  # its first file
        ("step-00000004/state.json", True),
        (f"step-00000004/{MANIFEST}", False),
    )


@pytest.mark.parametrize(("moment", "is_gone"), KILLED_AT)
def test_killed_in_the_middle_of_an_upload_nothing_half_counts_and_the_next_start_mends_it(
    network: Network,
    gan: Path,
    tmp_path: Path,
    dtrain_here: Here,
    begin: Callable[..., Life],
    moment: str,
    is_gone: bool,
) -> None:
    method, _, name = moment.rpartition(" ")
    network.stop_at(lambda call: call.startswith(method or "PUT") and name in call)
    life = begin(*REGULAR, "checkpoint.keep=2")
    assert network.stopped.wait(60), life.said
    life.kill()
    network.stop_at(None)
    run = only_run(tmp_path / "runs")
    there = whole_steps(store_of(run.name), "")
    assert (4 in there) is (method == "DELETE")
    for step in there:
        bring(store_of(run.name), place("", step), tmp_path / "look" / "checkpoints" / f"step-{step:08d}")
    if is_gone:
        shutil.rmtree(tmp_path / "runs")
    life = begin(*REGULAR, "checkpoint.keep=2")
    assert life.end() == 0, life.said
    assert only_run(tmp_path / "runs").name == run.name
    assert_copied(only_run(tmp_path / "runs"), tmp_path / "fetched")
    assert_same_run(
        only_run(tmp_path / "runs"), alone(gan, tmp_path, dtrain_here, *REGULAR, "checkpoint.keep=2")
    )


def lines_of(life: Life) -> list[str]:
    return [line for line in life.said.splitlines() if line.startswith("dtrain: ")]


@if_long
def test_a_bucket_that_goes_ends_the_run_in_a_sentence_and_the_next_start_sends_all(
    network: Network, tmp_path: Path, begin: Callable[..., Life]
) -> None:
    life = begin("train.steps=4000", *REGULAR)
    wait(lambda: any(f"step-00000004/{MANIFEST}" in call for call in network.calls), life)
    empty(network, bucket=False)
    assert life.end() == 2, life.said
    (line,) = lines_of(life)
    assert "cannot be written (FileNotFoundError: The specified bucket does not exist)" in line
    assert f"dtrain: {URL}/{NAME}/" in line
    here = [f"{path.name}/{MANIFEST}" for path in checkpoints_in(only_run(tmp_path / "runs"))]
    assert len(here) > 1
    empty(network)
    again = begin("train.steps=4000", *REGULAR)
    wait(lambda: all(any(f"PUT /{BUCKET}" in c and n in c for c in network.calls) for n in here), again)
    again.kill()


@pytest.mark.parametrize("is_finished", [True, pytest.param(False, marks=if_long)])
def test_a_network_that_is_cut_ends_the_run_and_the_next_start_sends_what_is_missing(
    network: Network, tmp_path: Path, begin: Callable[..., Life], is_finished: bool
) -> None:
    step = 8 if is_finished else 4
    network.stop_at(lambda call: call.startswith("PUT") and f"step-{step:08d}" in call)
    life = begin(*FEW)
    assert network.stopped.wait(60), life.said
    network.cut()
    assert life.end() == 2, life.said
    (line,) = lines_of(life)
    assert f"dtrain: {URL}/{NAME}/" in line
    assert "cannot be written" in line
    run = only_run(tmp_path / "runs")
    before = last_tensors(run)
    network.mend()
    assert step not in whole_steps(store_of(run.name), "")
    again = begin(*FEW)
    assert again.end() == 0, again.said
    assert only_run(tmp_path / "runs") == run  # also one that had finished, and lacked its copy alone
    assert_copied(run, tmp_path / "fetched")
    assert not is_finished or last_tensors(run) == before
    assert not (run / UNSENT).exists()  # so the next start begins another


def test_what_cannot_be_written_is_told_of_before_anything_is_trained(
    network: Network, gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    command = ["run", gan, f'checkpoint.path="{URL}"', "--runs", tmp_path / "runs"]
    refuse_all(network)
    denied = dtrain_here(*command)
    assert (denied.code, denied.errors.count("\n")) == (2, 1), denied.errors
    assert "PermissionError" in denied.errors
    empty(network, bucket=False)
    nowhere = dtrain_here(*command)
    assert (nowhere.code, nowhere.errors.count("\n")) == (2, 1), nowhere.errors
    assert "The specified bucket does not exist" in nowhere.errors
    assert "secret" not in denied.errors + nowhere.errors
    assert not list((tmp_path / "runs").glob("*/*"))


def test_two_runs_of_one_recipe_at_once_have_ids_of_their_own_and_one_that_died_is_taken_up(
    network: Network, tmp_path: Path, begin: Callable[..., Life], dtrain_here: Here, gan: Path
) -> None:
    steps = "train.steps=3000"
    first = begin(steps)
    wait(lambda: any(f"step-00000004/{MANIFEST}" in call for call in network.calls), first)
    (one,) = store_of().entries("")
    second = begin(steps, "--runs", tmp_path / "other machine")
    wait(lambda: len(store_of().entries("")) == 2, second)
    (other,) = set(store_of().entries("")) - {one}
    wait(lambda: whole_steps(store_of(other), ""), second)
    second.kill()
    first.kill()
    shutil.rmtree(tmp_path / "other machine")
    third = begin(steps, "--runs", tmp_path / "third machine")
    wait(lambda: "carrying on from" in third.said, third)
    third.kill()
    assert only_run(tmp_path / "third machine").name == other
    assert "still works on" in third.said


def test_two_processes_send_by_the_first_and_end_with_one_error(
    network: Network, served: tuple[Network, dict[str, str]], gan: Path, tmp_path: Path
) -> None:
    impatient = Impatient(served[1])
    command = ["run", gan, f'checkpoint.path="{URL}"', *FEW, "--runs", tmp_path / "runs"]
    lives = start_two(*command, log=tmp_path / "log", action=impatient)
    assert [life.end() for life in lives] == [0, 0], [life.said for life in lives]
    run = only_run(tmp_path / "runs")
    assert_copied(run, tmp_path / "fetched")
    sent = [call for call in network.calls if call.startswith("PUT") and f"step-00000008/{MANIFEST}" in call]
    assert len(sent) == 1
    for step in (4, 8) if IS_LONG else (4,):  # one that is told of at a later step, and one at the end
        network.stop_at(lambda call, step=step: call.startswith("PUT") and f"step-{step:08d}/" in call)
        lives = start_two(*command, log=tmp_path / f"log{step}", action=impatient)
        assert network.stopped.wait(60), lives[0].said
        network.cut()
        assert [life.end() for life in lives] == [2, 2], [life.said for life in lives]
        assert "cannot be written" in lives[0].said
        assert lives[0].said.count("cannot be written") == 1
        network.mend()


def test_a_checkpoint_at_a_url_is_taken_wherever_one_is(
    network: Network, gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    command = ["run", gan, f'checkpoint.path="{URL}"', "every.save=4"]
    assert dtrain_here(*command, "--runs", tmp_path / "runs").code == 0
    run = only_run(tmp_path / "runs")
    url = f"{URL}/{NAME}/{run.name}"
    here = dtrain.load_models(run)["generator"].state_dict()
    for there in (url, f"{url}/checkpoints/step-00000008", f"{url}/"):
        models = dtrain.load_models(there)["generator"].state_dict()
        assert all(models[name].equal(value) for name, value in here.items())
    own, copied = (dtrain_here("evaluate", each, "--best", "--json") for each in (run, url))
    assert (own.code, copied.code) == (0, 0), copied.errors
    assert own.out.partition("examples")[2] == copied.out.partition("examples")[2]
    assert "generator" in dtrain_here("inspect", url).out
    assert dtrain_here("convert", url, tmp_path / "out.safetensors", "--model", "generator").code == 0
    nothing = dtrain_here("evaluate", f"{URL}/nothing")
    assert (nothing.code, nothing.errors) == (
        2,
        f"dtrain: {URL}/nothing is neither a checkpoint nor a run that has one\n",
    )

    early, late = f"{url}/checkpoints/step-00000004", f"{url}/checkpoints/step-00000008"
    said = dtrain_here(*command, "--runs", tmp_path / "branch", "--resume", early)
    assert said.code == 0, said.errors
    assert "step-00000004" in said.out.splitlines()[0]
    (branch,) = (tmp_path / "branch" / NAME).iterdir()
    assert branch.name != run.name
    assert last_tensors(branch) == last_tensors(run)
    said = dtrain_here("run", gan, "train.steps=10", "--runs", tmp_path / "longer", "--resume", late)
    assert said.code == 0, said.errors
    assert "step-00000008" in said.out.splitlines()[0]
    said = dtrain_here(*command, "--runs", tmp_path / "back", "--resume", url)
    assert said.code == 0, said.errors
    assert only_run(tmp_path / "back").name == run.name
    assert last_tensors(only_run(tmp_path / "back")) == last_tensors(run)
