"""What a recipe from elsewhere may import, and that the rest is refused before anything is imported."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from dtrain.cli.trust import config_path, trust_of
from dtrain.errors import DtrainError
from dtrain.spec.imports import WANTED, Role, find, written_path
from dtrain.spec.trust import EVERYTHING, ImportPathError, Trust
from dtrain.systems.gan import GAN

HOSTILE = [
    *("builtins:eval", "builtins:exec", "builtins:__import__", "builtins:open", "builtins:type"),
    *("os:system", "os:_exit", "posix:system", "os.path:join", "subprocess:run", "subprocess:Popen"),
    *("sys:exit", "sys:settrace", "importlib:import_module", "pickle:loads", "shutil:rmtree", "ctypes:CDLL"),
    *("torch:load", "torch.hub:load", "torch.jit:load", "torch.package:PackageImporter", "torch:save"),
    *("torch.serialization:load", "torch.utils.cpp_extension:load", "torch.nn.functional:relu", "torch:nn"),
    *("torch.nn.modules.linear:Linear", "torch.nn.utils.rnn:sys", "torch.optim.optimizer:os"),
    *("torch.nn:functional.torch.hub.load", "torch.nn:functional.sys.modules", "torch.nn:Module.__init__"),
    *("torch.nn:Module.__init__.__globals__", "torch.nn:Linear.__class__", "torch.nn:__builtins__"),
    *("torch.nn:_reduction", "torch.optim:Optimizer.__init__.__globals__", "torch.optim:_functional.torch"),
    *("torch.optim.lr_scheduler:LRScheduler.__subclasses__", "torch.optim.lr_scheduler:LambdaLR.step"),
    *("dtrain.cli.app:main", "dtrain:load", "dtrain.run:setup", "dtrain.spec.imports:importlib"),
    *("dtrain.spec.imports:find", "dtrain.backends.torch_backend:torch", "dtrain.checkpoint.write:os"),
    *("dtrain.systems:gan", "dtrain.systems.gan:GAN.phases", "dtrain.data.worker:os.system"),
    *("dtrain.data.no_such_file:Source", "dtrain.data.arrays.ArrayExamples:np", "dtrain.data:os"),
    *("dtrain.data.arrays:Arrays", "dtrain.data.images:Images"),  # which could read any file
    *("/tmp/evil.py:Net", "./evil.py:Net", "../evil.py:Net", "evil.py:Net", "evil:Net", "__main__:Net"),
    *("trusted.__main__:Net", "trusted_too:Net", "trusted.nets:Net.forward", "trusted.nets:_Hidden"),
]
MALFORMED = [
    *("torch.nn:Linear:eval", "torch.nn:", ":eval", "eval", "torch.nn: Linear", "torch.nn;os:system", ""),
    *("dtrain.systems.../gan:GAN", "torch..nn:Linear", "torch.nn:Linear.", "torch.nn:3", "os.system('ls'):x"),
    "torch.nn:" + 10**4 * "Linear",
]  # fmt: skip

ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from dtrain.recipe.imports import check_trust
from dtrain.spec.imports import WANTED, find
from dtrain.spec.table import Imported
from dtrain.spec.trust import ImportPathError, Trust

hostile, malformed = json.loads(sys.argv[2])
imported = []
sys.addaudithook(lambda event, details: imported.append(details[0]) if event == "import" else None)
trust, reached = Trust(names=("trusted",)), []
for path in hostile + malformed:
    for role in WANTED:
        try:
            reached.append((path, role, repr(find(path, role, trust))))
        except ImportPathError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 400, error
            assert repr(path) in str(error) or len(path) > 1000, error
    inside = Imported(path="torch.nn:Linear", arguments={"a": {"b": ({"kind": path},)}})
    tables = {"models": {"x": Imported(path=path, arguments={}), "y": inside}}
    keys = [error.key for error in check_trust(tables, trust)]
    # What is no import path is an argument like any other, if it stands among arguments.
    assert keys == ["models.x.kind"] + ["models.y.a.b[0].kind"] * (path in hostile), (path, keys)
print(json.dumps([imported, reached]))
"""


def test_what_is_hostile_is_refused_and_nothing_is_imported(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "trusted").mkdir()
    (tmp_path / "trusted" / "__main__.py").write_text("raise SystemExit(3)\n")
    command = [sys.executable, "-c", ASK, str(tmp_path), json.dumps([HOSTILE, MALFORMED])]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 0, ended.stderr
    imported, reached = json.loads(ended.stdout)
    assert imported == []
    assert reached == []


