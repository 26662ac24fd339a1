"""One file a method: recipes of its named system, and of the same as `composed`, and one plain loop for both.

Each file has `CASES`, recipes by names that begin with the method's, and `train(recipe, data, first)`, a loop
such as those of `agreement.references`. A new method needs nothing but its file here.
"""

import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from agreement.cases import Case

FILES = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
CASES: Mapping[str, Case] = {name: case for file in FILES for name, case in file.CASES.items()}
LOOPS: Mapping[str, Callable[..., Any]] = {name: file.train for file in FILES for name in file.CASES}
