"""`${a.b.c}` brings what stands there, typed, inside strings as text; `${env:NAME}` where machines differ."""

from pathlib import Path
from typing import Any

import pytest
from conftest import GAN, written
from reading import changed, marked, mistakes_in, mistakes_of, read, spots_of

import dtrain
from dtrain.recipe.write import encode


def with_hyperparameters(lines: str, seed: str = "3") -> str:
    return GAN.replace("lr = 2e-3", f"lr = 2e-3\n{lines}").replace("seed = 3", f"seed = {seed}")


@pytest.mark.parametrize(
    ("lines", "name", "expected"),
    [
        ("", "gan-${hyperparameters.lr}", "gan-0.002"),
        ("size = 4", "s${hyperparameters.size}-${seed}", "s4-3"),
        ("on = true", "${hyperparameters.on}", True),
        ("a = '${hyperparameters.b}'\nb = 'x'", "${hyperparameters.a}", "x"),
        ("a = 'pre-${hyperparameters.b}'\nb = 'x'", "${hyperparameters.a}-post", "pre-x-post"),
        ("on = true", "is-${hyperparameters.on}", "is-true"),
        ("'a b' = 'x'", '${hyperparameters."a b"}', "x"),
        ("a = ['x', 'y']", "${hyperparameters.a[1]}", "y"),
        ("", "${models.generator.layers[0].kind}", "linear"),
        ("", "$hyperparameters", "letters"),
    ],
)
def test_references_are_typed_and_within_strings_text(lines: str, name: str, expected: Any) -> None:
    text = with_hyperparameters(lines).replace('name = "tiny-gan"', f"name = '{name}'")
    if name.startswith("$h"):
        assert expected in mistakes_in(text)["name"]  # no reference: and no name
    elif isinstance(expected, str):
        assert read(text).name == expected
    else:  # the mistake is the value's, where it was said
        said = mistakes_in(text)["hyperparameters.on"]
        assert said == "found true; a string would do (for name)"


def test_a_reference_brings_numbers_arrays_and_whole_tables() -> None:
    text = changed("latent = 4", 'latent = "${models.generator.input_size}"')
    assert "refers to nothing" in mistakes_in(text)["system.latent"]
    text = with_hyperparameters('n = 4\nshape = [2, 4, 4]\nplan = { kind = "linear", warmup = 3 }')
    text = changed("latent = 4", 'latent = "${hyperparameters.n}"', text)
    text = changed("shape = [2, 4, 4] }", 'shape = "${hyperparameters.shape}" }', text)
    text = changed('schedule = { kind = "cosine", warmup = 4 }', 'schedule = "${hyperparameters.plan}"', text)
    recipe = read(text)
    assert recipe.system == read(GAN).system
    assert recipe.models == read(GAN).models
    assert encode(recipe.optimizers["generator"].schedule) == {"kind": "linear", "warmup": 3, "floor": 0.0}


NOWHERE = [  # lines among the hyperparameters, the seed, key and words of the mistake
    ("", '^"${hyperparameter.lr}"', "seed", 'refers to nothing; did you mean "hyperparameters.lr"?'),
    ("", '^"${hyperparameters.lt}"', "seed", 'refers to nothing; did you mean "hyperparameters.lr"?'),
    ("", '^"${hyperparameterslr}"', "seed", 'did you mean "hyperparameters.lr"?'),
    ("", '^"${lr}"', "seed", 'did you mean "hyperparameters.lr"?'),
    ("", '^"${system.latents}"', "seed", 'did you mean "system.latent"?'),
    ("", '^"${hyperparameters.lr.}"', "seed", "refers to nothing"),
    ("", '^"${}"', "seed", "refers to nothing"),
    ("", '^"${name.x}"', "seed", "${name.x} refers to nothing"),
    ("", '^"${seed}"', "seed", "references go in a circle: seed -> seed"),
    ("^a = '${hyperparameters.b}'\nb = '${hyperparameters.a}'", "3", "hyperparameters.a", "circle"),
    ("t = { a = 1 }", '^"x${hyperparameters.t}"', "seed", "only single values can stand inside a string"),
    ("t = 'x'", '^"${hyperparameters.t}"', "hyperparameters.t", 'found "x"; a whole number would do (for'),
    ("^ls = 1\na = '${hyperparameters.l}'\nb = '${hyperparameters.l}'", "3", "hyperparameters.ls", '"l"?'),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "seed", "key", "said"), NOWHERE)
def test_a_reference_that_leads_nowhere_is_named(
    tmp_path: Path, lines: str, seed: str, key: str, said: str
) -> None:
    text, where = marked(with_hyperparameters(lines, seed))
    found = {error.key: error for error in mistakes_of(written(tmp_path, "gan.toml", text))}
    assert key in found, found
    assert said in found[key].message
    if key.endswith(".t"):  # it stands where it was said, and who refers to it is named
        assert f", {tmp_path / 'gan.toml'}:{where[0]}:{where[1]})" in found[key].message
    elif ".a" not in key:
        assert spots_of([found[key]])[0][1] == where[0]


