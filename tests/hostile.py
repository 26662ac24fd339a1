"""Recipes as from a stranger: they reach for code, for files, and for more than a machine holds."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from conftest import CLASSIFIER, GAN

ADAM = 'kind = "adam"'
PATH = 'path = "pictures.npz"'
LAYER = '    { kind = "batch_norm" },\n'
MODEL = "\n[models.other]\n"
DEEP = 10_000


@dataclass(frozen=True)
class Hostile:
    """The files of a recipe, `r.toml` among them; links by what they point to, and pipes."""

    files: Mapping[str, str | bytes] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    pipes: tuple[str, ...] = ()
    says: str = ""  # what the refusal must say
    is_found_late: bool = False  # once torch.nn or torch.optim, which may be imported, is looked into

    def write(self, folder: Path) -> Path:
        """Write all of it beside a small recipe's pictures, and what must not be read beside the folder."""
        inside = folder / "stranger"
        inside.mkdir(parents=True)
        arrays = {f"{part}_image": np.zeros((20, 8, 8), np.uint8) for part in ("train", "test")}
        for where in (inside / "pictures.npz", folder / "secret.npz"):
            np.savez(where, **arrays)
        (folder / "secret.toml").write_text(GAN)
        (folder / "secret_folder" / "class").mkdir(parents=True)
        (folder / "evil.py").write_text("print('evil')\nclass Evil: pass\n")
        for name, content in self.files.items():
            data = content.encode() if isinstance(content, str) else content
            (inside / name).write_bytes(data)
        for name, target in self.links.items():
            (inside / name).symlink_to(target)
        for name in self.pipes:
            os.mkfifo(inside / name)
        return inside / "r.toml"


def changed(old: str, new: str, **options: object) -> Hostile:
    """The small recipe with something else in it."""
    assert GAN.count(old) >= 1, old
    return Hostile({"r.toml": GAN.replace(old, new, 1)}, **options)  # type: ignore[arg-type]


def optimizer(path: str, more: str = "", **options: bool) -> Hostile:
    return changed(ADAM, f'kind = "{path}"\n{more}', says="optimizers.*", **options)


def layer(path: str, **options: bool) -> Hostile:
    return changed(LAYER, f'    {{ kind = "{path}" }},\n', says="models.generator.layers[2]", **options)


def model(path: str) -> Hostile:
    return Hostile({"r.toml": f'{GAN}{MODEL}kind = "{path}"\n'}, says="models.other.kind")


def data(path: str, more: str = "") -> Hostile:
    return changed('kind = "arrays"', f'kind = "{path}"\n{more}', says="data.kind")


def schedule(path: str) -> Hostile:
    return changed('kind = "cosine", warmup = 4', f'kind = "{path}"', says="optimizers.*.schedule.kind")


def system(path: str, **options: bool) -> Hostile:
    return changed('kind = "gan"\n', f'kind = "{path}"\n', says="system.kind", **options)


def composed(lines: str, losses: str = '"mean(discriminator(image))"', says: str = "system") -> Hostile:
    """The small recipe with its system written down."""
    phases = f"[[system.phases]]\nupdates = ['discriminator']\nlosses = {{ own = {losses} }}\n"
    phases += "[[system.phases]]\nupdates = ['generator']\nlosses = { own = 'mean(generator(normal(4)))' }\n"
    named = '[system]\nkind = "gan"\nlatent = 4\ncritic_steps = 2\n'
    return changed(named, f'[system]\nkind = "composed"\n{lines}\n{phases}', says=says)


def hyperparameters(lines: str, says: str = "") -> Hostile:
    return changed("lr = 2e-3", f"lr = 2e-3\n{lines}", says=says)


def layers(text: str, says: str = "models.other") -> Hostile:
    return Hostile({"r.toml": f"{GAN}{MODEL}{text}"}, says=says)


def reference(number: int) -> str:
    return f"${{hyperparameters.a{number}}}"


def use(number: int) -> str:
    return f'{{ kind = "use", stack = "s{number}" }}'


def doubling(first: str, following: Callable[[int], str], count: int = 40) -> str:
    return "\n".join([first, *(following(number) for number in range(1, count))]) + "\n"


