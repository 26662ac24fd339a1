"""Models that begin with the weights of a file: which numbers they have, how precisely, in which runs."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli
import torch
import torch.nn.functional as F
from conftest import CLASSIFIER, Said, cut_off, only_run, written
from safetensors.torch import save_file
from torch import Tensor, nn

import dtrain
from dtrain.backends.torch_backend import build_model
from dtrain.errors import RecipeError
from dtrain.events import Stepped
from dtrain.recipe.write import to_toml
from dtrain.spec.decode import decoded
from dtrain.spec.models import AnyModel, Model, weights_of

Here = Callable[..., Said]
BEGINS = CLASSIFIER.replace("input = [1", 'weights = "given.safetensors"\ninput = [1')
ENCODER = {"kind": "torch.nn:TransformerEncoderLayer", "d_model": 4, "nhead": 2, "dim_feedforward": 8}
NETWORK = {  # the same as a stack of layers and in torch; the second with a layer that is imported
    "stack": (
        [
            {"kind": "conv", "out": 2, "kernel": 3},
            {"kind": "batch_norm"},
            {"kind": "flatten"},
            {"kind": "linear", "out": 3},
        ],
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3)),
    ),
    "imported layer": (
        [{"kind": "flatten"}, {"kind": "torch.nn:PReLU", "num_parameters": 64}, {"kind": "linear", "out": 3}],
        nn.Sequential(nn.Flatten(), nn.PReLU(64), nn.Linear(64, 3)),
    ),
}


def network() -> nn.Sequential:
    """The classifier of the recipe, in torch."""
    norm, rest = nn.BatchNorm2d(4), (nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3))
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, *rest, nn.Linear(64, 3))


def moved(module: nn.Module) -> dict[str, Tensor]:
    """Its state, no tensor of which is as any module begins."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                tensor.fill_(7)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.fixture
def recipe(tmp_path: Path, on_cpu: None) -> Path:
    """A recipe that begins with the weights of a file beside it."""
    save_file(moved(network()), tmp_path / "given.safetensors")
    return written(tmp_path, "classifier.toml", BEGINS)


def spec_of(table: Mapping[str, object]) -> Model:
    spec: Model = decoded(AnyModel, dict(table))
    return spec


def state_of(run: dtrain.Run) -> dict[str, Tensor]:
    return {
        name.partition("/")[2]: tensor.clone()
        for part, name, tensor in run.engine.tensors()
        if part == "models"
    }


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", NETWORK)
def test_a_stack_has_what_torch_loads(tmp_path: Path, name: str) -> None:
    layers, theirs = NETWORK[name]
    save_file(moved(theirs), tmp_path / "w.safetensors")
    given = str(tmp_path / "w.safetensors")
    ours = build_model("m", spec_of({"input": [1, 8, 8], "layers": layers, "weights": given}), seed=0)
    assert_same(ours.state_dict(), theirs.state_dict())
    picture = torch.rand(4, 1, 8, 8)
    assert torch.equal(ours.eval()(picture), theirs.eval()(picture))


def test_an_imported_model_has_what_torch_loads(tmp_path: Path) -> None:
    theirs = nn.TransformerEncoderLayer(4, 2, 8)
    save_file(moved(theirs), tmp_path / "w.safetensors")
    ours = build_model("m", spec_of(ENCODER | {"weights": str(tmp_path / "w.safetensors")}), seed=0)
    assert_same(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("precision", "kept"), [("fp32", torch.float32), ("fp64", torch.float64)])
def test_values_are_kept_in_the_precision_of_weights(
    recipe: Path, stored: torch.dtype, precision: str, kept: torch.dtype
) -> None:
    state = {name: t.to(stored) if t.is_floating_point() else t for name, t in moved(network()).items()}
    save_file(state, recipe.with_name("given.safetensors"))
    with dtrain.setup(dtrain.load(recipe, [f'train.precision="{precision}"']), runs=recipe.parent) as run:
        found = state_of(run)
    assert_same(found, {n: t.to(kept) if t.is_floating_point() else t for n, t in state.items()})


@pytest.mark.parametrize("given", [".", "model.safetensors.index.json"])
def test_several_files_are_found_by_their_index(recipe: Path, given: str) -> None:
    state = moved(network())
    recipe.with_name("given.safetensors").unlink()
    names = {name: f"model-0000{1 + (name < '1.c')}-of-00002.safetensors" for name in state}
    for file in set(names.values()):
        save_file({name: state[name] for name in state if names[name] == file}, recipe.with_name(file))
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": names})
    recipe.with_name("model.safetensors.index.json").write_text(index)
    with dtrain.setup(dtrain.load(recipe, set_files=[given_in(recipe, given)]), runs=recipe.parent) as run:
        assert_same(state_of(run), state)


