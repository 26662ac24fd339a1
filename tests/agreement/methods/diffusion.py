"""Diffusion models: a U-Net that learns to see noise."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from agreement.cases import ADAM, Case, activation, layer, recipe
from agreement.references import Numbers, Reference, Terms, evaluated
from torch import Tensor, nn

STEPS = 40  # of the process
OFFSET = 0.008
DENOISER = {
    "input": [7, 8, 8],
    "layers": [
        layer("conv", out=6, kernel=3, padding=1),
        layer(
            "skip",
            layers=[
                layer("conv", out=8, kernel=4, stride=2, padding=1),
                activation("silu"),
                layer("skip", layers=[layer("conv", out=4, kernel=1), activation("tanh")]),
                layer("dropout", rate=0.1),
                layer("upsample"),
            ],
        ),
        layer("group_norm", groups=3),
        layer("conv", out=1, kernel=3, padding=1),
    ],
}
SYSTEM = {"kind": "diffusion", "steps": STEPS, "frequencies": 3, "sampling_steps": 4}

COMPOSED = {
    "kind": "composed",
    "values": {
        "time": f"(floor({STEPS} * uniform(1, 1, 1)) + 1) / {STEPS}",
        "turn": f"time * {math.pi}",
        "angle": f"(time + {OFFSET}) / (1 + {OFFSET}) * {math.pi / 2}",
        "share": f"cos(angle) / {math.cos(OFFSET / (1 + OFFSET) * math.pi / 2)}",
        "noisy": "share * image + sqrt(1 - share * share) * noise",
        "noise": "normal(1, 8, 8)",
        "quarters": "concat(expand(cos(turn / 2), image), expand(sin(turn / 2), image))",
        "halves": "concat(expand(cos(turn), image), expand(sin(turn), image))",
        "wholes": "concat(expand(cos(2 * turn), image), expand(sin(2 * turn), image))",
        "missed": "mse(denoiser(concat(noisy, quarters, halves, wholes)), noise)",
    },
    "phases": [{"updates": ["denoiser"], "losses": {"noise": "missed"}}],
    "evaluate": {"loss": "missed"},
}


def case(system: Mapping[str, Any]) -> Case:
    return Case(
        recipe(dict(system), {"denoiser": DENOISER}, {"denoiser": ADAM}, denoiser=0.9), processes=(1, 2)
    )


CASES: Mapping[str, Case] = {"diffusion": case(SYSTEM), "diffusion, composed": case(COMPOSED)}


class Joined(nn.Module):
    """x, and behind its channels what becomes of it."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], dim=1)


def denoiser() -> nn.Module:
    inner = Joined(nn.Conv2d(8, 4, 1), nn.Tanh())
    down = nn.Conv2d(6, 8, 4, stride=2, padding=1)
    return nn.Sequential(
        nn.Conv2d(7, 6, 3, padding=1),
        Joined(down, nn.SiLU(), inner, nn.Dropout(0.1), nn.Upsample(scale_factor=2)),
        nn.GroupNorm(3, 18),
        nn.Conv2d(18, 1, 3, padding=1),
    )


def train(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    plain = Reference(recipe, data, first, {"denoiser": denoiser()})
    falling = [math.cos((t / STEPS + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2 for t in range(STEPS + 1)]
    kept = torch.tensor([value / falling[0] for value in falling], dtype=plain.dtype)  # alpha bar, of t

    def missed(indices: Tensor, model: nn.Module) -> Tensor:
        image = plain.data["image"][indices]
        t = 1 + (STEPS * torch.rand(len(image), 1, 1, 1, dtype=plain.dtype)).long()
        noise = torch.randn_like(image)
        noisy = kept[t].sqrt() * image + (1 - kept[t]).sqrt() * noise
        turns = [t.to(plain.dtype) * (math.pi * scale / STEPS) for scale in (0.5, 1, 2)]
        waves = [wave for turn in turns for wave in (turn.cos(), turn.sin())]
        seen = torch.cat([noisy, *(wave.expand(-1, 1, 8, 8) for wave in waves)], dim=1)
        return F.mse_loss(model(seen), noise)

    def loss(indices: Tensor) -> tuple[Tensor, Terms]:
        value = missed(indices, plain.models["denoiser"])
        return value, {"noise": value} if plain.system["kind"] == "composed" else {}

    for _ in plain.steps():
        plain.update("denoiser", loss=loss)
    return plain.result() | evaluated(
        plain, lambda indices: {"loss": missed(indices, plain.averages["denoiser"])}
    )
