"""SimCLR: the candidates are those of a micro-batch, which is the same on any number of processes."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from agreement.cases import ADAMW, ENCODER, LATENT, SGD, Case, Table, activation, layer, recipe
from agreement.references import Numbers, Reference, Terms, encoder, evaluated
from torch import Tensor, nn

PROJECTOR: Table = {"input": [LATENT], "layers": [activation("tanh"), layer("linear", out=6)]}
VIEW = "random_flip(random_shift(random_zoom(image, 1.5), 1)) * (1 + 0.3 * (2 * uniform(1, 1, 1) - 1))"
MATCHED = "mean(argmax(first) == positions(one)) / 2 + mean(argmax(second) == positions(one)) / 2"
COMPOSED: Table = {
    "kind": "composed",
    "values": {
        "one": f"normalize(projector(encoder({VIEW})))",
        "two": f"normalize(projector(encoder({VIEW})))",
        "across": "matmul(one, transpose(two)) / 0.5",
        "own": "1e9 * eye(across)",
        "first": "concat(across, matmul(one, transpose(one)) / 0.5 - own)",
        "second": "concat(transpose(across), matmul(two, transpose(two)) / 0.5 - own)",
        "nt_xent": "(cross_entropy(first, positions(one)) + cross_entropy(second, positions(one))) / 2",
    },
    "phases": [
        {"updates": ["encoder", "projector"], "losses": {"nt_xent": "nt_xent"}, "logs": {"matched": MATCHED}}
    ],
    "evaluate": {"loss": "nt_xent", "matched": MATCHED},
}
NAMED: Table = {
    "kind": "contrastive",
    "temperature": 0.5,
    "zoom": 1.5,
    "shift": 1,
    "contrast": 0.3,
}


def case(system: Table) -> Case:
    models, optimizers = {"encoder": ENCODER, "projector": PROJECTOR}, {"encoder": ADAMW, "projector": SGD}
    return Case(recipe(system, models, optimizers, encoder=0.9), processes=(1, 2))


CASES: Mapping[str, Case] = {"contrastive": case(NAMED), "contrastive, composed": case(COMPOSED)}


def train(recipe: Mapping[str, Any], data: Numbers, first: Numbers) -> Numbers:
    made_of = {"encoder": encoder(), "projector": nn.Sequential(nn.Tanh(), nn.Linear(LATENT, 6))}
    plain = Reference(recipe, data, first, made_of)

    def terms(indices: Tensor, encode: nn.Module) -> Terms:
        """NT-Xent as in the paper: all 2N views in a row, each to find the one N places on."""
        image = plain.data["image"][indices]
        z = torch.cat([plain.models["projector"](encode(view(image))) for _ in range(2)])
        count, z = len(image), z / z.norm(dim=1, keepdim=True)
        alike = (z @ z.T / 0.5).masked_fill(torch.eye(2 * count, dtype=torch.bool), -torch.inf)
        partner = torch.arange(2 * count).roll(count)
        # Of candidates that are equally alike the first counts, in the order: the other view's, then its own.
        ordered = torch.stack([row.roll(-count if i < count else 0) for i, row in enumerate(alike)])
        hits = ordered.argmax(1) == torch.arange(count).repeat(2)
        loss = F.cross_entropy(alike, partner)
        return {"loss": loss, "matched": hits.to(image.dtype).mean()}

    def loss(indices: Tensor) -> tuple[Tensor, Terms]:
        found = terms(indices, plain.models["encoder"])
        named = {"nt_xent": found["loss"]} if recipe["system"]["kind"] == "composed" else {}
        return found["loss"], {"matched": found["matched"], **named}

    for _ in plain.steps():
        plain.update("encoder", "projector", loss=loss)
    return plain.result() | evaluated(plain, lambda indices: terms(indices, plain.averages["encoder"]))


def view(image: Tensor) -> Tensor:
    """A part of each picture enlarged to its size, moved, mirrored or not, paler or darker."""
    count, side = len(image), image.shape[-1]
    share = 1 / (1 + 0.5 * torch.rand(count, dtype=image.dtype))
    middle = (torch.rand(2, count, dtype=image.dtype) * 2 - 1) * (1 - share)
    pixel = (torch.arange(side, dtype=image.dtype) + 0.5) * 2 / side - 1  # the middles of pixels, -1 to 1
    across, down = (share[:, None] * pixel + at[:, None] for at in middle)  # (N, side)
    grid = torch.stack([across[:, None].expand(-1, side, -1), down[:, :, None].expand(-1, -1, side)], dim=-1)
    image = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    top, left = torch.randint(3, (2, count, 1))
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    image = torch.stack(
        [p[:, y : y + side, x : x + side] for p, y, x in zip(padded, top[:, 0], left[:, 0], strict=True)]
    )
    is_mirrored = torch.rand(count, 1, 1, 1) < 0.5
    image = torch.where(is_mirrored, image.flip(3), image)
    return image * (1 + 0.3 * (2 * torch.rand(count, 1, 1, 1, dtype=image.dtype) - 1))