def test_the_name_of_a_hyperparameter_is_wrong_where_all_that_refers_to_it_says_otherwise(
    tmp_path: Path,
) -> None:
    for name, at in (("rl", "hyperparameters.rl"), ("lx", "hyperparameters.lx")):
        text, where = marked(changed("lr = 2e-3", f"^{name} = 2e-3"))
        (error,) = mistakes_of(written(tmp_path, "gan.toml", text))
        assert (error.key, error.suggestion, spots_of([error])) == (at, "lr", [("gan.toml", *where)])
    text, where = marked(changed("[hyperparameters]", "[^hyperparameter]"))
    (error,) = mistakes_of(written(tmp_path, "gan.toml", text))
    assert (error.suggestion, spots_of([error])) == ("hyperparameters", [("gan.toml", *where)])


def test_a_mistake_in_what_a_reference_brings_is_told_where_that_is_written(tmp_path: Path) -> None:
    text = with_hyperparameters('plan = { kind = "linear", flor = 0.1 }')
    text = changed('schedule = { kind = "cosine", warmup = 4 }', 'schedule = "${hyperparameters.plan}"', text)
    (error,) = mistakes_of(written(tmp_path, "gan.toml", text))
    assert (error.key, error.suggestion) == ("hyperparameters.plan.flor", "floor")
    assert spots_of([error]) == [("gan.toml", 6, 27)]
    assert error.message.endswith(f"(for optimizers.*.schedule, {tmp_path}/gan.toml:37:12)")
    wrong = changed('schedule = "${', 'shedule = "${', changed("flor", "floor", text))
    (error,) = mistakes_of(written(tmp_path, "gan.toml", wrong))  # here the key is wrong, and not the value
    assert (error.key, spots_of([error])) == ("optimizers.*.shedule", [("gan.toml", 37, 1)])


# --- the environment ---


@pytest.mark.parametrize(
    ("old", "new", "place", "expected"),
    [
        ('path = "pictures.npz"', 'path = "${env:HERE}/a"', ("data", "path"), Path("/nowhere/there/a")),
        ('path = "pictures.npz"', 'path = "${env:ROOT}/a.npz"', ("data", "path"), Path("/root of all/a.npz")),
        ('path = "pictures.npz"', 'path = "${env:NO_SUCH:/b}"', ("data", "path"), Path("/b")),
        ('path = "pictures.npz"', 'path = "${env:NO_SUCH:a:b}"', ("data", "path"), Path("/nowhere/a:b")),
        ("[track]", '[track]\nproject = "${env:HERE}"', ("track", "project"), "there"),
        ("[track]", '[track]\nproject = "p-${env:NO_SUCH:}"', ("track", "project"), "p-"),
    ],
)  # fmt: skip
def test_the_environment_may_say_paths_and_what_trackers_need(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str, place: tuple[str, str], expected: Any
) -> None:
    monkeypatch.setenv("HERE", "there")
    monkeypatch.setenv("ROOT", "/root of all")
    table, key = place
    assert getattr(getattr(read(changed(old, new)), table), key) == expected


@pytest.mark.parametrize(
    ("old", "new", "key", "said"),
    [
        ("seed = 3", 'seed = "${env:SEED}"', "seed", "may stand in paths and in [track] alone"),
        ('name = "tiny-gan"', 'name = "${env:SEED}"', "name", "may stand in paths and in [track] alone"),
        ("lr = 2e-3", 'lr = "${env:SEED}"', "hyperparameters.lr", "may stand in paths and in [track] alone"),
        ('"pictures.npz"', '"${env:SEDE}"', "data.path", 'has no SEDE; set it, or give a default'),
        ('"pictures.npz"', '"${env:SEDE}"', "data.path", 'did you mean "SEED"?'),
        ('kind = "arrays"', 'kind = "${env:SEED}"', "data.kind", "may stand in paths"),
    ],
)  # fmt: skip
def test_the_environment_says_nothing_that_a_result_depends_on(
    monkeypatch: pytest.MonkeyPatch, old: str, new: str, key: str, said: str
) -> None:
    monkeypatch.setenv("SEED", "7")
    found = mistakes_in(changed(old, new))
    assert said in found[key], found


def test_a_path_through_a_hyperparameter_may_come_from_the_environment_of_its_place(
    monkeypatch: pytest.MonkeyPatch, gan: Path
) -> None:
    monkeypatch.setenv("WHERE", str(gan.parent))
    assert dtrain.load(gan, ["data.path=${env:WHERE}/x.npz"]).data.path == gan.parent / "x.npz"
