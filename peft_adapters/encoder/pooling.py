"""How a model's tokens become one vector: as its makers trained it, or as was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn
from transformers.utils.hub import cached_file

from peft_adapters.encoder.suffix import Pooling
from peft_adapters.errors import EncoderError

_FILE = "1_Pooling/config.json"  # of sentence-transformers
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_NAMES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}


def chosen_pooling(asked: str, model: str, layers: nn.ModuleList) -> Pooling:
    """The pooling that was asked for, or with "auto" what a model's files and kind of attention say.

    Args:
        asked: `encoder.pooling`.
        model: Hugging Face id or path.
        layers: the model's layers.

    Raises:
        EncoderError: "auto", and the model's files ask for another pooling than the three.
    """
    if asked in ("mean", "cls", "last"):
        return asked  # type: ignore[return-value]
    file = cached_file(
        model, _FILE, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_gated_repo=False
    )
    if file is not None:
        return _of_file(json.loads(Path(file).read_text(encoding="utf-8")), model)
    causal = any(getattr(module, "is_causal", False) for module in layers.modules())
    return "last" if causal else "mean"  # only the last token of a decoder has seen the whole text


def _of_file(config: dict[str, Any], model: str) -> Pooling:
    wanted = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    named = [_FLAGS.get(name) for name in wanted] or [_NAMES.get(str(config.get("pooling_mode")))]
    if len(named) == 1 and named[0] is not None:
        return named[0]
    raise EncoderError(
        f"`encoder.pooling` can follow {_FILE} where that says one of mean, cls and last, got {config} for {model!r}; "
        "set `encoder.pooling` to one of them"
    )
