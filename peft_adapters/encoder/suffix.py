"""The layers above the split, run by the model's own forward pass on packed texts.

The model's own code handles everything between its layers, such as rotary positions and a final norm. This module
replaces its embeddings by frozen activations and its attention by one that separates texts: linear layers process all
tokens as one matrix, attention processes the texts of each length in turn, and nothing is padded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Literal

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from peft_adapters.encoder.lora_linear import Dropout, LoraLinear

ATTENTION = "headwater_packed"  # sdpa that also takes packed texts
Pooling = Literal["mean", "cls", "last"]
_CHUNK_TOKENS = 2_048  # per run of the layers; bounds memory, and larger matrices are no faster
_EMBEDDINGS = ("embeddings", "embed_tokens")
Shape = tuple[int, int]  # texts, tokens each


class Suffix(nn.Module):
    """The layers that map frozen activations to text vectors; they share the weights of their base model.

    Args:
        base: model with LoRA, loaded with the attention `ATTENTION`.
        layers: name of the model's list of layers.
        split: index of the first layer of the suffix.
        pooling: method that reduces a text's tokens to one vector.
        packed: run all texts at once; False runs texts of one length at a time, for models whose layers do not pass
            arguments on to their attention.

    Attributes:
        dim: width of a text vector.
    """

    def __init__(self, base: PreTrainedModel, layers: str, split: int, *, pooling: Pooling, packed: bool) -> None:
        super().__init__()
        self.dim = int(base.config.hidden_size)
        self._pooling, self._packed = pooling, packed
        self._tail = _tail(base, layers, split)

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        """Return text vectors [texts, dim] for activations [tokens, dim] of each text."""
        if not hidden:
            return torch.zeros(0, self.dim)
        order = sorted(range(len(hidden)), key=lambda index: len(hidden[index]))
        vectors = torch.cat([self._run([hidden[index] for index in chunk]) for chunk in _chunks(order, hidden)])
        return vectors.index_select(0, torch.argsort(torch.tensor(order)))

    @contextmanager
    def lora_dropout(self, dropout: Dropout) -> Iterator[None]:
        """Apply dropout to LoRA's input inside the context."""
        layers = [module for module in self.modules() if isinstance(module, LoraLinear)]
        try:
            for layer in layers:
                layer.dropout = dropout
            yield
        finally:
            for layer in layers:
                layer.dropout = None

    def merged(self) -> Suffix:
        """Return a frozen copy with LoRA merged into its weights, for inference."""
        merged = copy.deepcopy(self)
        _replace(merged, LoraLinear, LoraLinear.merged)
        return merged.requires_grad_(False)

    def _run(self, hidden: Sequence[Tensor]) -> Tensor:
        """Return vectors [texts, dim] for activations [tokens, dim] of texts sorted by length."""
        shapes = [(len(list(texts)), length) for length, texts in groupby(map(len, hidden))]
        packed = torch.cat(list(hidden)).float()  # [tokens of all texts, dim]
        states = self._layers_packed(packed, shapes) if self._packed else self._layers_by_length(packed, shapes)
        return torch.cat([self.pool(states_) for states_ in _unpack(states, shapes, dim=0)])

    def _layers_packed(self, packed: Tensor, shapes: list[Shape]) -> Tensor:
        """Map activations [tokens, dim] of all texts through the layers at once."""
        positions = torch.cat([torch.arange(length).repeat(texts) for texts, length in shapes])
        states: Tensor = self._tail(
            inputs_embeds=packed[None],
            position_ids=positions[None],
            attention_mask=torch.ones(1, 1, 1, 1),  # four dimensions: the model does not build its own mask
            packed_shapes=shapes,
        ).last_hidden_state
        return states[0]

    def _layers_by_length(self, packed: Tensor, shapes: list[Shape]) -> Tensor:
        """Map activations [tokens, dim] of all texts through the layers, one text length at a time."""
        parts = [self._tail(inputs_embeds=states).last_hidden_state for states in _unpack(packed, shapes, dim=0)]
        return torch.cat([states.flatten(0, 1) for states in parts])

    def pool(self, states: Tensor) -> Tensor:
        """Pool activations [texts, tokens, dim] to vectors [texts, dim]."""
        if self._pooling == "mean":
            return states.mean(dim=1)
        return states[:, 0] if self._pooling == "cls" else states[:, -1]


