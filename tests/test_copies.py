"""Copies of runs in another folder, or in memory: what is sent, what is fetched, what is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import Said, cut_off, last_tensors, only_run, tensors_of

import dtrain
from dtrain.checkpoint.lease import HELD, TOKEN, HeldError, hold
from dtrain.checkpoint.read import checkpoints_in, open_checkpoint, step_of
from dtrain.checkpoint.record import read_record
from dtrain.errors import CheckpointError
from dtrain.format.addresses import address
from dtrain.format.files import MANIFEST, STATE, sealed
from dtrain.format.locks import lock
from dtrain.format.metrics import METRICS
from dtrain.format.remote import bring, fetched, place, steps_in, whole_steps
from dtrain.format.stores import Folder, Store
from dtrain.format.urls import Remote, open_store

Here = Callable[..., Said]
NAME = "tiny-gan"


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An empty memory, a cache of its own, and no patience."""
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setenv("DTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dtrain.format.urls.PAUSES", (0.01,))
    monkeypatch.setattr("dtrain.checkpoint.lease.BEAT", 0.1)
    monkeypatch.setattr("dtrain.checkpoint.lease.PATIENCE", 0.6)
    monkeypatch.setattr("dtrain.checkpoint.lease.SETTLE", 0.05)
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("runs", Path("runs")),
        (Path("/a/b"), Path("/a/b")),
        ("s3://bucket/some/run/", "s3://bucket/some/run"),
        (Path("s3://bucket/run"), "s3://bucket/run"),  # which has lost a slash
        ("GS://bucket", "gs://bucket"),
        ("file:///mnt/disk", Path("/mnt/disk")),
        (Path("file:///mnt/disk"), Path("/mnt/disk")),
        ("./s3:/bucket", Path("s3:/bucket")),
        ("a:b/c", Path("a:b/c")),
    ],
)
def test_an_address_is_a_folder_or_a_url(given: str | Path, meant: str | Path) -> None:
    assert address(given) == meant
    assert type(address(given)) is type(meant)


PLACES = {"a folder": "{}/disk", "a URL": "memory://disk"}


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.param.format(tmp_path)


def store_at(elsewhere: str) -> Store:
    return open_store(address(f"{elsewhere}/{NAME}"))


def assert_copied(run: Path, store: Store, to: Path) -> None:
    """What is there are the run's checkpoints, each with the same bits."""
    own = checkpoints_in(run)
    assert whole_steps(store, run.name) == steps_in(store, run.name)
    assert list(store.entries(f"{run.name}/checkpoints")) == [path.name for path in own] or sorted(
        store.entries(f"{run.name}/checkpoints")
    ) == [path.name for path in own]
    for step, path in zip(steps_in(store, run.name), own, strict=True):
        bring(store, place(run.name, step), to / "checkpoints" / path.name)
        assert tensors_of(to / "checkpoints" / path.name) == tensors_of(path)
    assert store.read(f"{run.name}/recipe.toml") == (run / "recipe.toml").read_bytes()
    assert store.read(f"{run.name}/{METRICS}") is not None


def test_a_run_has_the_same_checkpoints_elsewhere_and_goes_on_from_them_where_its_folder_is_gone(
    gan: Path, tmp_path: Path, dtrain_here: Here, elsewhere: str
) -> None:
    override = f'checkpoint.path="{elsewhere}"'
    run = cut_off(gan, tmp_path / "runs", 4, override)
    name = run.name
    shutil.rmtree(tmp_path / "runs")
    said = dtrain_here("run", gan, override, "--runs", tmp_path / "runs")
    assert said.code == 0, said.errors
    run = only_run(tmp_path / "runs")
    assert run.name == name
    assert said.out.startswith("carrying on from")
    assert_copied(run, store_at(elsewhere), tmp_path / "look")
    assert dtrain_here("run", gan, "--runs", tmp_path / "alone").code == 0
    alone = only_run(tmp_path / "alone")
    for path in checkpoints_in(run):
        assert tensors_of(path) == tensors_of(alone / "checkpoints" / path.name)
    shutil.rmtree(tmp_path / "runs")
    anew = dtrain_here("run", gan, override, "--runs", tmp_path / "runs")  # that one had finished
    assert (anew.code, "carrying on" in anew.out) == (0, False)
    shutil.rmtree(tmp_path / "runs")
    once = dtrain_here("run", gan, override, "--once", "--runs", tmp_path / "runs")
    assert (once.code, "carrying on" in once.out) == (0, True)
    assert last_tensors(only_run(tmp_path / "runs")) == last_tensors(alone)


