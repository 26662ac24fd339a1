"""The layers of a model that stand for themselves: to be gathered, compiled, or computed anew one by one."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from dtrain.backends.torch_layers import Repeat
from dtrain.errors import LaunchError
from dtrain.scale.tables import matches

Blocks = dict[str, nn.Module]  # by name, such as `3.0`


def repeated(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The items of the outermost lists of layers that are made of several, as transformers' blocks are.

    A list that holds nothing but such items, as the stages of a ResNet do, is looked into.
    """
    for own, child in module.named_children():
        path = f"{name}.{own}" if name else own
        is_item = isinstance(module, nn.ModuleList | nn.Sequential) and any(child.children())
        if isinstance(module, Repeat) or (is_item and not _holds_blocks(child)):
            yield path, child
        else:
            yield from repeated(child, path)


def _holds_blocks(module: nn.Module) -> bool:
    is_list = isinstance(module, nn.ModuleList | nn.Sequential)
    return is_list and all(any(item.children()) for item in module.children())


def chosen(model: str, module: nn.Module, patterns: Sequence[str] | None) -> Blocks:
    """The layers of a model that patterns name, outermost ones alone; without patterns, its repeated ones."""
    if patterns is None:
        return dict(repeated(module))
    found: Blocks = {}
    for name, child in module.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and not is_inside and any(matches(pattern, model, name) for pattern in patterns):
            found[name] = child
    return found


def check_patterns(patterns: Sequence[str] | None, models: Mapping[str, nn.Module], key: str) -> None:
    """Raise LaunchError for a pattern that names no layer of any model, with the names that there are."""
    for pattern in patterns or ():
        if any(chosen(model, module, [pattern]) for model, module in models.items()):
            continue
        names = [f"{model}/{name}" for model, module in models.items() for name, _ in module.named_children()]
        raise LaunchError(f"{key}: there is no layer {pattern!r}; the outermost are {', '.join(names[:40])}")
