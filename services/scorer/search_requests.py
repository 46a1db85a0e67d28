"""What may be asked in words, and what is said to it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from services.scorer.requests import Count, RecommendRequest, Words
from streams.events import Scenario

Similarity = Annotated[float, Field(description="cosine of the query and the item's text, under the adapter")]


class SearchRequest(RecommendRequest):
    """The items that fit a query best, for a shopper and a session."""

    query: Words = Field(description="what the shopper looks for, in words")


class AnswerRequest(BaseModel):
    """A question that an item of kind `answer` may answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scenario: Scenario | None = Field(default=None, description="which ranking; the worker's, if it is not given")
    question: Words = Field(description="what the shopper wants to know")
    k: Count = Field(default=3, description="how many answers are told")


class FoundItem(BaseModel):
    """An item of a search.

    Attributes:
        score: What items are in order by: ranks by meaning, by words and by the shopper's own ranking, fused.
        words: BM25 of the query's words; 0 where the item has none of them.
        click_probability: That it is clicked if it is shown; once lists were learnt.
        purchase_probability: That it is bought if it is shown; once purchases in lists were learnt.
    """

    model_config = ConfigDict(frozen=True)

    item_id: str
    score: float
    similarity: Similarity
    words: float
    click_probability: float | None = None
    purchase_probability: float | None = None


class SearchAnswer(BaseModel):
    """Items for a query, the best first."""

    model_config = ConfigDict(frozen=True)

    adapter_version: int
    scenario: str
    items: list[FoundItem]


class KnownAnswer(BaseModel):
    """An item of kind `answer`."""

    model_config = ConfigDict(frozen=True)

    item_id: str
    text: str
    similarity: Similarity


class Answered(BaseModel):
    """Whether there is an answer, how sure that is, and the answers that come nearest."""

    model_config = ConfigDict(frozen=True)

    adapter_version: int
    scenario: str
    known: bool = Field(description="false: none of the answers is likely to answer the question; say so")
    confidence: float = Field(ge=0, le=1, description="how likely the first answer answers the question")
    answers: list[KnownAnswer]