def test_a_copy_without_a_checkpoint_says_what_its_run_began_from(
    gan: Path, tmp_path: Path, elsewhere: str
) -> None:
    first = cut_off(gan, tmp_path / "first", 4)
    recipe = dtrain.load(gan, ["train.steps=10", f'checkpoint.path="{elsewhere}"'])
    with dtrain.setup(recipe, runs=tmp_path / "runs", resume=first) as ready:
        run = ready.folder
    shutil.rmtree(tmp_path / "runs")
    with dtrain.setup(recipe, runs=tmp_path / "runs") as ready:
        assert (ready.folder, ready.step) == (run, 4)
        assert ready.place.checkpoint == checkpoints_in(first)[-1]


def test_a_copy_has_the_record_and_is_proved_by_it(
    gan: Path, tmp_path: Path, dtrain_here: Here, elsewhere: str
) -> None:
    """Each step of it, and each checkpoint, also such as are there no more."""
    own = ["train.deterministic=true", "checkpoint.keep=1", f'checkpoint.path="{elsewhere}"']
    assert dtrain_here("run", gan, *own, "--runs", tmp_path / "runs").code == 0
    name = only_run(tmp_path / "runs").name
    shutil.rmtree(tmp_path / "runs")
    said = dtrain_here("reproduce", f"{elsewhere}/{NAME}/{name}")
    assert said.code == 0, said.out + said.errors
    steps = "every tensor at step 2, 3, 4, 6, 8"
    assert said.out.endswith(f"{steps} and a digest of each after every step until 8\n")


def test_a_checkpoint_that_could_not_be_copied_is_recorded(gan: Path, tmp_path: Path) -> None:
    recipe = dtrain.load(gan, [f'checkpoint.path="{tmp_path}/disk"'])
    with dtrain.setup(recipe, runs=tmp_path / "runs") as run:
        shutil.rmtree(tmp_path / "disk")
        with pytest.raises(CheckpointError, match="cannot be written"):
            list(dtrain.train(run))
    assert set(read_record(run.folder).saved) == {step_of(path) for path in checkpoints_in(run.folder)}


def test_the_later_of_both_goes_on_and_fresh_begins_anew(
    gan: Path, tmp_path: Path, dtrain_here: Here, elsewhere: str
) -> None:
    override = f'checkpoint.path="{elsewhere}"'
    run = cut_off(gan, tmp_path / "runs", 6, override)
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    with dtrain.setup(dtrain.load(gan, [override]), runs=tmp_path / "runs") as ready:
        assert (ready.folder, ready.step) == (run, 6)
    shutil.rmtree(open_folder(elsewhere, run, 6)) if "memory" not in elsewhere else store_at(
        elsewhere
    ).remove(place(run.name, 6))
    with dtrain.setup(dtrain.load(gan, [override]), runs=tmp_path / "runs") as ready:
        assert (ready.folder, ready.step) == (run, 6)
    assert 6 in whole_steps(store_at(elsewhere), run.name)  # and was sent again
    with dtrain.setup(dtrain.load(gan, [override]), runs=tmp_path / "runs", fresh=True) as ready:
        assert (ready.folder != run, ready.step) == (True, 0)
    other = [override, "optimizers.generator.lr=1e-4"]
    with dtrain.setup(dtrain.load(gan, other), runs=tmp_path / "others") as ready:
        assert ready.step == 0


def open_folder(elsewhere: str, run: Path, step: int) -> Path:
    where = address(f"{elsewhere}/{NAME}/{place(run.name, step)}")
    assert isinstance(where, Path)
    return where


def test_what_stays_here_stays_there(gan: Path, tmp_path: Path, dtrain_here: Here, elsewhere: str) -> None:
    rule = [
        "checkpoint.keep=1",
        "checkpoint.keep_every=4",
        "train.steps=14",
        f'checkpoint.path="{elsewhere}"',
    ]
    run = cut_off(gan, tmp_path / "runs", 6, *rule)
    shutil.rmtree(tmp_path / "runs")
    assert dtrain_here("run", gan, *rule, "--runs", tmp_path / "runs").code == 0
    assert dtrain_here("run", gan, *rule[:-1], "--runs", tmp_path / "alone").code == 0
    alone = [int(path.name[-8:]) for path in checkpoints_in(only_run(tmp_path / "alone"))]
    assert {4, 8, 12, 14} <= set(alone)
    assert whole_steps(store_at(elsewhere), run.name) == alone
    assert 4 not in [int(path.name[-8:]) for path in checkpoints_in(only_run(tmp_path / "runs"))]


