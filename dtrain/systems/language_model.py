"""Causal language models: each token of a text from those before it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from dtrain.data.source import Field
from dtrain.spec.blocks import Layers, Repeat, Residual
from dtrain.spec.layers import Activation, Dropout, ImportedLayer, Layer, LayerNorm, Linear
from dtrain.spec.models import Model, ModelSpec, input_of, output_of
from dtrain.spec.sequence import GRU, Attention, Embedding, Position
from dtrain.spec.table import Above0, Positive, Table, Wrong, kind, table
from dtrain.systems.base import Array, Batch, Evaluation, Loss, Models, Ops, Phase, System

BYTES = 256  # classes of the tokens that a prompt can be spelt in
# Layers in which no element of a sequence learns of those behind it; attention is asked.
CAUSAL = (Embedding, Position, GRU, Linear, LayerNorm, Activation, Dropout, ImportedLayer)


@table
class Sample(Table):
    """The texts that are drawn: each token by its probability, given those before it."""

    prompt: str | None = None  # what each goes on from; half a window of the evaluation data if left out
    length: Positive = 400  # tokens that are drawn
    count: Positive = 2  # texts
    temperature: Above0 = 1.0  # below 1 the likely becomes likelier
    # only so many of the likeliest tokens are drawn from; all of them if left out. Fan et al. 2018
    # (arXiv:1805.04833)
    top_k: Positive | None = None


@kind(System, "language_model")
class LanguageModel(System):
    """Cross-entropy of each token under the model `language_model`, which reads those before it.

    A mean over tokens, whatever the micro-batches: each counts by its weight. Where the weights say how many
    characters tokens stand for, as those of `text` do, `bits_per_character` is what a perfect compressor
    would need. Source: Bengio et al. 2003; of its use on characters, Graves 2013 (arXiv:1308.0850).
    """

    input: str = "token"  # the field with the tokens that the model reads
    target: str = "next_token"  # the field with the token that comes next at each of them
    weight: str = "weight"  # the field with what that counts; 0 for padding
    sample: Sample = Sample()  # texts that are drawn

    evaluates = MappingProxyType({"loss": "min", "bits_per_character": "min"})

    def phases(self) -> Sequence[Phase]:
        return (Phase(("language_model",), self.surprise),)

    def reads(self) -> Mapping[str, str | None]:
        return {self.input: "language_model", self.target: None, self.weight: None}

    def check(self, models: Mapping[str, Model]) -> Iterator[ValueError]:
        model = models["language_model"]
        takes, gives = input_of(model), output_of(model)
        if takes is not None and len(takes) != 1:
            yield Wrong("models.language_model.input", f"is {list(takes)}, but tokens are [length]")
        elif takes and gives and (len(gives) != 2 or gives[0] != takes[0]):
            said = f"gives {gives}, but must give ({takes[0]}, tokens); end it with a linear layer"
            yield Wrong("models.language_model", said)
        if isinstance(model, ModelSpec):
            yield from looks_ahead(model.layers, "models.language_model.layers")

    def check_data(self, models: Mapping[str, Model], fields: Mapping[str, Field]) -> None:
        token, target, weight = fields[self.input], fields[self.target], fields[self.weight]
        if not target.holds_whole_numbers or target.shape != token.shape:
            raise ValueError(f'"{self.target}" must hold a whole number for each of "{self.input}"')
        if weight.shape != token.shape:
            raise ValueError(f'"{self.weight}" must hold a number for each of "{self.input}"')
        model, classes = models["language_model"], target.classes
        gives = output_of(model)
        if gives is not None and classes is not None and classes > gives[-1]:
            raise ValueError(
                f"the data has {classes} tokens, but models.language_model gives {gives[-1]}; "
                f"make its last layer's `out` {classes}"
            )
        first = model.layers[0] if isinstance(model, ModelSpec) else None
        if isinstance(first, Embedding) and classes is not None and classes > first.size:
            said = f"is {first.size}, but the data has {classes} tokens"
            raise Wrong("models.language_model.layers[0].size", said)
        if self.sample.prompt is not None and classes != BYTES:
            said = f'a prompt is spelt in bytes, and the tokens in "{self.target}" are others; leave it out'
            raise Wrong("system.sample.prompt", said, is_key=True)

    def surprise(self, models: Models, batch: Batch, ops: Ops) -> Loss:
        """Train on what the model did not foresee."""
        shown = self.evaluate(models, batch, ops)
        loss, bits = shown.terms["loss"], shown.terms["bits_per_character"]
        return Loss(loss, {"bits_per_character": bits}, shown.weight)

    def evaluate(self, models: Models, batch: Batch, ops: Ops) -> Evaluation:
        logits = models.language_model(batch[self.input])  # (N, length, tokens)
        target, weight = batch[self.target], batch[self.weight]  # (N, length)
        counts, total = weight > 0, weight.sum()
        loss = ops.cross_entropy(logits, target, weight=weight)
        bits = ops.detach(loss) * counts.sum() / total / math.log(2)
        predicted = logits, ops.where(counts, target, -1)
        return Evaluation({"loss": loss, "bits_per_character": bits}, total, predicted)

    def predict(self, models: Models, batch: Batch, ops: Ops) -> tuple[Array, Array] | None:
        return self.evaluate(models, batch, ops).predicted

    def samples(self, models: Models, batch: Batch, ops: Ops) -> Mapping[str, Array]:
        length = batch[self.input].shape[1]
        text = self.beginning(batch, ops)
        for _ in range(self.sample.length):
            logits = models.language_model(text[:, -length:])[:, -1]  # (count, tokens), of the next one
            if self.sample.top_k is not None:
                logits = likeliest(logits, self.sample.top_k, ops)
            text = ops.concat(text, ops.categorical(logits / self.sample.temperature)[:, None])
        return {"language_model": text}

    def beginning(self, batch: Batch, ops: Ops) -> Array:
        """The tokens that samples go on from, (count, some)."""
        token, count = batch[self.input], self.sample.count
        if self.sample.prompt is None:
            return token[:count, : (token.shape[1] + 1) // 2]
        zero = token[:1, :1] * 0  # which stands before a text
        prompt = ops.concat(*(zero + byte for byte in self.sample.prompt.encode() or b"\0"))
        return ops.concat(*[prompt] * count, axis=0)


def likeliest(logits: Array, count: int, ops: Ops) -> Array:
    """The `count` largest logits of each row; the others become -inf."""
    rest = logits
    for _ in range(min(count, logits.shape[-1]) - 1):
        rest = ops.where(rest == ops.max(rest)[:, None], -math.inf, rest)
    return ops.where(logits >= ops.max(rest)[:, None], logits, -math.inf)


def looks_ahead(layers: Layers, at: str) -> Iterator[Wrong]:
    """Each layer in which a token may learn of those behind it, so that the model could cheat."""
    for number, layer in enumerate(layers):
        place = f"{at}[{number}]"
        if isinstance(layer, Residual | Repeat):
            yield from looks_ahead(layer.layers, f"{place}.layers")
        elif isinstance(layer, Attention):
            if not layer.causal:
                said = "false lets a token see those that it is to foretell; true would do"
                yield Wrong(f"{place}.causal", said)
        elif not isinstance(layer, CAUSAL):
            yield Wrong(f"{place}.kind", _said_of(layer))


def _said_of(layer: Layer) -> str:
    return (
        f"{layer.kind} may let a token see those that it is to foretell; gru, attention, and what takes "
        "each token by itself would do"
    )
