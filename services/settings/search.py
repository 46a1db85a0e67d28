"""Settings of search. Imports no torch, so that the command line starts at once."""

from pydantic import BaseModel, ConfigDict, Field


class SearchSettings(BaseModel):
    """Candidates and ranking of search queries. docs/how-to/application/search.md explains the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidates: int = Field(
        default=200, ge=20, le=5_000, description="items retrieved by meaning, and as many by words, before ranking"
    )
    personal_weight: float = Field(
        default=0.25, ge=0, description="weight of the shopper's ranking; meaning has weight 1, words 2"
    )
    int8_queries: bool = Field(
        default=False,
        description="encode queries with 8-bit weights: faster and slightly less exact (guide to search)",
    )
    max_known_queries: int = Field(default=4_096, ge=1, description="encoded queries in memory, about 10 KiB each")
    graph_above_items: int = Field(
        default=50_000,
        ge=1,
        description="larger catalogues are searched with a graph index, which needs the extra `ann`",
    )
    confident_similarity: float = Field(
        default=0.38, ge=-1, le=1, description="cosine similarity of question and answer at which the confidence is 0.5"
    )
    min_confidence: float = Field(
        default=0.6, ge=0, le=1, description="lowest confidence at which /v1/answer gives an answer"
    )