@pytest.mark.parametrize("role", get_args(Role))
def test_of_the_allowed_modules_only_classes_of_the_right_sort_are_reached(role: Role) -> None:
    from dtrain.data import arrays, dataset, opening, source, worker
    from dtrain.systems import base, classifier, gan

    bases: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("model", "layer", "loss", "metric", "function"), (nn.Module,)),
        "optimizer": (torch.optim.Optimizer,),
        "schedule": (torch.optim.lr_scheduler.LRScheduler,),
        "system": (base.System,),
        "source": (source.Source, torch.utils.data.Dataset),
        "part": (nn.Module, torch.optim.lr_scheduler.LRScheduler, torch.utils.data.Dataset),
    }
    ours = (arrays, dataset, opening, source, worker, base, classifier, gan)
    count = 0
    for module in (nn, torch.optim, torch.optim.lr_scheduler, *ours):
        for name, value in vars(module).items():
            try:
                found = find(f"{module.__name__}:{name}", role, Trust())
            except ImportPathError:
                continue
            assert found is value
            assert issubclass(found, bases[role]), name
            assert inspect.getmodule(found).__name__.startswith(("torch.", "dtrain."))
            count += 1
    assert (count > 1) == (role != "source")


PACKAGE = {
    "__init__.py": "",
    "nets.py": """
import os
from torch import nn
from torch.nn import Linear
from neighbour import OtherNet
class Net(nn.Module):
    pass
class Plain:
    pass
def make():
    return Net()
""",
    "data.py": """
from torch.utils.data import Dataset
class Pictures(Dataset):
    def __len__(self):
        return 3
class List(list):
    pass
""",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of its own name, which imports a class from a module beside it."""
    (tmp_path / "pack").mkdir()
    for name, text in PACKAGE.items():
        (tmp_path / "pack" / name).write_text(text)
    (tmp_path / "neighbour.py").write_text("from torch import nn\nclass OtherNet(nn.Module):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("pack", "pack.nets", "pack.data", "neighbour"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "pack"


@pytest.mark.parametrize(
    ("path", "role", "said"),
    [
        ("pack.nets:Net", "model", ""),
        ("pack.nets:Net", "layer", ""),
        ("pack.data:Pictures", "source", ""),
        (
            "pack.nets:Net",
            "optimizer",
            "is a class of another sort; a subclass of torch.optim.Optimizer would",
        ),
        ("pack.nets:Plain", "model", "is a class of another sort; a subclass of torch.nn.Module would do"),
        ("pack.data:List", "source", "is a class of another sort"),
        ("pack.nets:Linear", "model", "is torch.nn.modules.linear's, not pack's own"),
        ("pack.nets:OtherNet", "model", "is neighbour's, not pack's own"),
        ("pack.nets:os", "model", "is of type module"),
        ("pack.nets:make", "model", "trusted by their full names alone: --trust pack.nets:make"),
        ("pack.nets:make", "optimizer", "is a function; a subclass of torch.optim.Optimizer would do"),
        ("pack.nets:Nett", "model", 'did you mean "pack.nets:Net"?'),
        ("pack.missing:Net", "model", "No module named 'pack.missing'; is it installed?"),
        (
            "neighbour:OtherNet",
            "model",
            "is not in a trusted package; if you trust it, name it: --trust neighb",
        ),
        ("packs:Net", "model", "is not in a trusted package"),
    ],
)
def test_of_a_trusted_package_its_own_classes_of_the_right_sort_are_reached(
    package: str, path: str, role: Role, said: str
) -> None:
    trust = Trust(names=(package,))
    if not said:
        assert find(path, role, trust).__module__.startswith("pack.")
        return
    with pytest.raises(ImportPathError) as caught:
        find(path, role, trust)
    assert said in str(caught.value)


def test_a_function_is_trusted_by_its_full_name(package: str) -> None:
    trust = Trust(names=("pack.nets:make",))
    assert isinstance(find("pack.nets:make", "model", trust)(), nn.Module)
    with pytest.raises(ImportPathError, match="not in a trusted package"):
        find("pack.nets:Net", "model", trust)
    assert find("torch.nn.functional:mse_loss", "loss", Trust(names=("torch.nn.functional:mse_loss",)))


def test_a_recipe_that_a_user_runs_reaches_what_its_place_can_use(package: str) -> None:
    assert find("pack.nets:make", "model")
    assert find("pack.data:List", "source")
    assert find("torch.nn.functional:mse_loss", "metric")
    assert find("torch.optim.lr_scheduler:ReduceLROnPlateau", "schedule")
    for path, role in (("os:system", "optimizer"), ("os:system", "system"), ("pack.nets:Plain", "model")):
        with pytest.raises(ImportPathError, match="a subclass of"):
            find(path, role)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["./mine.py", "./mine.py:Net", "/abs/mine.py", "a b", "", "a:b.c", "a:", "3d", "a/b"]
)
def test_what_is_trusted_must_be_a_package_or_the_full_name_of_a_function(name: str) -> None:
    with pytest.raises(DtrainError, match=r"package.module:function or /folder/file.py:Name would do"):
        Trust(names=(name,))


class TestLocalFiles:
    def test_a_file_is_trusted_by_its_full_name_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = "from torch import nn\nclass Net(nn.Linear): pass\nclass Other(nn.Linear): pass\n"
        file = beside(tmp_path, monkeypatch, "trusted_net.py", text)
        assert find(f"{file}:Net", "model", Trust(names=(f"{file}:Net",))).__name__ == "Net"
        with pytest.raises(ImportPathError, match=f"name it whole: --trust {file}:Other"):
            find(f"{file}:Other", "model", Trust(names=(f"{file}:Net",)))

    def test_a_file_is_the_module_of_its_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        beside(tmp_path, monkeypatch, "beside_it.py", "factor = 3\n")
        text = "from beside_it import factor\nclass Outer:\n    class Inner: pass\n"
        file = beside(tmp_path, monkeypatch, "near_one.py", text)
        found = find(f"{file}:Outer.Inner", "part")
        assert (found.__module__, found.__qualname__) == ("near_one", "Outer.Inner")
        assert written_path(found) == f"{file}:Outer.Inner"
        assert find("near_one:Outer", "part") is find(f"{file}:Outer", "part")
        monkeypatch.chdir(tmp_path)
        assert find("./near_one.py:Outer", "part") is find(f"{file}:Outer", "part")
        assert written_path(GAN) == "dtrain.systems.gan:GAN"

    def test_a_module_of_the_same_name_is_in_the_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        there = beside(tmp_path / "a", monkeypatch, "twice_there.py", "class Net: pass\n")
        find(f"{there}:Net", "part")
        for name in ("random.py", "this.py", "sys.py", "twice_there.py"):  # imported, not yet, built in, ours
            file = beside(tmp_path / "b", monkeypatch, name, "class Net: pass\n", known=True)
            with pytest.raises(ImportPathError, match=r"there is another of that name .*; rename the file"):
                find(f"{file}:Net", "part")
        assert "this" not in sys.modules

    def test_what_is_wrong_with_a_file_is_said(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        beside(tmp_path, monkeypatch, "my_net.py", "class Net: pass\n")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            ImportPathError, match=r'there is no file .*/my_nett\.py; did you mean "\./my_net\.py:Net"'
        ):
            find("./my_nett.py:Net", "part")
        with pytest.raises(ImportPathError, match="letters, digits and underscores would do"):
            find("./my-net.py:Net", "part")
        (tmp_path / "ends_all.py").write_text("import sys\nsys.exit(3)\n")
        with pytest.raises(ImportPathError, match=r"cannot import '.*ends_all.py:Net': SystemExit: 3"):
            find("./ends_all.py:Net", "part")


def beside(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, *, known: bool = False
) -> Path:
    """Write a module, which is forgotten after the test, unless it is another that is known by its name."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if not known:
        monkeypatch.setitem(sys.modules, name.removesuffix(".py"), sys)  # so that it is taken out at the end
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"))
    (folder / name).write_text(text)
    return folder / name


class TestConfig:
    @pytest.fixture
    def config(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        path = config_path()
        path.parent.mkdir()
        return path

    def test_names_of_the_command_line_and_the_file_are_trusted(self, config: Path) -> None:
        assert trust_of(False, []) == EVERYTHING
        assert trust_of(True, ["timm"]) == Trust(names=("timm",))
        config.write_text('trust = ["my_models", "my_losses.soft:margin"]\n')
        assert trust_of(True, ["timm"]) == Trust(names=("timm", "my_models", "my_losses.soft:margin"))

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('trusts = ["timm"]', r'config\.toml: trusts: unknown key; did you mean "trust"\?'),
            (
                "trust = ['./x.py']",
                r"config\.toml: trust\[0\]: found \"\./x\.py\"; a package, package.module",
            ),
            ("trust = 'timm'", r"config\.toml: trust: found \"timm\"; an array would do"),
            ("trust = [", r"config\.toml cannot be read: "),
        ],
    )
    def test_a_config_file_is_read_strictly(self, config: Path, text: str, said: str) -> None:
        config.write_text(text)
        for untrusted in (True, False):
            with pytest.raises(DtrainError, match=said):
                trust_of(untrusted, [])

    def test_a_relative_folder_of_config_files_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        for given in ("", "here"):
            monkeypatch.setenv("XDG_CONFIG_HOME", given)
            assert config_path() == tmp_path / ".config" / "dtrain" / "config.toml"


def test_every_role_says_what_would_do() -> None:
    for role in WANTED:
        with pytest.raises(ImportPathError, match=r"would do$"):
            find("sys:maxsize", role)
