"""A model of transformers and one of diffusers, as small as they can be, and a system that trains either."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from dtrain import Loss, Ops, Phase, System
from dtrain.systems.base import Batch, Models

WORDS, LENGTH = 11, 6

RECIPE = """\
name = "pretrained"
[system]
kind = "pretrained_models:Both"
[models.writer]
kind = "pretrained_models:writer"
width = 8
[models.painter]
kind = "diffusers:UNet2DModel"
sample_size = 8
in_channels = 1
out_channels = 1
block_out_channels = [8, 8]
norm_num_groups = 2
layers_per_block = 1
down_block_types = ["DownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "UpBlock2D"]
[models.own]
kind = "torch.nn:Linear"
in_features = 3
out_features = 2
[optimizers."*"]
kind = "sgd"
lr = 0.1
[averages.writer]
decay = 0.5
[data]
kind = "arrays"
path = "pictures.npz"
[train]
steps = 2
batch_size = 4
[track]
kinds = ["jsonl"]
"""


def writer(width: int) -> GPT2LMHeadModel:
    """A language model whose head is tied to its embedding."""
    sizes = {"n_embd": width, "n_layer": 1, "n_head": 2, "n_positions": LENGTH}
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, bos_token_id=0, eos_token_id=0, **sizes))


@dataclass(frozen=True)
class Both(System):
    """The writer repeats what it reads, the painter paints what it sees."""

    def phases(self) -> Sequence[Phase]:
        return Phase(("writer",), self.write), Phase(("painter",), self.paint)

    def write(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        words = batch["image"].flatten(1)[:, :LENGTH].abs().mul(WORDS - 1).long()
        logits: Any = models.writer(words).logits
        return Loss(functional.cross_entropy(logits.flatten(0, 1), words.flatten()))

    def paint(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        painted: Any = models.painter(batch["image"], 1).sample
        return Loss(((painted - batch["image"]) ** 2).mean())
