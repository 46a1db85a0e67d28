"""Residuals as bundles have them: eight bits a number and a scale a row, of the rows that moved.

Row-wise absmax rounding (Dettmers et al. 2022, LLM.int8(), arXiv 2208.07339). A row is always sent whole and rounded
from what the learner has, so that errors do not add up from version to version.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

_LARGEST = 127
_CHUNK = 16_384  # rows at a time: of a large catalogue not all are held in full once more


def quantise_rows(role: str, table: Tensor, rows: Collection[int]) -> dict[str, Tensor]:
    """Some rows of a role's residuals, as a bundle's group holds them.

    Args:
        role: of which.
        table: [items, dim] all of them.
        rows: which.
    """
    index = torch.tensor(sorted(rows), dtype=torch.int64)
    scales = torch.empty(len(index))
    values = torch.empty(len(index), table.shape[1], dtype=torch.int8)
    for start in range(0, len(index), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        values[chunk], scales[chunk] = _rounded(table[index[chunk]])
    return {f"{role}.rows": index.to(torch.int32), f"{role}.values": values, f"{role}.scales": scales}


def dequantise_rows(group: Mapping[str, Tensor], role: str) -> tuple[Tensor, Tensor]:
    """Rows [rows] of a role in a bundle's group, and their residuals [rows, dim].

    Raises:
        KeyError: the group has none of this role.
        ValueError: its parts are not of one length.
    """
    rows, values, scales = (group[f"{role}.{name}"] for name in ("rows", "values", "scales"))
    if not len(rows) == len(values) == len(scales):
        raise ValueError(f"{role} residuals have {len(rows)} rows, {len(values)} values and {len(scales)} scales")
    return rows.long(), values.float() * scales.float()[:, None]


def row_norms(group: Mapping[str, Tensor], role: str) -> Tensor:
    """Norm of each row [rows] of a role in a bundle's group."""
    norms = [torch.linalg.vector_norm(part.float(), dim=1) for part in torch.split(group[f"{role}.values"], _CHUNK)]
    return torch.cat(norms) * group[f"{role}.scales"]


def _rounded(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Values [rows, dim] and scales [rows]; a scale is not finite where a number of its row is not."""
    scales = vectors.abs().amax(dim=1) / _LARGEST
    values = (vectors / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round()
    return values.nan_to_num(0.0, _LARGEST, -_LARGEST).to(torch.int8), scales