def test_a_folder_elsewhere_never_shows_a_part_of_a_checkpoint(gan: Path, tmp_path: Path) -> None:
    run = cut_off(gan, tmp_path / "runs", 4)
    store = Folder(tmp_path / "disk")
    checkpoint = checkpoints_in(run)[-1]
    (checkpoint / ".notes").mkdir()  # what is not the checkpoint's own stays here
    with pytest.raises(CheckpointError, match="cannot be written"):  # the disk is not there
        store.send_checkpoint(checkpoint, place(run.name, 4))
    assert not (tmp_path / "disk").exists()
    (tmp_path / "disk" / run.name).mkdir(parents=True)
    store.send_checkpoint(checkpoint, place(run.name, 4))
    assert open_checkpoint(tmp_path / "disk" / place(run.name, 4)).step == 4
    store.remove(place(run.name, 4))
    (checkpoint / STATE).unlink()
    (checkpoint / STATE).symlink_to(tmp_path / "nowhere")  # the last file that is copied before the manifest
    with pytest.raises(CheckpointError, match="cannot be written"):
        store.send_checkpoint(checkpoint, place(run.name, 4))
    assert store.entries(f"{run.name}/checkpoints") == {}
    assert not list((tmp_path / "disk" / run.name / ".partial").iterdir())


def test_places_that_will_not_do_are_told_of_before_anything_is_trained(
    gan: Path, tmp_path: Path, dtrain_here: Here
) -> None:
    (tmp_path / "file").write_text("")
    cases = {
        f"{tmp_path}/file/below": f"checkpoint.path: {tmp_path}/file is no folder; one would do, or a URL",
        f"{tmp_path}/file": f"checkpoint.path: {tmp_path}/file is no folder; one would do, or a URL",
        "nosuch://bucket": "checkpoint.path: fsspec knows of no nosuch://",
        "s5://bucket/runs": 'checkpoint.path: fsspec knows of no s5://; did you mean "s3://bucket/runs"?',
        str(tmp_path / "runs"): "is the folder of runs itself; another would do, or none",
        "": 'checkpoint.path: found ""; a path would do, or no such key ("${unset}" removes one)',
        "ftp://me:secret@host/runs": "checkpoint.path: found a password, which every checkpoint would have",
        "simplecache::s3://bucket": "is a chain of URLs; a single one would do",
        "s3://bucket/../other": "checkpoint.path: s3://bucket/../other has parts that lead elsewhere",
    }
    if find_spec("gcsfs") is None:
        cases["gs://bucket"] = (
            "gs://bucket/tiny-gan: a library for gs:// is missing; pip install 'dtrain[gs]' brings it"
        )
    for path, wanted in cases.items():
        said = dtrain_here("run", gan, f'checkpoint.path="{path}"', "--runs", tmp_path / "runs")
        assert (said.code, said.errors.count("\n")) == (2, 1), said.errors
        assert wanted in said.errors
        if "checkpoint.path: " in wanted:  # what can be known is said by check, too
            assert dtrain_here("check", gan, f'checkpoint.path="{path}"').errors == said.errors
    assert not list((tmp_path / "runs").glob("*/*"))


def test_a_stranger_names_no_place_to_write_to(gan: Path, tmp_path: Path, dtrain_here: Here) -> None:
    text = gan.read_text()
    for path in ("s3://theirs/runs", "/tmp/theirs", "../theirs"):
        gan.write_text(text.replace("[checkpoint]", f'[checkpoint]\npath = "{path}"'))
        said = dtrain_here("run", gan, "--untrusted", "--runs", tmp_path / "runs")
        assert said.code == 2
        assert "lies outside of the recipe's folder, and it is not trusted" in said.errors
    own = f'checkpoint.path="memory://{tmp_path.name}"'
    assert dtrain_here("run", gan, "--untrusted", own, "--runs", tmp_path / "runs").code == 0


def test_a_relative_place_is_relative_to_the_recipe(gan: Path) -> None:
    gan.write_text(gan.read_text().replace("[checkpoint]", '[checkpoint]\npath = "../copies"'))
    assert dtrain.load(gan).checkpoint.path == gan.parent.parent / "copies"
    assert dtrain.load(gan, ['checkpoint.path="s3://b/c/"']).checkpoint.path == "s3://b/c"
    os.environ["DTRAIN_TEST_BUCKET"] = "mine"
    gan.write_text(gan.read_text().replace("../copies", "s3://${env:DTRAIN_TEST_BUCKET}/runs"))
    assert dtrain.load(gan).checkpoint.path == "s3://mine/runs"


