"""Autoencoder, vae and diffusion: what does not fit is found before the run, and the pictures are right."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Said
from torch import Tensor

import dtrain
from dtrain.backends.torch_ops import TorchOps
from dtrain.systems.autoencoder import Autoencoder
from dtrain.systems.base import System
from dtrain.systems.diffusion import Diffusion
from dtrain.systems.vae import VAE

RECIPES = Path(dtrain.__file__).parents[1] / "recipes"
OPS = TorchOps(torch.device("cpu"), torch.float64)

MISFITS = [  # recipe, what is changed, the key that is named, and words
    ("autoencoder", "models.decoder.input=[32]", "models.decoder.input[0]", "64 would fit"),
    ("autoencoder", "models.decoder.layers[6].out=3", "models.decoder.layers[6].out", "1 would fit"),
    ("autoencoder", 'system.loss="bce"', "system.loss", "the data goes from -1 to 1; range = [0, 1]"),
    ("autoencoder", "system.masked=1.5", "system.masked", "at most 1"),
    ("vae", "system.latent=8", "system.latent", "16 would fit"),
    ("vae", "models.decoder.input=[8]", "models.decoder.input[0]", "is [8], but system.latent is 16"),
    (
        "vae",
        "models.encoder.layers[6].out=16",
        "models.encoder.layers[6].out",
        "gives (16,), but must give (32)",
    ),
    ("vae", "models.decoder.layers[8].out=3", "models.decoder.layers[8].out", "but must give (1, 28, 28)"),
    ("vae", "data.range=[-1, 1]", "system.loss", 'loss = "mse" here'),
    ("vae", 'system.schedule.kind="torch.optim.lr_scheduler:StepLR"', "system.schedule.kind", "one of"),
    ("diffusion", "system.frequencies=3", "models.denoiser.input[0]", "7 would fit"),
    ("diffusion", "models.denoiser.input=[4, 28, 28]", "models.denoiser.input[0]", "4 planes for the time"),
    ("diffusion", "data.range=[0, 1]", "data", "range = [-1, 1] would do"),
    ("diffusion", "system.sampling_steps=2000", "system.sampling_steps", "more than there are steps (1000)"),
]


@pytest.mark.parametrize(("name", "change", "key", "words"), MISFITS)
def test_what_does_not_fit_is_found_before_the_run(
    dtrain_here: Callable[..., Said], name: str, change: str, key: str, words: str
) -> None:
    said = dtrain_here("check", RECIPES / f"{name}.toml", change)
    assert said.code == 2
    assert f" {key}: " in said.errors
    assert words in said.errors


# --- what is shown ---


def shown(system: System, batch: Mapping[str, Tensor], **models: Callable[[Tensor], Tensor]) -> Any:
    torch.manual_seed(0)
    return system.samples(SimpleNamespace(**models), batch, OPS)


def test_an_autoencoder_shows_pictures_what_is_seen_of_them_and_what_is_made_of_that() -> None:
    image = torch.rand(3, 1, 4, 5, dtype=torch.float64)
    grid = shown(Autoencoder(), {"image": image}, encoder=torch.exp, decoder=torch.log)["reconstruction"]
    torch.testing.assert_close(grid, torch.cat([image, image], 3))
    grid = shown(Autoencoder(masked=0.5, loss="bce"), {"image": image}, encoder=torch.exp, decoder=torch.log)
    _, seen, made = grid["reconstruction"].split(5, 3)
    assert ((seen == 0) | (seen == image)).all()
    assert 0 < (seen == 0).sum() < seen.numel()
    torch.testing.assert_close(made, seen.sigmoid())


def test_a_vae_shows_what_it_makes_of_normal_codes_and_of_the_means_of_pictures() -> None:
    image = torch.rand(3, 4, dtype=torch.float64)
    code = {"encoder": lambda x: torch.cat([2 * x, 9 + x], 1), "decoder": lambda z: z.sigmoid()}
    grids = shown(VAE(latent=4, loss="mse"), {"image": image}, **code)
    torch.manual_seed(0)
    torch.testing.assert_close(grids["prior"], torch.randn(64, 4, dtype=torch.float64).sigmoid())
    torch.testing.assert_close(grids["reconstruction"], torch.cat([image, (2 * image).sigmoid()], 1))


# --- diffusion ---

STEPS, OFFSET = 20, 0.008
KEPT = [math.cos((t / STEPS + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2 for t in range(STEPS + 1)]
KEPT = [kept / KEPT[0] for kept in KEPT]  # alpha bar


def time_of(seen: Tensor) -> Tensor:
    """The time that the planes of the lowest frequency tell: (N, 1, H, W)."""
    cosine, sine = seen[:, 1:2], seen[:, 2:3]
    return torch.atan2(sine, cosine) / (math.pi / 2)


@pytest.mark.parametrize(("sampling_steps", "eta"), [(20, 0.0), (20, 1.0), (7, 0.0), (7, 0.5)])
def test_a_denoiser_that_knows_the_only_picture_makes_it(sampling_steps: int, eta: float) -> None:
    picture = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(1, 1, 4, 5)

    def denoiser(seen: Tensor) -> Tensor:
        turned = (time_of(seen) + OFFSET) / (1 + OFFSET) * math.pi / 2
        share = turned.cos() / math.cos(OFFSET / (1 + OFFSET) * math.pi / 2)
        return (seen[:, :1] - share * picture) / (1 - share**2).sqrt()

    system = Diffusion(steps=STEPS, sampling_steps=sampling_steps, eta=eta)
    made = shown(system, {"image": picture}, denoiser=denoiser)["denoiser"]
    assert made.shape == (64, 1, 4, 5)
    torch.testing.assert_close(made, picture.expand_as(made), atol=1e-6, rtol=0)


def test_with_all_steps_and_eta_1_sampling_is_that_of_ddpm() -> None:
    def denoiser(seen: Tensor) -> Tensor:
        return seen[:, :1].tanh() + seen[:, 3:4] * 0.1

    system = Diffusion(steps=STEPS, sampling_steps=STEPS, eta=1.0)
    ours = shown(system, {"image": torch.zeros(1, 1, 4, 5)}, denoiser=denoiser)["denoiser"]
    torch.manual_seed(0)
    x = torch.randn(64, 1, 4, 5, dtype=torch.float64)
    for t in range(STEPS, 0, -1):  # Ho et al. 2020, equations 6 and 7
        now, before = max(KEPT[t], 1e-12), KEPT[t - 1]
        alpha = now / before
        waves = [wave(scale * math.pi * t / STEPS) for scale in (0.5, 1) for wave in (math.cos, math.sin)]
        planes = [torch.full_like(x, wave) for wave in waves]
        noise = denoiser(torch.cat([x, *planes], 1))
        first = ((x - math.sqrt(1 - now) * noise) / math.sqrt(now)).clamp(-1, 1)
        x = (math.sqrt(before) * (1 - alpha) * first + math.sqrt(alpha) * (1 - before) * x) / (1 - now)
        if t > 1:
            variance = (1 - before) / (1 - now) * (1 - alpha)
            x = x + math.sqrt(variance) * torch.randn(64, 1, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(ours, x)
