"""Vectors of search queries under the adapter that serves.

A query is one short text that any thread needs at once. Its frozen activations are computed without padding and kept in
an LRU cache, so after an adapter swap a known query runs only the adapted layers.
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


@dataclass(slots=True)
class _CachedQuery:
    """Cache entry of a query.

    Attributes:
        hidden: [tokens, dim] frozen activations, independent of the adapter.
        suffix: merged suffix that computed `vector`.
        vector: [dim] unit vector of the query.
    """

    hidden: Tensor
    suffix: MergedSuffix
    vector: Tensor


class QueryEncoder:
    """Unit vectors of queries, thread-safe.

    Args:
        encoder: encoder whose frozen layers are shared; its adapter is not used.
        int8: run the frozen layers with weights quantised to 8 bits: faster, slightly less exact.
        max_queries: size of the cache; the least recently used query is evicted first.

    Attributes:
        hits: number of queries whose frozen activations were cached.
        misses: number of queries whose frozen activations were computed.
    """

    def __init__(self, encoder: Encoder, *, int8: bool = False, max_queries: int = 4_096) -> None:
        self._prefix = encoder.frozen_prefix()
        if int8:
            _quantise(self._prefix)
        self._max_queries = max_queries
        self._cached: OrderedDict[str, _CachedQuery] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    @torch.inference_mode()
    def __call__(self, query: str, suffix: MergedSuffix) -> Tensor:
        """Return the unit vector [dim] of a query.

        Args:
            query: the query text; runs of white space count as one space.
            suffix: suffix with the serving adapter merged into it.
        """
        query = " ".join(query.split())
        cached = self._lookup(query)
        if cached is not None and cached.suffix is suffix:
            return cached.vector
        hidden = self._prefix(query) if cached is None else cached.hidden
        vector = nn.functional.normalize(suffix([hidden])[0], dim=0)
        self._store(query, _CachedQuery(hidden, suffix, vector))
        return vector

    def __len__(self) -> int:
        """Return the number of cached queries."""
        return len(self._cached)

    def _lookup(self, query: str) -> _CachedQuery | None:
        with self._lock:
            cached = self._cached.get(query)
            if cached is None:
                self.misses += 1
                return None
            self.hits += 1
            self._cached.move_to_end(query)
            return cached

    def _store(self, query: str, cached: _CachedQuery) -> None:
        with self._lock:
            self._cached[query] = cached
            self._cached.move_to_end(query)
            if len(self._cached) > self._max_queries:
                self._cached.popitem(last=False)


def _quantise(prefix: FrozenPrefix) -> None:
    """Replace the frozen linear layers by dynamically quantised ones with 8-bit weights per channel."""
    with warnings.catch_warnings():
        # torch 2.13 warns that this API was to be removed in 2.10; torchao, its successor, has no such CPU layers.
        warnings.simplefilter("ignore")
        from torch.ao.nn.quantized.dynamic import Linear
        from torch.ao.quantization import per_channel_dynamic_qconfig

        for parent in [module for layer in prefix.layers for module in layer.modules()]:
            for name, child in parent.named_children():
                if type(child) is nn.Linear:
                    child.qconfig = per_channel_dynamic_qconfig  # type: ignore[assignment]
                    setattr(parent, name, Linear.from_float(child))