IMPORTS = {
    "eval as a model": model("builtins:eval"),
    "exec as a layer": layer("builtins:exec"),
    "os.system as an optimizer": optimizer("os:system"),
    "subprocess as data": data("subprocess:Popen", 'args = ["touch", "/tmp/evil"]'),
    "a shell as a schedule": schedule("subprocess:getoutput"),
    "pickle as a system": system("pickle:loads"),
    "ctypes": layer("ctypes:CDLL"),
    "torch.load": data("torch:load", 'f = "pictures.npz"'),
    "torch.hub": model("torch.hub:load"),
    "torch.jit": model("torch.jit:load"),
    "torch.serialization": data("torch.serialization:load"),
    "torch's compiler of C++": layer("torch.utils.cpp_extension:load_inline"),
    "torch's data loaders": data("torch.utils.data:DataLoader"),
    "torch's subprocesses": model("torch.multiprocessing:spawn"),
    "torch.distributed": optimizer("torch.distributed.rpc:remote"),
    "a walk through torch.nn": layer("torch.nn:modules.module.torch.load"),
    "a walk through its functional": layer("torch.nn:functional.torch.hub.load"),
    "a module of torch.nn that has torch": layer("torch.nn.modules.module:torch"),
    "a walk through torch.optim": optimizer("torch.optim:lr_scheduler.warnings.sys.exit"),
    "what torch.optim imports": optimizer("torch.optim.lr_scheduler:warnings", is_found_late=True),
    "a function of torch.nn": layer("torch.nn:factory_kwargs", is_found_late=True),
    "__class__": model("torch.nn:Linear.__class__"),
    "__globals__": model("torch.nn:Module.__init__.__globals__"),
    "__subclasses__": model("torch.nn:Module.__mro__"),
    "__builtins__ of a module": layer("torch.nn:__builtins__"),
    "__loader__ of a module": layer("torch.nn:__loader__"),
    "the program of a module": layer("torch.__main__:main"),
    "dtrain's own command line": model("dtrain.cli.app:main"),
    "dtrain's own import": data("dtrain.spec.imports:find"),
    "what dtrain's systems import": system("dtrain.systems.base:dataclass", is_found_late=True),
    "a method of a system": system("dtrain.systems.gan:GAN.check"),
    "dtrain itself": model("dtrain:load_models"),
    "a file beside the recipe": Hostile(
        {"r.toml": GAN + MODEL + 'kind = "./evil_here.py:Evil"\n', "evil_here.py": "print('evil')\n"},
        says="is a local file",
    ),
    "a file above the recipe": optimizer("../evil.py:Evil"),
    "a file by its whole path": optimizer("/usr/lib/python3/evil.py:Evil"),
    "a package that nobody trusts": layer("antigravity:fly"),
    "a letter that looks like another": layer("t\u03bfrch.nn:Linear"),
    "wide letters": layer("\uff54\uff4f\uff52\uff43\uff48.nn:Linear"),
    "wide letters in a name": layer("torch.nn:\uff2cinear"),
    "a letter that turns the text": layer("torch.nn:\\u202eraeniL"),
    "a line break in a path": layer("torch.nn:Linear\\n"),
    "a path with a null": layer("torch.nn:Linear\\u0000"),
    "a part of an argument": optimizer("torch.optim:NAdam", 'x = { kind = "os:system", command = "ls" }'),
    "a part deep in arguments": optimizer("torch.optim:NAdam", 'x = [[{ y = { kind = "builtins:eval" } }]]'),
    "a metric": Hostile(
        {"r.toml": GAN + '\n[evaluate.metrics]\nm = { kind = "torch:load" }\n'}, says="evaluate.metrics"
    ),
    "a loss": Hostile(
        {"r.toml": CLASSIFIER.replace("label_smoothing = 0.1", 'loss = { kind = "os:system" }')},
        says="system.loss.kind",
    ),
}  # fmt: skip