def given_in(recipe: Path, weights: str) -> Path:
    """A file beside a recipe that says other weights."""
    path = recipe.with_name("other.toml")
    path.write_text(f'[models.classifier]\nweights = "{weights}"\n')
    return path


def test_a_file_inside_a_package_is_read_and_nothing_imported(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = recipe.parent / "site/some_package/deep/weights"
    inside.mkdir(parents=True)
    (inside.parents[1] / "__init__.py").write_text("raise SystemExit('imported')")
    recipe.with_name("given.safetensors").rename(inside / "w.safetensors")
    monkeypatch.syspath_prepend(recipe.parent / "site")
    loaded = dtrain.load(recipe, ["models.classifier.weights=some_package.deep:weights/w.safetensors"])
    source = weights_of(loaded.models["classifier"])
    assert source is not None
    assert str(source.path) == "some_package.deep:weights/w.safetensors"
    with dtrain.setup(loaded, runs=recipe.parent) as run:
        assert_same(state_of(run), moved(network()))


def test_names_are_mapped_by_patterns(recipe: Path) -> None:
    state = moved(network())
    theirs = {"0": "body.conv", "1": "body.norm", "6": "head"}
    save_file({theirs[n[0]] + n[1:]: t for n, t in state.items()}, recipe.with_name("given.safetensors"))
    names = '{ "body.conv.*" = "0.*", "*.norm.*" = "1.*", "head.*" = "6.*" }'
    with pytest.raises(RecipeError, match=r'"\*.norm.\*" 2; as many would do'):
        dtrain.load(recipe, [f'models.classifier.weights={{ path = "given.safetensors", names = {names} }}'])
    names = names.replace("*.norm", "body.norm")
    other = recipe.with_name("other.toml")
    other.write_text(f'[models.classifier]\nweights = {{ path = "given.safetensors", names = {names} }}\n')
    with dtrain.setup(dtrain.load(recipe, set_files=[other]), runs=recipe.parent) as run:
        assert_same(state_of(run), state)


def partial(recipe: Path) -> str:
    """A file with another head and a name that no model has; what takes the rest of it."""
    state = moved(network()) | {"6.weight": torch.ones(10, 64), "6.bias": torch.ones(10), "x": torch.ones(1)}
    path = recipe.with_name("partial.safetensors")
    save_file(state, path)
    return f'models.classifier.weights={{ path = "{path}", names = {{ "6.*" = "" }}, partial = true }}'


def test_partial_weights_leave_the_rest_as_it_would_be(recipe: Path) -> None:
    given, drawn = dtrain.load(recipe, [partial(recipe)]), dtrain.load(recipe)
    spec = drawn.models["classifier"]
    fresh = build_model("classifier", replace(spec, weights=None), seed=drawn.seed).state_dict()
    with dtrain.setup(given, runs=recipe.parent / "runs") as run:
        heads = {name: tensor for name, tensor in fresh.items() if name.startswith("6.")}
        assert_same(state_of(run), moved(network()) | heads)


def test_check_and_run_say_what_was_taken(recipe: Path, dtrain_here: Here) -> None:
    said = (
        f"7 of 9 tensors from {recipe.with_name('partial.safetensors')}; first values as without it: "
        "6.weight, 6.bias; left in the file: "
    )
    assert said in dtrain_here("check", recipe, partial(recipe)).out
    ran = dtrain_here("run", recipe, partial(recipe), "--runs", recipe.parent / "runs")
    assert f"classifier: {said}" in ran.out
    assert (ran.code, ran.errors) == (0, "")


def test_a_name_that_is_tied_to_another_in_the_model_will_do(tmp_path: Path) -> None:
    (tmp_path / "tied_model.py").write_text(
        "from torch import nn\nclass Tied(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)\n        self.b.weight = self.a.weight\n"
    )
    one, other, bias = torch.rand(3, 3), torch.rand(3, 3), {"a.bias": torch.rand(3), "b.bias": torch.rand(3)}
    for number, weights in enumerate([{"a": one}, {"b": one}, {"a": one, "b": one.clone()}]):
        path = tmp_path / f"{number}.safetensors"
        save_file({f"{name}.weight": tensor for name, tensor in weights.items()} | bias, path)
        ours = build_model("m", tied(tmp_path, path), seed=0)
        assert torch.equal(ours.state_dict()["b.weight"], one)
    save_file({"a.weight": one, "b.weight": other} | bias, tmp_path / "w.safetensors")
    with pytest.raises(RecipeError, match=r"a\.weight and b\.weight differ in .*w\.safetensors"):
        build_model("m", tied(tmp_path, tmp_path / "w.safetensors"), seed=0)


def tied(folder: Path, weights: Path) -> Model:
    return spec_of({"kind": f"{folder / 'tied_model.py'}:Tied", "weights": str(weights)})


def test_what_the_document_writes_is_a_model() -> None:
    text = (Path(dtrain.__file__).parents[1] / "docs" / "weights.md").read_text()
    pieces = re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found = [spec_of(model) for piece in pieces for model in tomli.loads(piece)["models"].values()]
    assert len(found) == 2
    assert all(weights_of(spec) is not None for spec in found)


def test_a_single_word_is_an_argument_of_an_imported_model() -> None:
    spec = spec_of({"kind": "torchvision.models:resnet18", "weights": "DEFAULT"})
    assert weights_of(spec) is None
    assert spec.arguments == {"weights": "DEFAULT"}  # type: ignore[union-attr]  # it is imported


def test_a_run_is_the_loop_by_hand_that_begins_so(recipe: Path) -> None:
    whole = ["train.batch_size=20", "train.micro_batch_size=20", "train.epochs=5", "every.log=1"]
    sgd = 'optimizers.classifier={ kind = "sgd", lr = 0.05 }'
    layers = "models.classifier.layers[5].rate=0.0"
    loaded = dtrain.load(recipe, [*whole, sgd, layers, 'train.precision="fp64"', "track.kinds=[]"])
    theirs = network().double()
    theirs.load_state_dict(moved(network()))
    theirs[5] = nn.Identity()
    with np.load(recipe.with_name("pictures.npz")) as data:
        x = torch.from_numpy(data["train_image"])[:, None].double() / 127.5 - 1
        y = torch.from_numpy(data["train_label"])
    wanted = []
    for _ in range(5):
        loss = F.cross_entropy(theirs(x), y, label_smoothing=0.1)
        wanted.append(loss.item())
        gradients = torch.autograd.grad(loss, list(theirs.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(theirs.parameters(), gradients, strict=True):
                parameter -= 0.05 * gradient
    with dtrain.setup(loaded, runs=recipe.parent / "runs") as run:
        events = list(dtrain.train(run))
        found = state_of(run)
    losses = [event.metrics["classifier/loss"] for event in events if isinstance(event, Stepped)]
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-9)


def test_a_resolved_recipe_takes_no_other_weights(recipe: Path) -> None:
    loaded = dtrain.load(recipe)
    source = weights_of(loaded.models["classifier"])
    assert source is not None
    assert source.path == recipe.with_name("given.safetensors")
    again = written(recipe.parent / "elsewhere", "again.toml", to_toml(loaded))
    assert dtrain.load(again).models == loaded.models
    save_file({n: t + 1 for n, t in moved(network()).items()}, source.path)
    assert dtrain.load(again).models == loaded.models
    assert dtrain.load(recipe).models != loaded.models
    with pytest.raises(
        RecipeError, match=r"given\.safetensors is not what the recipe was made with any more"
    ):
        dtrain.setup(loaded, runs=recipe.parent / "runs")


def test_a_run_needs_its_file_no_more(recipe: Path, dtrain_here: Here) -> None:
    runs = recipe.parent / "runs"
    whole = only_run_of(recipe, recipe.parent / "left-alone")
    run = cut_off(recipe, runs, 2)
    recipe.with_name("given.safetensors").unlink()
    shutil.copy(run / "recipe.toml", recipe.with_name("resolved.toml"))
    assert dtrain_here("evaluate", run).code == 0
    assert dtrain.load_models(run).keys() == {"classifier"}
    said = dtrain_here("run", recipe.with_name("resolved.toml"), "--resume", run)
    assert (said.code, said.errors) == (0, "")
    assert "carrying on from" in said.out
    assert_same(weights_in(run), weights_in(whole))


def test_a_resumed_run_needs_the_checkpoint_that_it_began_with_no_more(recipe: Path) -> None:
    first = only_run_of(recipe, recipe.parent / "first")
    text = CLASSIFIER.replace(
        "input = [1", f'weights_from = {{ path = "{first}", model = "classifier" }}\ninput = [1'
    )
    second = written(recipe.parent, "second.toml", text)
    loaded = dtrain.load(second)
    run = cut_off(second, recipe.parent / "runs", 2)
    shutil.rmtree(first)
    with dtrain.setup(loaded, runs=recipe.parent / "runs", resume=run) as resumed:
        assert resumed.step == 2
        assert resumed.folder == run


def only_run_of(recipe: Path, runs: Path) -> Path:
    """The folder of a run of a recipe, from its beginning to its end."""
    with dtrain.setup(dtrain.load(recipe), runs=runs) as run:
        list(dtrain.train(run))
    return only_run(runs)


def weights_in(run: Path) -> dict[str, Tensor]:
    return dtrain.load_models(run)["classifier"].state_dict()