@pytest.fixture
def copied(gan: Path, tmp_path: Path) -> tuple[Path, Remote]:
    """A run, and the store in memory that has it."""
    run = cut_off(gan, tmp_path / "runs", 4, 'checkpoint.path="memory://there"')
    store = open_store(f"memory://there/{NAME}/{run.name}")
    assert isinstance(store, Remote)
    return run, store


def test_what_is_fetched_is_kept_until_it_is_another(copied: tuple[Path, Remote], tmp_path: Path) -> None:
    run, store = copied
    url = str(store.where)
    path = fetched(url)
    assert [each.name for each in checkpoints_in(path)] == ["step-00000004"]
    assert tensors_of(checkpoints_in(path)[0]) == tensors_of(checkpoints_in(run)[-1])
    file = checkpoints_in(path)[0] / "state.json"
    before = file.stat().st_ino
    assert fetched(url) == path
    assert file.stat().st_ino == before
    other = shutil.copytree(checkpoints_in(run)[-1], tmp_path / "step-00000004")
    table = json.loads((other / "manifest.json").read_bytes())
    del table["checksum"]
    table["environment"]["host"] = "another"
    (other / "manifest.json").write_bytes(sealed(table))
    store.send_checkpoint(other, place("", 4))  # another under the same name
    fetched(url)
    manifest = file.with_name("manifest.json")
    assert manifest.read_bytes() == (other / "manifest.json").read_bytes()
    store.remove(place("", 4))
    assert [each.name for each in checkpoints_in(fetched(url))] == ["step-00000003"]
    record = dtrain.load_run(url)
    assert (record.name, record.id, list(record.checkpoints)) == (NAME, run.name, [3])
    one = fetched(Path(f"{url}/checkpoints/step-00000002"))
    assert tensors_of(one) == tensors_of(run / "checkpoints" / "step-00000002")
    assert fetched(run) == run
    assert fetched("nowhere/at/all") == Path("nowhere/at/all")


def test_each_checkpoint_of_a_copy_is_verified(copied: tuple[Path, Remote], dtrain_here: Here) -> None:
    run, store = copied
    said = dtrain_here("verify", store.where)
    assert said.code == 0, said.errors
    places = [line.split()[0] for line in said.out.splitlines()[:-1]]
    assert places == [f"{store.where}/checkpoints/{path.name}" for path in checkpoints_in(run)]
    assert dtrain_here("verify", places[0]).out.startswith(f"{places[0]}  whole: ")
    store.write(b"{}", f"{place('', 3)}/{STATE}")
    said = dtrain_here("verify", store.where)
    assert (said.code, said.errors.count("\n")) == (2, 1)
    assert f"{store.at(place('', 3))}/{STATE} is of 2 bytes" in said.errors


@pytest.mark.parametrize("inside", ["", ".partial", "recipe.toml"])
def test_a_place_that_cannot_take_what_is_fetched_is_named(
    copied: tuple[Path, Remote], tmp_path: Path, inside: str
) -> None:
    """There is something else in its way: a file for a folder, or the reverse."""
    url, cache = str(copied[1].where), tmp_path / "cache"
    place = fetched(url) / inside if inside else cache
    if place.is_dir():
        shutil.rmtree(place)
        place.write_text("")
        wanted = f"{place.parent} cannot be written: "
    elif inside:
        place.unlink()
        (place / "more").mkdir(parents=True)
        wanted = f"{place.parent} cannot be written: "
    else:
        place.write_text("")
        wanted = "cannot be used to keep copies: "
    with pytest.raises(CheckpointError) as error:
        fetched(url)
    assert wanted in str(error.value)


def forged(run: Path, **files: dict[str, object]) -> bytes:
    """The manifest of a checkpoint with other entries among its files, well sealed."""
    manifest = json.loads((run / "checkpoints" / "step-00000004" / MANIFEST).read_bytes())
    del manifest["checksum"]
    manifest["files"] |= files
    return sealed(manifest)


