"""Judged queries: search queries with graded items, which are never learnt and which tell how well searches rank."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from services.data.files import InputError, open_text
from services.data.rows import RefusedRows, table_rows
from services.lab.offline.judging import CUTOFF, Floats
from streams.events import normalize_query, parse_number

_COLUMNS = ("query", "item_id", "relevance")


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query with its relevant items.

    Attributes:
        query: the query as `normalize_query` returns it.
        relevance: relevance of each relevant item by its id, above 0.
    """

    query: str
    relevance: dict[str, float]


@dataclass(slots=True)
class QueryRanks:
    """Figures of judged queries by one published state, one value per query in the order of the file.

    Attributes:
        events: number of the stream's clicks and purchases replayed before.
        ndcg: NDCG@20 of each query.
        recall: share of each query's relevant items that are among the first 20.
    """

    events: int
    ndcg: array[float] = field(default_factory=lambda: array("f"))
    recall: array[float] = field(default_factory=lambda: array("f"))

    def add(self, scores: Tensor, relevance: Sequence[tuple[Sequence[int], Sequence[float]]]) -> None:
        """Judge queries.

        Args:
            scores: [queries, catalogue] scores of the published state; ties count against the relevant items.
            relevance: rows of each query's relevant items, and the relevance of each.
        """
        for of_query, (rows, gains) in zip(scores, relevance, strict=True):
            ndcg, recall = _figures(of_query, np.array(rows), np.array(gains))
            self.ndcg.append(ndcg)
            self.recall.append(recall)

    def figures(self) -> Floats:
        """Return NDCG@20 and recall@20 of each query, [2, queries]."""
        return np.array([self.ndcg, self.recall], dtype=np.float64)


def read_judged_queries(path: Path, known: set[str], *, refused: RefusedRows | None = None) -> list[JudgedQuery]:
    """Return the queries of a file with columns `query, item_id, relevance`, in order of their first row.

    The relevance is the gain of an item in NDCG; an item of relevance 0 is not relevant, as are all items without a
    row. Queries without a relevant item are left out, because no ranking can be better than another for them.

    Args:
        path: file of the judgments, plain or gzipped.
        known: ids of the catalogue's items.
        refused: collects the rows that are not valid; without it the first one is an error.

    Raises:
        InputError: the file cannot be read, or has no query with a relevant item.
    """
    refused = refused or RefusedRows()
    judged: dict[str, dict[str, float]] = {}
    with open_text(path) as text:
        for row in table_rows(text, path, required=_COLUMNS, known=_COLUMNS):
            try:
                query, item_id, relevance = _judgment(row.cells, row.fault, known)
            except ValueError as error:
                refused.refuse(f"{path}, row {row.number}: {error} (line {row.line})")
                continue
            judged.setdefault(query, {})[item_id] = relevance
    queries = [
        JudgedQuery(query, {item_id: gain for item_id, gain in of_query.items() if gain > 0})
        for query, of_query in judged.items()
    ]
    relevant = [query for query in queries if query.relevance]
    if not relevant:
        raise InputError(f"{path}: expected queries with an item of relevance above 0, found none")
    return relevant


def _judgment(cells: dict[str, str], fault: str | None, known: set[str]) -> tuple[str, str, float]:
    """Return query, item and relevance of a row.

    Raises:
        ValueError: a cell breaks a rule.
    """
    if fault is not None:
        raise ValueError(fault)
    query, relevance = normalize_query(cells["query"]), parse_number(cells["relevance"])
    if query is None:
        raise ValueError("`query` must not be empty")
    if relevance is None or relevance < 0:
        raise ValueError(f"`relevance` must be a number, 0 or more, got {cells['relevance'][:40]!r}")
    if cells["item_id"] not in known:
        raise ValueError(f"item {cells['item_id'][:40]!r} is not in the catalogue; add it to the items")
    return query, cells["item_id"], float(relevance)


def _figures(scores: Tensor, rows: np.ndarray, gains: np.ndarray) -> tuple[float, float]:
    """Return NDCG@20 (Järvelin & Kekäläinen 2002, gains not exponentiated) and recall@20 of one query.

    Args:
        scores: [catalogue] scores of the query.
        rows: [relevant] catalogue rows of the relevant items.
        gains: [relevant] relevance of each, above 0.

    >>> ndcg, recall = _figures(torch.tensor([0.5, 0.9, 0.1]), np.array([0, 1]), np.array([2.0, 1.0]))
    >>> round(ndcg, 4), recall
    (0.8597, 1.0)
    """
    target = scores[torch.from_numpy(rows)]
    # Ties count against an item, and so does a score that is not a number; relevant items of one score share places.
    rank = len(scores) - (scores[None] < target[:, None]).sum(dim=1).numpy()
    order = np.argsort(rank, kind="stable")
    rank, gains = rank[order], gains[order]
    found = rank <= CUTOFF
    best = np.sort(gains)[::-1][:CUTOFF]
    ideal = (best / np.log2(np.arange(len(best)) + 2.0)).sum()
    return float((gains[found] / np.log2(rank[found] + 1.0)).sum() / ideal), float(found.mean())
