"""Request and response bodies of search and answer."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from services.scorer.requests import Count, EmptyBecause, RecommendRequest, Words
from streams.events import Scenario

Similarity = Annotated[float, Field(description="cosine of the query and the item's text, under the adapter")]


class SearchRequest(RecommendRequest):
    """A search for items, by a shopper in a session."""

    query: Words = Field(description="the query of the shopper, in words")


class AnswerRequest(BaseModel):
    """A question that an item of kind `answer` may answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario: Scenario | None = Field(default=None, description="the scenario; without it, the worker's default")
    question: Words = Field(description="the question of the shopper")
    k: Count = Field(default=3, description="the number of answers to return")


class FoundItem(BaseModel):
    """An item of a search.

    Attributes:
        score: the score that orders the items: ranks by meaning, by words and by the shopper's own ranking, fused.
        words: BM25 of the query's words; 0 if the item has none of them.
        click_probability: the probability of a click if the item is shown; present once lists are learnt.
        purchase_probability: the probability of a purchase; present once purchases in lists are learnt.
    """

    model_config = ConfigDict(frozen=True)

    item_id: str
    score: float
    similarity: Similarity
    words: float
    click_probability: float | None = None
    purchase_probability: float | None = None


class SearchAnswer(BaseModel):
    """Items for a query, best first. A query always finds the nearest items, if any may be listed."""

    model_config = ConfigDict(frozen=True)

    adapter_version: int
    scenario: str
    items: list[FoundItem]
    empty_because: EmptyBecause | None = Field(
        default=None,
        description="present without items: there is none in the catalogue yet (`no_items`), all are blocked or "
        "removed (`none_available`), none meets `filters`, or `exclude` or `exclude_bought` leaves out all that do",
    )


class KnownAnswer(BaseModel):
    """An item of kind `answer`."""

    model_config = ConfigDict(frozen=True)

    item_id: str
    text: str
    similarity: Similarity


class QuestionAnswer(BaseModel):
    """The nearest answers to a question, and the confidence that the first one answers it."""

    model_config = ConfigDict(frozen=True)

    adapter_version: int
    scenario: str
    known: bool = Field(description="false: none of the answers is likely to answer the question; tell the shopper so")
    confidence: float = Field(ge=0, le=1, description="probability that the first answer answers the question")
    answers: list[KnownAnswer]