FILES = {
    "a password file as data": changed(PATH, 'path = "/etc/passwd"', says="outside of the recipe's folder"),
    "data above the folder": changed(PATH, 'path = "../secret.npz"', says="outside of the recipe's folder"),
    "data through a link": Hostile(
        {"r.toml": GAN.replace("pictures.npz", "link.npz")}, {"link.npz": "../secret.npz"}, says="outside"
    ),
    "data through a link to a folder": Hostile(
        {"r.toml": GAN.replace("pictures.npz", "up/secret.npz")}, {"up": ".."}, says="outside"
    ),
    "data in no folder, and up": changed(PATH, 'path = "no/../../secret.npz"', says="outside"),
    "pictures above the folder": changed(
        'kind = "arrays"\n' + PATH, 'kind = "images"\npath = "../secret_folder"\nsize = 8', says="outside"
    ),
    "pictures through a link in their folder": Hostile(
        {"r.toml": GAN.replace('kind = "arrays"\n' + PATH, 'kind = "images"\npath = "."\nsize = 8')},
        {"class": "../secret_folder"},
        says="leads out",
    ),
    "other data of evaluation": Hostile(
        {"r.toml": GAN + '\n[evaluate.data]\nkind = "arrays"\npath = "../secret.npz"\n'}, says="outside"
    ),
    "zeros without end": changed(PATH, 'path = "/dev/zero"', says="outside"),
    "the environment's own file": changed(PATH, 'path = "/proc/self/environ"', says="outside"),
    "a pipe as data": Hostile(
        {"r.toml": GAN.replace("pictures.npz", "pipe")}, pipes=("pipe",), says="neither"
    ),
    "to extend a password file": Hostile({"r.toml": 'extends = "/etc/passwd"\n' + GAN}, says="outside"),
    "to extend what is above": Hostile({"r.toml": 'extends = "../secret.toml"\n' + GAN}, says="outside"),
    "to extend the environment": Hostile(
        {"r.toml": 'extends = ["/proc/self/environ"]\n' + GAN}, says="outside"
    ),
    "to extend through a link": Hostile(
        {"r.toml": 'extends = "link.toml"\n' + GAN}, {"link.toml": "../secret.toml"}, says="outside"
    ),
    "to extend a pipe": Hostile({"r.toml": 'extends = "pipe"\n' + GAN}, pipes=("pipe",), says="not a file"),
    "to extend without end": Hostile(
        {"r.toml": 'extends = ["0.toml"]\n' + GAN}
        | {f"{n}.toml": f'extends = ["{n + 1}.toml", "{n + 1}.toml"]\n' for n in range(40)}
        | {"40.toml": "seed = 1\n"},
        says="files",
    ),
    "a recipe that is a link": Hostile(links={"r.toml": "../secret.toml"}, says="leads out of its folder"),
    "a recipe that is a link to zeros": Hostile(links={"r.toml": "/dev/zero"}, says="leads out"),
    "a recipe that is a pipe": Hostile(pipes=("r.toml",), says="not a file"),
    "a secret in a tracker's project": changed(
        "[track]", '[track]\nproject = "${env:AWS_SECRET_ACCESS_KEY}"', says="not read for a recipe"
    ),
    "a secret in a path": changed(PATH, 'path = "${env:AWS_SECRET_ACCESS_KEY:x}"', says="not read for"),
}  # fmt: skip

