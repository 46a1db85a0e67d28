"""Quantised residuals of a bundle: eight bits per number and a scale per row, for the rows that changed.

Rows are quantised by their absolute maximum (Dettmers et al. 2022, LLM.int8(), arXiv 2208.07339). A row is always
published whole and quantised from the learner's values, so errors do not accumulate from version to version.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from peft_adapters.errors import ModelValueError

_LARGEST = 127
_CHUNK = 16_384  # rows converted at a time; bounds the memory of full-precision copies


def quantise_rows(role: str, table: Tensor, rows: Collection[int]) -> dict[str, Tensor]:
    """Return the tensors of a bundle's group for some rows of a role's residuals.

    Args:
        role: role of the residuals, which prefixes the tensors' names.
        table: [items, dim] residuals of all items.
        rows: catalogue rows to quantise.
    """
    index = torch.tensor(sorted(rows), dtype=torch.int64)
    scales = torch.empty(len(index))
    values = torch.empty(len(index), table.shape[1], dtype=torch.int8)
    for start in range(0, len(index), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        values[chunk], scales[chunk] = _quantise(table[index[chunk]])
    return {f"{role}.rows": index.to(torch.int32), f"{role}.values": values, f"{role}.scales": scales}


def dequantise_rows(group: Mapping[str, Tensor], role: str) -> tuple[Tensor, Tensor]:
    """Return the rows [rows] of a role in a bundle's group, and their residuals [rows, dim].

    Raises:
        KeyError: the group has no residuals of this role.
        ModelValueError: rows, values and scales have different lengths.
    """
    rows, values, scales = (group[f"{role}.{name}"] for name in ("rows", "values", "scales"))
    if not len(rows) == len(values) == len(scales):
        raise ModelValueError(f"{role} residuals have {len(rows)} rows, {len(values)} values and {len(scales)} scales")
    return rows.long(), values.float() * scales.float()[:, None]


def row_norms(group: Mapping[str, Tensor], role: str) -> Tensor:
    """Return the norm [rows] of each row of a role in a bundle's group."""
    norms = [torch.linalg.vector_norm(part.float(), dim=1) for part in torch.split(group[f"{role}.values"], _CHUNK)]
    return torch.cat(norms) * group[f"{role}.scales"]


def _quantise(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 values [rows, dim] and scales [rows]; a row with a non-finite number has a non-finite scale."""
    scales = vectors.abs().amax(dim=1) / _LARGEST
    values = (vectors / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
    return values.nan_to_num(0.0, _LARGEST, -_LARGEST).to(torch.int8), scales
