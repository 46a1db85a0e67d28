"""Vectors of what shoppers ask in words, under the adapter that answers.

A query is one short text that is wanted at once, by any thread. Its frozen part runs alone here, with nothing padded
beside it, and is kept for as long as it is asked for: a new adapter costs a known query the adapted layers only.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from peft_adapters.encoder.encoder import Encoder, MergedSuffix
from peft_adapters.encoder.frozen_prefix import FrozenPrefix

MAX_QUERY_CHARS = 512  # the encoder cuts far earlier; longer ones are refused where they come in


@dataclass(slots=True)
class _Known:
    """A query that was asked before.

    Attributes:
        hidden: [tokens, dim] frozen activations; no adapter changes them.
        suffix: the adapter that `vector` is under.
        vector: [dim].
    """

    hidden: Tensor
    suffix: MergedSuffix
    vector: Tensor


class QueryEncoder:
    """Unit vectors of queries; may be called from any thread.

    Args:
        encoder: whose frozen part it shares; its adapter is not looked at.
        int8: run the frozen part on weights of 8 bits, quantised once: faster, and a little off.
        max_queries: kept, those asked for longest ago go first.

    Attributes:
        hits: queries whose frozen part was there.
        misses: the others.
    """

    def __init__(self, encoder: Encoder, *, int8: bool = False, max_queries: int = 4_096) -> None:
        self._prefix = encoder.frozen_prefix()
        if int8:
            _quantise(self._prefix)
        self._max_queries = max_queries
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    @torch.inference_mode()
    def __call__(self, query: str, suffix: MergedSuffix) -> Tensor:
        """Unit vector [dim] of a query under the adapter that is merged into a suffix."""
        query = " ".join(query.split())
        known = self._found(query)
        if known is not None and known.suffix is suffix:
            return known.vector
        hidden = self._prefix(query) if known is None else known.hidden
        vector = nn.functional.normalize(suffix([hidden])[0], dim=0)
        self._keep(query, _Known(hidden, suffix, vector))
        return vector

    def __len__(self) -> int:
        """Queries kept."""
        return len(self._known)

    def _found(self, query: str) -> _Known | None:
        with self._lock:
            known = self._known.get(query)
            if known is None:
                self.misses += 1
                return None
            self.hits += 1
            self._known.move_to_end(query)
            return known

    def _keep(self, query: str, known: _Known) -> None:
        with self._lock:
            self._known[query] = known
            self._known.move_to_end(query)
            if len(self._known) > self._max_queries:
                self._known.popitem(last=False)


def _quantise(prefix: FrozenPrefix) -> None:
    """Replace linear layers below the adapter: weights in 8 bits a channel, activations as they come."""
    with warnings.catch_warnings():
        # torch 2.13 says that it was to be gone by 2.10; what it points to, torchao, has no such layers for CPUs.
        warnings.simplefilter("ignore")
        from torch.ao.nn.quantized.dynamic import Linear
        from torch.ao.quantization import per_channel_dynamic_qconfig

        for parent in [module for layer in prefix.layers for module in layer.modules()]:
            for name, child in parent.named_children():
                if type(child) is nn.Linear:
                    child.qconfig = per_channel_dynamic_qconfig  # type: ignore[assignment]
                    setattr(parent, name, Linear.from_float(child))
