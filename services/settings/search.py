"""Settings of search. Free of torch, so that the command line starts at once."""

from pydantic import BaseModel, ConfigDict, Field


class SearchSettings(BaseModel):
    """How queries in words are answered. Where the defaults come from: docs/search.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidates: int = Field(
        default=200, ge=20, le=5_000, description="items taken by meaning, and as many by words, before they are ranked"
    )
    personal_weight: float = Field(
        default=0.25, ge=0, description="how much the shopper's ranking counts where meaning and words count 1 each"
    )
    int8_queries: bool = Field(
        default=False, description="encode queries on weights of 8 bits: faster, a little off; docs/search.md says how"
    )
    max_known_queries: int = Field(default=4_096, ge=1, description="queries kept encoded, at some 10 KiB each")
    graph_above_items: int = Field(
        default=50_000, ge=1, description="larger catalogues are searched through a graph, with the extra `ann`"
    )
    confident_similarity: float = Field(
        default=0.38, ge=-1, le=1, description="cosine of question and answer at which an answer's confidence is 0.5"
    )
    min_confidence: float = Field(
        default=0.6, ge=0, le=1, description="/v1/answer says that it does not know below this confidence"
    )
