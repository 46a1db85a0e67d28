"""The layers above the split, run by the model's own forward on texts laid end to end.

Whatever stands between a model's layers (rotary positions for each kind of layer, a norm at the end) is its own code's
matter. Here it is only given frozen activations where its embeddings would come, and an attention that keeps texts
apart: linear layers see all tokens as one matrix, attention sees texts of one length at a time, and nothing is padded.
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

ATTENTION = "headwater_packed"  # as sdpa, unless texts lie end to end
Pooling = Literal["mean", "cls", "last"]
_CHUNK_TOKENS = 2_048  # of one run of the layers; bounds memory, and larger matrices are no faster
_EMBEDDINGS = ("embeddings", "embed_tokens")
Shape = tuple[int, int]  # texts, tokens each


class Suffix(nn.Module):
    """From frozen activations to text vectors; shares its weights with the model it was made of.

    Args:
        base: a model that carries LoRA, loaded with `ATTENTION`.
        layers: name of its list of layers.
        split: the first layer that belongs to the suffix.
        pooling: how a text's tokens become its vector.
        packed: False runs texts of one length at a time, for models whose layers do not tell their attention more.
    """

    def __init__(self, base: PreTrainedModel, layers: str, split: int, *, pooling: Pooling, packed: bool) -> None:
        super().__init__()
        self.dim = int(base.config.hidden_size)
        self._pooling, self._packed = pooling, packed
        self._tail = _tail(base, layers, split)

    def forward(self, hidden: Sequence[Tensor]) -> Tensor:
        """Vectors [texts, dim] of activations [tokens, dim] each."""
        if not hidden:
            return torch.zeros(0, self.dim)
        order = sorted(range(len(hidden)), key=lambda index: len(hidden[index]))
        vectors = torch.cat([self._run([hidden[index] for index in chunk]) for chunk in _chunks(order, hidden)])
        return vectors.index_select(0, torch.argsort(torch.tensor(order)))

    @contextmanager
    def dropping(self, dropout: Dropout) -> Iterator[None]:
        """Meanwhile what LoRA sees goes through dropout."""
        layers = [module for module in self.modules() if isinstance(module, LoraLinear)]
        try:
            for layer in layers:
                layer.dropout = dropout
            yield
        finally:
            for layer in layers:
                layer.dropout = None

    def merged(self) -> Suffix:
        """A frozen copy with LoRA folded into its weights: for inference, cheaper to run, never trained."""
        other = copy.deepcopy(self)
        _replace(other, LoraLinear, LoraLinear.merged)
        return other.requires_grad_(False)

    def _run(self, hidden: Sequence[Tensor]) -> Tensor:
        """Vectors of texts in order of length."""
        shapes = [(len(list(texts)), length) for length, texts in groupby(map(len, hidden))]
        packed = torch.cat(list(hidden)).float()  # [tokens of all texts, dim]
        states = self._layers_packed(packed, shapes) if self._packed else self._layers_by_length(packed, shapes)
        return torch.cat([self.pool(states_) for states_ in _apart(states, shapes, dim=0)])

    def _layers_packed(self, packed: Tensor, shapes: list[Shape]) -> Tensor:
        positions = torch.cat([torch.arange(length).repeat(texts) for texts, length in shapes])
        states: Tensor = self._tail(
            inputs_embeds=packed[None],
            position_ids=positions[None],
            attention_mask=torch.ones(1, 1, 1, 1),  # of four dimensions, so that the model does not make one of its own
            packed_shapes=shapes,
        ).last_hidden_state
        return states[0]

    def _layers_by_length(self, packed: Tensor, shapes: list[Shape]) -> Tensor:
        parts = [self._tail(inputs_embeds=states).last_hidden_state for states in _apart(packed, shapes, dim=0)]
        return torch.cat([states.flatten(0, 1) for states in parts])

    def pool(self, states: Tensor) -> Tensor:
        """[texts, tokens, dim] to [texts, dim]."""
        if self._pooling == "mean":
            return states.mean(dim=1)
        return states[:, 0] if self._pooling == "cls" else states[:, -1]


class _PassOn(nn.Module):
    """Stands where embeddings were: the activations come as they are."""

    def forward(self, *args: Any, inputs_embeds: Tensor | None = None, **_: Any) -> Tensor:
        """What was given in place of token ids; some models give it by position."""
        given = (inputs_embeds, *args)
        return next(value for value in given if isinstance(value, Tensor) and value.is_floating_point())


def _tail(base: PreTrainedModel, layers: str, split: int) -> PreTrainedModel:
    """The model with nothing below the split, on the same weights."""
    weights = [*base.parameters(), *base.buffers()]
    tail = copy.deepcopy(base, memo={id(weight): weight for weight in weights})
    parent, _, name = layers.rpartition(".")
    setattr(tail.get_submodule(parent), name, nn.ModuleList([*tail.get_submodule(layers).children()][split:]))
    for embeddings in _EMBEDDINGS:
        if hasattr(tail, embeddings):
            setattr(tail, embeddings, _PassOn())
    if "pooler" in dict(tail.named_children()):
        tail.register_module("pooler", None)
    _count_layers(tail.config, split)
    _replace(tail, PeftLinear, LoraLinear)
    return tail


def _count_layers(config: Any, split: int) -> None:
    """Say in a configuration that the layers below the split are gone."""
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers -= split
    if kinds is not None:
        config.layer_types = kinds[split:]
    if hasattr(config, "use_cache"):
        config.use_cache = False


def _replace(model: nn.Module, kind: type[nn.Module], other: Any) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind):
                setattr(parent, name, other(child))


def _chunks(order: Sequence[int], hidden: Sequence[Tensor]) -> Iterator[list[int]]:
    """Consecutive texts of `_CHUNK_TOKENS` together, or one."""
    chunk: list[int] = []
    tokens = 0
    for index in order:
        if chunk and tokens + len(hidden[index]) > _CHUNK_TOKENS:
            yield chunk
            chunk, tokens = [], 0
        chunk.append(index)
        tokens += len(hidden[index])
    yield chunk


def _apart(packed: Tensor, shapes: Sequence[Shape], *, dim: int) -> list[Tensor]:
    """Texts of each length by themselves: dimension `dim`, all tokens, becomes two: texts, tokens."""
    parts = torch.split(packed, [texts * length for texts, length in shapes], dim=dim)
    return [
        part.view(*part.shape[:dim], *shape, *part.shape[dim + 1 :]) for part, shape in zip(parts, shapes, strict=True)
    ]


# ---- attention


def _attention(
    module: nn.Module,
    query: Tensor,  # [batch, heads, tokens, head width]
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_shapes: Sequence[Shape] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention; of texts that lie end to end, within each of them."""
    if packed_shapes is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return output, None
    by_length = zip(
        packed_shapes, *(_apart(part[0], packed_shapes, dim=1) for part in (query, key, value)), strict=True
    )
    outputs = []
    for (_, length), *parts in by_length:
        each = [part.transpose(0, 1) for part in parts]  # [texts, heads, tokens, head width]
        mask = _window_mask(module, length, options.get("sliding_window"))
        outputs.append(sdpa_attention_forward(module, each[0], each[1], each[2], mask, **options)[0].flatten(0, 1))
    return torch.cat(outputs)[None], None  # [1, tokens, heads, head width]


def _window_mask(module: nn.Module, length: int, window: int | None) -> Tensor | None:
    """Which tokens [of, see] one another where a layer looks no further than its window; None when all do."""
    if window is None or length <= window:
        return None
    position = torch.arange(length)
    behind = position[:, None] - position  # of the token that looks, the one looked at
    if getattr(module, "is_causal", True):
        return (behind >= 0) & (behind < window)
    return behind.abs() < window


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