SIZES = {
    "a value of 100 MB": hyperparameters(f'x = "{"x" * 100_000_000}"', says="is larger than"),
    "a key of 100 MB": hyperparameters(f"{'x' * 100_000_000} = 1", says="is larger than"),
    "a key of 300 kB": changed("[track]", f"[track]\n{'x' * 300_000} = 1", says="...xxx"),
    "a path of 300 kB": changed(PATH, f'path = "{"x/" * 150_000}"', says="data.path"),
    "a name of 300 kB": changed('"tiny-gan"', f'"{"/" * 300_000}"', says="name"),
    "an import path of 300 kB": layer("a." * 150_000 + "b:c"),
    "a line of 300 kB": changed('kinds = ["jsonl"]', f"kinds = [{'3, ' * 9_000}]", says="track.kinds[0]"),
    "a comment of 300 kB and a quote": Hostile({"r.toml": "#" * 300_000 + '\nx = "'}, says="not TOML"),
    "inline tables in each other": hyperparameters("x = " + "{ a = " * DEEP + "1" + " }" * DEEP, says="deep"),
    "arrays in each other": hyperparameters("x = " + "[" * DEEP + "]" * DEEP, says="deep"),
    "dotted tables in each other": hyperparameters("x" + ".a" * DEEP + " = 1", says="deep"),
    "headers in each other": Hostile({"r.toml": f"{GAN}\n[hyperparameters.x{'.a' * DEEP}]\n"}, says="deep"),
    "arrays of tables in each other": Hostile({"r.toml": f"{GAN}\n[[x{'.a' * DEEP}]]\n"}, says="deep"),
    "brackets that never close": hyperparameters("x = " + "[" * 100_000, says="deep"),
    "residuals in each other": layers(
        "input = [4]\nlayers = " + '[{ kind = "residual", layers = ' * 30 + "[]" + " }]" * 30, says="deep"
    ),
    "residuals as deep as they may be": layers(
        "input = [4]\nlayers = " + '[{ kind = "residual", layers = ' * 12
        + '[{ kind = "linear", out = 0 }]' + " }]" * 12,
    ),
    "strings that double": hyperparameters(
        doubling("a0 = 'ha'", lambda n: f'a{n} = "{reference(n - 1) * 2}"'),
        says="references",
    ),
    "arrays that double": hyperparameters(
        doubling("a0 = ['ha']", lambda n: f'a{n} = ["{reference(n - 1)}", "{reference(n - 1)}"]'),
        says="references",
    ),
    "tables that double": hyperparameters(
        doubling(
            "a0 = 1", lambda n: f'a{n} = {{ x = "{reference(n - 1)}", y = "{reference(n - 1)}" }}'
        ),
        says="references",
    ),
    "tables that double from their end": hyperparameters(
        doubling(
            'a0 = ["${hyperparameters.no}"]',
            lambda n: f'a{n} = ["{reference(n - 1)}", "{reference(n - 1)}"]',
        ),
    ),
    "references in a circle": hyperparameters(
        "a = '${hyperparameters.b}'\nb = ['${hyperparameters.a}', '${hyperparameters.a}']", says="circle"
    ),
    "a reference to all": hyperparameters("a = '${hyperparameters}'", says="circle"),
    "stacks that double": Hostile(
        {
            "r.toml": GAN.replace(LAYER, '{ kind = "use", stack = "s39" },')
            + doubling(
                "[layers.s0]\nlayers = [{ kind = 'flatten' }]",
                lambda n: f"[layers.s{n}]\nlayers = [{use(n - 1)}, {use(n - 1)}]",
            )
        },
        says="stacks make more than",
    ),
    "empty stacks that double": Hostile(
        {
            "r.toml": GAN.replace(LAYER, '{ kind = "use", stack = "s39" },')
            + doubling(
                "[layers.s0]\nlayers = []",
                lambda n: f"[layers.s{n}]\nlayers = [{use(n - 1)}, {use(n - 1)}]",
            )
        },
        says="stacks make more than",
    ),
    "a stack whose parameters double": Hostile(
        {
            "r.toml": GAN.replace(LAYER, '{ kind = "use", stack = "s39", x = "ha" },')
            + doubling(
                "[layers.s0]\nparameters = ['x']\nlayers = [{ kind = '${x}' }]",
                lambda n: f"[layers.s{n}]\nparameters = ['x']\n"
                f"layers = [{{ kind = 'use', stack = 's{n - 1}', x = '${{x}}${{x}}' }}]",
            )
        },
        says="stacks make more than",
    ),
    "stacks in a circle": Hostile(
        {
            "r.toml": GAN.replace(LAYER, '{ kind = "use", stack = "a" },')
            + "[layers.a]\nlayers = [{ kind = 'use', stack = 'b' }]\n"
            + "[layers.b]\nlayers = [{ kind = 'use', stack = 'a' }]\n"
        },
        says="in a circle",
    ),
    "a layer a million million times": layers(
        'input = [4]\nlayers = [{ kind = "repeat", times = 1_000_000_000_000, layers = [{ kind = "flatten" }]}]',
        says="more than 10,000 layers",
    ),
    "repeats in each other": layers(
        "input = [1, 9, 9]\nlayers = " + '[{ kind = "repeat", times = 1000, layers = ' * 4
        + '[{ kind = "conv", out = 1, kernel = 1, padding = 1 }]' + " }]" * 4,
        says="more than 10,000 layers",
    ),
    "a model of many repeats": layers(
        "input = [1, 9, 9]\nlayers = ["
        + '{ kind = "repeat", times = 9_999, layers = [{ kind = "activation", function = "relu" }] }, ' * 99
        + "]",
        says="layers",
    ),
    "a model of a hundred thousand million million weights": layers(
        'input = [1_000_000]\nlayers = [{ kind = "linear", out = 100_000_000_000 }]', says="models.other"
    ),
    "a picture of a million million million values": layers(
        'input = [1, 1_000_000_000, 1_000_000_000]\nlayers = [{ kind = "flatten" }]', says="models.other"
    ),
    "values that need each other": composed(
        "values.v150 = 'image'\n" + "".join(f"values.v{n} = 'v{n + 1} + 1'\n" for n in range(150)),
        '"mean(discriminator(v0))"',
        says="more than 100 of them",
    ),
    "expressions without end": composed(
        "".join(f"values.v{n} = 'image'\n" for n in range(9_000)), says="more expressions than"
    ),
    "phases without end": composed(
        "values.v = 'image'\n"
        + "[[system.phases]]\nupdates = ['generator']\nlosses = { own = 'mean(v)' }\n" * 1_000,
        says="more expressions than",
    ),
    "an expression of signs": composed("", f'"mean({"-" * 1_900}image)"', says="levels deep"),
    "an expression of brackets": composed("", f'"mean({"(" * 900}image{")" * 900})"', says="no expression"),
    "an expression of 300 kB": composed("", f'"mean({"image + " * 40_000}image)"', says="more expressions than"),
    "numbers to the power of each other": composed(
        "", f'"mean(image) * {"**".join(["9"] * 9)}"', says="no number"
    ),
    "an attribute in an expression": composed("", '"image.__class__"', says="alone"),
    "a function of Python's in an expression": composed("", '"eval(image)"', says="no op and no model"),
    "a lambda in an expression": composed("", '"(lambda: image)()"', says="called by its name"),
    "samples beside their folder": composed(
        "samples = { 'a/../../../evil' = 'image' }", says="as a file is named by it"
    ),
    "a kernel that fills memory": layers(
        'input = [1, 9, 9]\nlayers = [{ kind = "conv", out = 9, kernel = 4_000_000, padding = 2_000_000 }]'
    ),
    "a table of embeddings": layers(
        'input = [4]\nlayers = [{ kind = "embedding", size = 1_000_000_000_000, out = 9 }]'
    ),
    "a number of many digits": changed("seed = 3", f"seed = {'9' * 4_000}", says="seed"),
    "a number of too many digits": changed("seed = 3", f"seed = {'9' * 500_000}", says="r.toml"),
    "a shape that is too large for a number": layers(
        "input = [4]\nlayers = [{ kind = 'reshape', shape = [" + "9223372036854775807, " * 9_000 + "] }]"
    ),
    "not a number": changed("lr = 2e-3", "lr = nan", says="finite"),
    "no end": changed("lr = 0.05", "lr = inf", says="finite"),
    "a hundred thousand models": Hostile(
        {"r.toml": GAN + "".join(f"[models.m{n}]\n" for n in range(60_000))}, says="larger"
    ),
    "a million hyperparameters": Hostile(
        {"r.toml": GAN + "[x]\n" + "".join(f"a{n}=1\n" for n in range(1_000_000))}, says="is larger"
    ),
    "as many hyperparameters as there may be": hyperparameters(
        "".join(f"a{n}=1\n" for n in range(90_000)) + 'b = "${hyperparameters.none}"', says="larger"
    ),
    "as many references as there may be": hyperparameters(
        "".join(f'a{n}="${{hyperparameters.lr}}"\n' for n in range(9_000)) + "zz = '${no}'", says="references"
    ),
    "as many mistakes as there may be": changed(
        "[track]", "[track]\n" + "".join(f"kinf{n}=1\n" for n in range(70_000)), says="larger"
    ),
    "as many wrong references as there may be": hyperparameters(
        "".join(f'a{n}="${{hyperparameters.lx}}"\n' for n in range(3_900)), says="refers to nothing"
    ),
    "as many layers as there may be": layers(
        "input = [4]\nlayers = [" + '{ kind = "flatteN" }, ' * 3_000 + "]", says="flatten"
    ),
    "as many unknown keys as there may be": changed(
        "[track]", "[track]\n" + "".join(f"kinf{n}=1\n" for n in range(9_000)), says="unknown key"
    ),
    "as many models as there may be": Hostile(
        {"r.toml": GAN + "".join(f"[models.m{n}]\n" for n in range(9_000))}, says="models.m0"
    ),
    "as many optimizers of no model": Hostile(
        {"r.toml": GAN + "".join(f"[optimizers.m{n}]\n" for n in range(9_000))}, says="optimizers.m0"
    ),
    "as many keys twice as there may be": Hostile(
        {"r.toml": GAN + "".join(f"[a{n}]\n[a{n}]\n" for n in range(20_000))}, says="stands here twice"
    ),
    "a name that leads elsewhere": changed('"tiny-gan"', '"../../etc"', says="name"),
    "a name that begins with a dot": changed('"tiny-gan"', '".ssh"', says="name"),
    "a model's name that leads elsewhere": Hostile(
        {"r.toml": f'{GAN}\n[models."../../x"]\nkind = "torch.nn:Identity"\n'}, says="letters"
    ),
    "a terminal's commands in a value": changed(
        "seed = 3", 'seed = "\\u001b]0;owned\\u0007\\u001b[2J\\u009b1m"', says="seed"
    ),
    "a terminal's commands in a key": changed("seed = 3", '"\\u001b[2J" = 1', says="unknown key"),
    "a terminal's commands in a comment": changed("seed = 3", "seed = -1 # \x1b[2J\x9b2J", says="not TOML"),
    "text that turns around": changed("seed = 3", "seed = 'x' # \u202e\u2066 x", says="seed"),
    "no text": Hostile({"r.toml": bytes(range(128, 256)) * 100}, says="not UTF-8"),
    "nothing": Hostile({"r.toml": b""}, says="required, but missing"),
}  # fmt: skip

HOSTILE = {**IMPORTS, **FILES, **SIZES}
