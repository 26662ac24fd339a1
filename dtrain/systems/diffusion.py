"""Diffusion models. Source: Ho, Jain & Abbeel 2020 (arXiv:2006.11239)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from dtrain.data.source import Field
from dtrain.spec.models import Model, input_of, output_of
from dtrain.spec.table import Fraction, Positive, Wrong, kind
from dtrain.systems.base import Array, Batch, Logs, Loss, Models, Ops, Phase, System

OFFSET = 0.008  # of the cosine schedule: the first noise would be too small to see without it
SHOWN = 64  # pictures in a grid
FAINTEST = 1e-6  # share of a picture that is divided by: at the last time nothing is left of it


@kind(System, "diffusion")
class Diffusion(System):
    """The model `denoiser` learns to see the noise in pictures, which makes pictures out of noise alone.

    At a time from 0 to 1 a picture x has become s x + n noise, where s falls from 1 to 0 as the cosine of
    Nichol & Dhariwal 2021 (arXiv:2102.09672) does, and s² + n² = 1. The denoiser gets that and, behind its
    channels, two planes for each frequency, the cosine and the sine of the time; it gives the noise. The data
    goes from -1 to 1.
    """

    steps: Positive = 1000  # times that it learns
    frequencies: Positive = 2  # that tell the time: quarter turns, halves, wholes, ...
    # times that a picture is made in: Song et al. 2020 (arXiv:2010.02502)
    sampling_steps: Positive = 50
    eta: Fraction = 0.0  # noise added on the way: 0 is DDIM; 1 is DDPM, which wants more sampling_steps
    input: str = "image"  # the field of the data that is imitated

    evaluates = MappingProxyType({"loss": "min"})

    def __post_init__(self) -> None:
        if self.sampling_steps > self.steps:
            raise Wrong(
                "sampling_steps", f"{self.sampling_steps} is more than there are steps ({self.steps})"
            )

    def phases(self) -> Sequence[Phase]:
        return (Phase(("denoiser",), self.denoise),)

    def reads(self) -> Mapping[str, str | None]:
        return {self.input: None}

    def check(self, models: Mapping[str, Model]) -> Iterator[ValueError]:
        takes, gives = input_of(models["denoiser"]), output_of(models["denoiser"])
        if takes and gives and takes != (wanted := (gives[0] + 2 * self.frequencies, *gives[1:])):
            said = f"is {list(takes)}, but must be {list(wanted)}: what the denoiser gives, and"
            planes = f"{2 * self.frequencies} planes for the time"
            yield Wrong("models.denoiser.input", f"{said} {planes}")

    def check_data(self, models: Mapping[str, Model], fields: Mapping[str, Field]) -> None:
        field, gives = fields[self.input], output_of(models["denoiser"])
        if gives not in (None, field.shape):
            said = f"gives {gives}, but the data's {self.input} is {field.shape}; they must agree"
            raise Wrong("models.denoiser", said)
        if field.range not in (None, (-1.0, 1.0)):
            low, high = field.range
            raise ValueError(
                f"goes from {low:g} to {high:g}, but is noised from -1 to 1; range = [-1, 1] would do"
            )

    def denoise(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        return Loss(self.evaluate(models, batch, ops)["loss"])

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Logs:
        image = batch[self.input]
        drawn = ops.uniform(len(image), *(1,) * (image.ndim - 1))
        time = (ops.floor(self.steps * drawn) + 1) / self.steps
        share = ops.cos((time + OFFSET) / (1 + OFFSET) * math.pi / 2) / START
        noise = ops.normal(*image.shape)
        noisy = share * image + ops.sqrt(1 - share**2) * noise
        return {"loss": ops.mse(self.noise_in(noisy, time, models, ops), noise)}

    def noise_in(self, noisy: Array, time: Array, models: Models, ops: Ops) -> Array:
        """The noise that the denoiser sees in pictures (N, ...) at their times (N, 1, ...)."""
        plane = ops.slice(noisy, 0, 1)
        angles = [2**number * math.pi / 2 * time for number in range(self.frequencies)]
        waves = [wave(angle) for angle in angles for wave in (ops.cos, ops.sin)]
        return models.denoiser(ops.concat(noisy, *(ops.expand(wave, plane) for wave in waves)))

    def predict(self, models: Models, batch: Batch, ops: Ops) -> tuple[Array, Array]:
        image = batch[self.input]
        return self.make(models, image.shape, ops), image

    def samples(self, models: Models, batch: Batch, ops: Ops) -> Mapping[str, Array]:
        return {"denoiser": self.make(models, (SHOWN, *batch[self.input].shape[1:]), ops)}

    def make(self, models: Models, shape: tuple[int, ...], ops: Ops) -> Array:
        """Pictures out of noise: at each time to what the picture seems to be, and back to less noise."""
        image = ops.normal(*shape)
        one = 1 + 0 * ops.slice(image, 0, 1)
        for number in range(self.sampling_steps, 0, -1):
            time, after = number / self.sampling_steps, (number - 1) / self.sampling_steps
            share, share_after = share_at(time), share_at(after)
            spread, spread_after = math.sqrt(1 - share**2), math.sqrt(1 - share_after**2)
            noise = self.noise_in(image, time * one, models, ops)
            seen = ops.clamp((image - spread * noise) / share, -1, 1)
            noise = (image - share * seen) / spread  # as what is outside of the range was no picture
            fresh = self.eta * spread_after / spread * math.sqrt(1 - (share / share_after) ** 2)
            image = share_after * seen + math.sqrt(spread_after**2 - fresh**2) * noise
            if fresh:
                image = image + fresh * ops.normal(*shape)
        return image


START = math.cos(OFFSET / (1 + OFFSET) * math.pi / 2)


def share_at(time: float) -> float:
    """How much of a picture is left at a time."""
    return max(math.cos((time + OFFSET) / (1 + OFFSET) * math.pi / 2) / START, FAINTEST)