def test_what_is_not_whole_there_is_refused_by_name_and_leaves_nothing_here(
    copied: tuple[Path, Remote], tmp_path: Path
) -> None:
    run, store = copied
    there, own = place("", 4), checkpoints_in(run)[-1]
    url = f"{store.where}/{there}"
    entry = {"size": 3, "hash": "0" * 32}
    outside = tmp_path / "outside"
    cases: dict[str, tuple[Callable[[], object], str]] = {
        "a file is missing": (lambda: store.delete(f"{there}/state.json"), f"{url}/state.json is missing"),
        "a file is cut short": (
            lambda: store.write((own / "state.json").read_bytes()[:-1], f"{there}/state.json"),
            f"{url}/state.json is of ",
        ),
        "a byte is another": (
            lambda: store.write((own / "state.json").read_bytes()[:-1] + b" ", f"{there}/state.json"),
            f"{url}/state.json was altered",
        ),
        "the manifest is cut short": (
            lambda: store.write((own / MANIFEST).read_bytes()[:-9], f"{there}/{MANIFEST}"),
            f"{url}/{MANIFEST} cannot be read",
        ),
        "there is no manifest": (
            lambda: store.delete(f"{there}/{MANIFEST}"),
            f"{url} is neither a checkpoint nor a run that has one",
        ),
        "a name leads elsewhere": (
            lambda: store.write(forged(run, **{f"../../{outside.name}": entry}), f"{there}/{MANIFEST}"),
            "which is not a file of this checkpoint",
        ),
        "a name is absolute": (
            lambda: store.write(forged(run, **{str(outside): entry}), f"{there}/{MANIFEST}"),
            "which is not a file of this checkpoint",
        ),
        "a size is huge": (
            lambda: store.write(
                forged(run, **{"state.json": {**entry, "size": 1 << 60}}), f"{there}/{MANIFEST}"
            ),
            "lists 1152921504606846976 bytes",
        ),
    }
    for case, (spoil, words) in cases.items():
        store.send_checkpoint(own, there)
        spoil()
        with pytest.raises(CheckpointError) as error:
            fetched(url)
        assert words in str(error.value), case
        assert not list((tmp_path / "cache").glob("*/checkpoints/*")), case
        assert not list((tmp_path / "cache").glob("*/.partial/*")), case
        assert not outside.exists()


def test_a_run_that_somebody_works_on_is_left_alone_and_one_that_nobody_does_is_taken_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store, run = open_store("memory://there"), tmp_path / "here" / "run"
    assert isinstance(store, Remote)
    with hold(store, run) as check:
        check()
        with (
            pytest.raises(HeldError, match="is being worked on by a process on"),
            hold(store, tmp_path / "other" / "run"),
        ):
            pass
        check()
    assert store.entries("run") == {}
    assert "whether" in capfd.readouterr().err
    store.write(b'{"host": "gone", "token": "1", "count": 7}', f"run/{HELD}")
    with hold(store, tmp_path / "other" / "run") as check:
        assert "for 1 s whether gone still works on memory://there/run" in capfd.readouterr().err
        own = (tmp_path / "other" / "run" / TOKEN).read_text()
        with hold(store, tmp_path / "other" / "run"):  # a next life in the same folder need not watch
            assert capfd.readouterr().err == ""
        store.write(b'{"host": "thief", "token": "2", "count": 1}', f"run/{HELD}")
        with pytest.raises(HeldError, match="by a process on thief"):
            check()
    assert own
    assert HELD in store.entries("run")  # which is the thief's
    folder = Folder(tmp_path / "disk")
    with hold(folder, run), pytest.raises(HeldError), hold(folder, run):
        pass
    (tmp_path / "disk" / "run").mkdir(exist_ok=True)
    with lock(tmp_path / "disk" / "run"), pytest.raises(HeldError), hold(folder, run):
        pass


def test_a_run_that_lost_its_copy_to_another_process_ends(gan: Path, tmp_path: Path) -> None:
    recipe = dtrain.load(gan, ['checkpoint.path="memory://there"'])
    with dtrain.setup(recipe, runs=tmp_path / "runs") as run:
        store = open_store(f"memory://there/{NAME}/{run.place.id}")
        assert isinstance(store, Remote)
        store.write(b'{"host": "thief", "token": "2", "count": 1}', HELD)
        with pytest.raises(CheckpointError, match="is being worked on by a process on thief"):
            list(dtrain.train(run))


WITHOUT = """
import sys
from dtrain.cli.app import carry_out
code = carry_out(sys.argv[1:])
print("fsspec" in sys.modules, code)
"""


def test_fsspec_is_imported_where_there_is_a_url_alone(gan: Path) -> None:
    for arguments in (["--help"], ["check", str(gan)], ["check", str(gan), "checkpoint.path=s3://b/c"]):
        said = subprocess.run([sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True)
        assert said.stdout.splitlines()[-1] == "False 0", said.stdout + said.stderr
