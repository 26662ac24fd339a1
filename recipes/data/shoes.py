"""Makes shoes-1k.npz out of fashion-mnist-7k.npz: `a` are sneakers, `b` are ankle boots, and none are pairs.

python recipes/data/shoes.py
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
KINDS = {"a": 7, "b": 9}  # labels of Fashion-MNIST


def main() -> None:
    garments = np.load(HERE / "fashion-mnist-7k.npz")
    shoes = {
        f"{part}_{name}": garments[f"{part}_image"][garments[f"{part}_label"] == label]
        for part in ("train", "test")
        for name, label in KINDS.items()
    }
    np.savez_compressed(HERE / "shoes-1k.npz", **shoes)


if __name__ == "__main__":
    main()
