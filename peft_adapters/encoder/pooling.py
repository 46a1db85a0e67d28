"""Choice of the pooling that reduces a text's tokens to one vector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils.hub import cached_file

from peft_adapters.encoder.suffix import Pooling
from peft_adapters.errors import EncoderError

_FILE = "1_Pooling/config.json"  # written by sentence-transformers
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_NAMES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}


def resolve_pooling(setting: str, model: str, layers: nn.ModuleList) -> Pooling:
    """Return the configured pooling; for "auto", follow the model's files, then its kind of attention.

    Args:
        setting: value of `encoder.pooling`.
        model: Hugging Face id or path.
        layers: transformer layers of the model.

    Raises:
        EncoderError: the setting is "auto" and the model's files name an unsupported pooling.
    """
    if setting in ("mean", "cls", "last"):
        return setting  # type: ignore[return-value]
    file = cached_file(
        model, _FILE, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_gated_repo=False
    )
    if file is not None:
        return _pooling_from_config(json.loads(Path(file).read_text(encoding="utf-8")), model)
    causal = any(getattr(module, "is_causal", False) for module in layers.modules())
    return "last" if causal else "mean"  # only the last token of a decoder has seen the whole text


def _pooling_from_config(config: dict[str, Any], model: str) -> Pooling:
    flags = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    poolings = [_FLAGS.get(flag) for flag in flags] or [_NAMES.get(str(config.get("pooling_mode")))]
    if len(poolings) == 1 and poolings[0] is not None:
        return poolings[0]
    raise EncoderError(
        f"`encoder.pooling` can follow {_FILE} where that says one of mean, cls and last, got {config} for {model!r}; "
        "set `encoder.pooling` to one of them"
    )
