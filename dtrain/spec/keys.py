"""Randomness without state: a number drawn from names and counters.

A key such as `(seed, "update", 17, 3)` gives the same number on every machine, process and
version of Python, so there is no random state to save or to share among ranks.
"""

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def seed_of(*key: int | str) -> int:
    """A 63-bit seed that depends on every part of the key, and on their order."""
    text = "/".join(map(str, key)).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(*key: int | str) -> "np.random.Generator":
    """A NumPy generator that belongs to this key alone."""
    import numpy as np

    return np.random.Generator(np.random.PCG64(seed_of(*key)))
