"""Settings of the scorer. Free of torch, so that the command line starts at once."""

from pydantic import BaseModel, ConfigDict, Field

from services.settings.blocklist import Blocklist
from services.settings.origins import Origins
from services.settings.registry import DEFAULT_REGISTRY_URL
from streams.events import Scenario


class CanarySettings(BaseModel):
    """When a canary is known to be worse."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    significance: float = Field(default=0.01, gt=0, lt=1, description="chance of ending a canary that is no worse")
    effect: float = Field(
        default=0.1, gt=0, lt=1, description="relative loss of click-through that the test is quickest to find"
    )
    min_shoppers: int = Field(default=100, ge=2, description="of each arm; with fewer nothing is judged")
    max_shoppers: int = Field(default=100_000, ge=2, description="told apart in each arm; others do not count")


class ScorerSettings(BaseModel):
    """Where a scorer answers, what from, and how much one request may ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    registry_url: str = Field(
        default=DEFAULT_REGISTRY_URL,
        min_length=1,
        description="a path, any fsspec address, or a registry process's /v1/files",
    )
    state_look_back_events: int = Field(
        default=200_000, ge=0, description="newest clicks and purchases that shoppers' states are made from at start"
    )
    max_shoppers: int = Field(default=200_000, ge=1, description="states held; the least recently seen go first")
    items_refresh_seconds: float = Field(
        default=2.0, gt=0, description="new and changed items become rankable at most so often between adapters"
    )
    registry_poll_seconds: float = Field(
        default=0.5, gt=0, description="between two looks at a registry of files; a registry process is waited on"
    )
    kept_rows: int = Field(
        default=20_000,
        ge=0,
        description="rows of former versions kept in memory, by scenario, so that going back is a flip",
    )
    kept_texts_bytes: int = Field(
        default=128 * 2**20,
        ge=0,
        description="vectors of texts under former adapters kept on the temporary disk, so that going back encodes "
        "none; a catalogue of 10,000 items has 15 MB an adapter",
    )
    pinned_scenarios: tuple[Scenario, ...] = Field(
        default=(), description="loaded at the start beside `scenario`; others are loaded when a request names them"
    )
    max_scenarios: int = Field(
        default=4, ge=1, description="scenarios in memory; the longest unasked that is not pinned goes for another"
    )
    canary: CanarySettings = CanarySettings()
    max_candidates: int = Field(default=1_000, ge=1, description="candidates of one /v1/rank")
    max_k: int = Field(default=200, ge=20, description="items of one list; 20 are given when no `k` is")
    max_batch_requests: int = Field(default=16, ge=1, description="requests of one /v1/batch")
    blocklist: Blocklist = Blocklist()
    max_body_bytes: int = Field(
        default=1_048_576, ge=1_024, description="larger requests, as sent or unpacked, are answered 413"
    )
    cors_origins: Origins = ()
    max_hidden_bytes: int = Field(
        default=128 * 2**20,
        ge=0,
        description="activations of texts held in memory; of a larger catalogue the others are read from the encoder's "
        "cache when an adapter changes what texts say",
    )
    answer_threads: int = Field(
        default=4, ge=1, description="longer answers under way at a time; the others wait in order of arrival"
    )
    torch_threads: int = Field(default=1, ge=1, description="of one torch operation; scale by more workers instead")
