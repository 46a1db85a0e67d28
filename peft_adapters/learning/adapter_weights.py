"""Weights of an adapter, under PEFT's names: the change of the base that they make, and a factor on it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from peft_adapters.encoder.encoder import Encoder, MergedSuffix

_ZERO_FIRST = ".lora_B"  # matrices that start at zero; without them an adapter changes nothing


def scaled(lora: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return LoRA weights whose change of the base is that of `lora` times a factor; 1 changes no bit."""
    return {name: value if scale == 1 or _ZERO_FIRST not in name else value * scale for name, value in lora.items()}


def is_base(lora: Mapping[str, Tensor]) -> bool:
    """Return whether an adapter changes nothing, as a new one or one at scale 0."""
    return not any(bool(value.any()) for name, value in lora.items() if _ZERO_FIRST in name)


def have_same_effect(lora: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two adapters are equal, or both change nothing."""
    return all(torch.equal(value, other[name]) for name, value in lora.items()) or (is_base(lora) and is_base(other))


def merged(encoder: Encoder, lora: Mapping[str, Tensor]) -> MergedSuffix:
    """Return a suffix with an adapter merged into it; the encoder's weights are unchanged."""
    trained = encoder.lora_state()
    encoder.load_lora(dict(lora))
    suffix = encoder.merged()
    encoder.load_lora(trained)
    return suffix


def half(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return LoRA weights in half precision."""
    return {name: value.half() for name, value in lora.items()}
