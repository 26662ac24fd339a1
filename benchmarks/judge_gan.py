"""How a classifier of real pictures sees the GAN's: sure of them, and of every class some.

    dtrain run recipes/classifier.toml && dtrain run recipes/gan.toml && python benchmarks/judge_gan.py

Takes the newest run of each, or the two folders that are named: classifier, then GAN.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import dtrain

DATA = Path(__file__).parents[1] / "recipes/data/fashion-mnist-7k.npz"
SAMPLES = 4000


def newest(name: str) -> Path:
    """The newest run of a recipe under ./runs."""
    return max((path for path in Path("runs", name).iterdir() if path.is_dir()), key=lambda path: path.name)


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    judge_run, gan_run = map(Path, arguments) if arguments else (newest("classifier"), newest("gan"))
    judge = dtrain.load_models(judge_run)["classifier"]
    generator = dtrain.load_models(gan_run)["generator"]
    with np.load(DATA) as arrays:
        real = torch.from_numpy(arrays["test_image"]).float()[:, None] / 127.5 - 1
        label = torch.from_numpy(arrays["test_label"]).long()
    verdict = judge(real).softmax(1)  # (1000, 10)
    print(
        f"classifier on {len(real)} test pictures: {(verdict.argmax(1) == label).float().mean():.1%} right,"
    )
    print(f"  sure (over 0.5) of {(verdict.amax(1) > 0.5).float().mean():.1%}")
    latent = next(generator.parameters()).shape[1]
    sure, found = judge(generator(torch.randn(SAMPLES, latent))).softmax(1).max(1)
    shares = torch.bincount(found, minlength=10) / SAMPLES
    print(f"classifier on {SAMPLES} of the GAN's: sure of {(sure > 0.5).float().mean():.1%},")
    print(f"  classes found in {', '.join(f'{share:.1%}' for share in shares)}")


if __name__ == "__main__":
    main(sys.argv[1:])