class _IdentityEmbeddings(nn.Module):
    """Replacement of the embeddings that returns the activations unchanged."""

    def forward(self, *args: Any, inputs_embeds: Tensor | None = None, **_: Any) -> Tensor:
        """Return the activations [1, tokens, dim]; some models pass them as a positional argument."""
        candidates = (inputs_embeds, *args)
        return next(value for value in candidates if isinstance(value, Tensor) and value.is_floating_point())


def _tail(base: PreTrainedModel, layers: str, split: int) -> PreTrainedModel:
    """Return a copy of the model without the layers below the split, on the same weights."""
    weights = [*base.parameters(), *base.buffers()]
    tail = copy.deepcopy(base, memo={id(weight): weight for weight in weights})
    parent, _, name = layers.rpartition(".")
    setattr(tail.get_submodule(parent), name, nn.ModuleList([*tail.get_submodule(layers).children()][split:]))
    for embeddings in _EMBEDDINGS:
        if hasattr(tail, embeddings):
            setattr(tail, embeddings, _IdentityEmbeddings())
    if "pooler" in dict(tail.named_children()):
        tail.register_module("pooler", None)
    _drop_layers_from_config(tail.config, split)
    _replace(tail, PeftLinear, LoraLinear)
    return tail


def _drop_layers_from_config(config: Any, split: int) -> None:
    """Remove the layers below the split from a configuration."""
    layer_types = getattr(config, "layer_types", None)
    config.num_hidden_layers -= split
    if layer_types is not None:
        config.layer_types = layer_types[split:]
    if hasattr(config, "use_cache"):
        config.use_cache = False


def _replace(model: nn.Module, kind: type[nn.Module], convert: Any) -> None:
    """Replace, in place, each submodule of a kind by its conversion."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind):
                setattr(parent, name, convert(child))


def _chunks(order: Sequence[int], hidden: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield runs of consecutive texts [tokens, dim] with at most `_CHUNK_TOKENS` tokens, or a single longer text."""
    chunk: list[int] = []
    tokens = 0
    for index in order:
        if chunk and tokens + len(hidden[index]) > _CHUNK_TOKENS:
            yield chunk
            chunk, tokens = [], 0
        chunk.append(index)
        tokens += len(hidden[index])
    yield chunk


def _unpack(packed: Tensor, shapes: Sequence[Shape], *, dim: int) -> list[Tensor]:
    """Split packed activations [.., tokens, ..] by text length into [.., texts, tokens, ..], at dimension `dim`."""
    parts = torch.split(packed, [texts * length for texts, length in shapes], dim=dim)
    return [
        part.view(*part.shape[:dim], *shape, *part.shape[dim + 1 :]) for part, shape in zip(parts, shapes, strict=True)
    ]


# ---- attention


def _attention(
    module: nn.Module,
    query: Tensor,  # [batch, heads, tokens, head width]
    key: Tensor,  # [batch, heads, tokens, head width]
    value: Tensor,  # [batch, heads, tokens, head width]
    attention_mask: Tensor | None,
    packed_shapes: Sequence[Shape] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return attention outputs [batch, tokens, heads, head width]; with `packed_shapes`, texts attend to themselves."""
    if packed_shapes is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    by_length = zip(
        packed_shapes, *(_unpack(part[0], packed_shapes, dim=1) for part in (query, key, value)), strict=True
    )
    outputs = []
    for (_, length), *parts in by_length:
        queries, keys, values = (part.transpose(0, 1) for part in parts)  # [texts, heads, tokens, head width] each
        mask = _window_mask(module, length, options.get("sliding_window"))
        outputs.append(sdpa_attention_forward(module, queries, keys, values, mask, **options)[0].flatten(0, 1))
    return torch.cat(outputs)[None], None  # [1, tokens, heads, head width]


def _window_mask(module: nn.Module, length: int, window: int | None) -> Tensor | None:
    """Return the mask [tokens, tokens] of a layer with a sliding attention window; None if the text fits in it."""
    if window is None or length <= window:
        return None
    position = torch.arange(length)
    distance = position[:, None] - position  # from the attending token back to the attended one
    if getattr(module, "is_causal", True):
        return (distance >= 0) & (distance < window)
    return distance.abs() < window


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
