"""Typed answers of the scorer's HTTP API, as `HeadwaterClient` returns them.

Fields that a newer scorer adds are ignored, so that a client may be older than the scorers it calls.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class RankedItem(_Answer):
    """One item of a ranking.

    Attributes:
        item_id: id of the item.
        score: the score that the list is sorted by, unless bids were given.
        click_probability: probability of a click if the item is shown first; None before lists were learnt.
        purchase_probability: probability of a purchase if the item is shown first; None before purchases were learnt.
        expected_value: bid times probability; None without bids.
    """

    item_id: str
    score: float
    click_probability: float | None = None
    purchase_probability: float | None = None
    expected_value: float | None = None


class Ranking(_Answer):
    """Items, best first.

    Attributes:
        adapter_version: version of the adapter that ranked them.
        scenario: scenario of that adapter.
        items: the ranked items.
        unknown_candidates: candidates that are not in the catalogue, blocked or removed; empty for a recommendation.
    """

    adapter_version: int
    scenario: str
    items: tuple[RankedItem, ...]
    unknown_candidates: tuple[str, ...] = ()

    @property
    def item_ids(self) -> list[str]:
        """Ids of the items, best first."""
        return [item.item_id for item in self.items]


class SearchHit(_Answer):
    """One item found by a search.

    Attributes:
        item_id: id of the item.
        score: fused rank of meaning, words and the shopper's own ranking; the list is sorted by it.
        similarity: cosine of the query and the item's text under the adapter.
        words: BM25 score of the query's words; 0 if the item has none of them.
        click_probability: probability of a click if the item is shown; None before lists were learnt.
        purchase_probability: probability of a purchase if the item is shown; None before purchases were learnt.
    """

    item_id: str
    score: float
    similarity: float
    words: float
    click_probability: float | None = None
    purchase_probability: float | None = None


class SearchResult(_Answer):
    """Items that fit a query, best first.

    Attributes:
        adapter_version: version of the adapter that encoded the query.
        scenario: scenario of that adapter.
        items: the items found.
    """

    adapter_version: int
    scenario: str
    items: tuple[SearchHit, ...]

    @property
    def item_ids(self) -> list[str]:
        """Ids of the items, best first."""
        return [item.item_id for item in self.items]


class HistoryShare(_Answer):
    """Contribution of one item of the shopper's history.

    Attributes:
        item_id: id of the item.
        sessions_ago: number of sessions since it; 0 is the current session.
        contribution: its part of the score.
        kinds: contribution by kind of evidence.
    """

    item_id: str
    sessions_ago: int
    contribution: float
    kinds: dict[str, float]


class ScoreBySource(_Answer):
    """A score by source; the parts sum to it.

    Attributes:
        popularity: part of the item's own counts.
        global_preference: part of the preferences that all shoppers share.
        query: part of the shopper's query.
        history: parts of items of the shopper's history, largest contribution first; `history=` limits their number.
        more_history: part of all further items of the history together.
    """

    popularity: float
    global_preference: float
    query: float
    history: tuple[HistoryShare, ...]
    more_history: float


class ExplainedItem(_Answer):
    """One score, split three ways into contributions that sum to it.

    Attributes:
        item_id: id of the item.
        score: the score, as `rank` returns it.
        sentence: the strongest reason, as a sentence for the shopper.
        features: contribution by feature.
        kinds: contribution by kind of evidence.
        sources: contribution by source: the item's own counts, the query, each item of the shopper's history.
    """

    item_id: str
    score: float
    sentence: str
    sources: ScoreBySource | None = None
    features: dict[str, float]
    kinds: dict[str, float]


class Explanation(_Answer):
    """Explained candidates, highest score first.

    Attributes:
        adapter_version: version of the adapter whose scores are explained.
        scenario: scenario of that adapter.
        items: the explained candidates.
        unknown_candidates: candidates that are not in the catalogue, blocked or removed.
    """

    adapter_version: int
    scenario: str
    items: tuple[ExplainedItem, ...]
    unknown_candidates: tuple[str, ...] = ()
