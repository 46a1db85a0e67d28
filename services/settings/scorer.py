"""Settings of the scorer. Imports no torch, so that the command line starts at once."""

from pydantic import BaseModel, ConfigDict, Field

from services.settings.blocklist import Blocklist
from services.settings.origins import Origins
from services.settings.registry import DEFAULT_REGISTRY_URL
from streams.events import Scenario


class CanarySettings(BaseModel):
    """Statistical test that ends a worse canary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    significance: float = Field(
        default=0.01, gt=0, lt=1, description="probability of ending a canary that is not worse"
    )
    effect: float = Field(
        default=0.1, gt=0, lt=1, description="relative loss of click-through that the test detects soonest"
    )
    min_shoppers: int = Field(default=100, ge=2, description="shoppers of each arm before the test may end a canary")
    max_shoppers: int = Field(
        default=100_000, ge=2, description="distinct shoppers counted in each arm; further ones are ignored"
    )


class ScorerSettings(BaseModel):
    """Address, registry and limits of a scoring worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    registry_url: str = Field(
        default=DEFAULT_REGISTRY_URL,
        min_length=1,
        description="registry to load adapters from: a path, any fsspec address, or a registry process's /v1/files",
    )
    state_look_back_events: int = Field(
        default=200_000,
        ge=0,
        description="newest clicks and purchases that shoppers' states are built from at the start",
    )
    max_shoppers: int = Field(
        default=200_000, ge=1, description="shoppers' states in memory; the least recently seen are dropped first"
    )
    items_refresh_seconds: float = Field(
        default=2.0, gt=0, description="shortest time between two updates of the catalogue between adapters"
    )
    registry_poll_seconds: float = Field(
        default=0.5,
        gt=0,
        description="interval between polls of a registry of files; a registry process sends changes itself",
    )
    kept_rows: int = Field(
        default=20_000,
        ge=0,
        description="rows of earlier versions kept in memory for each scenario, for instant rollbacks",
    )
    kept_texts_bytes: int = Field(
        default=128 * 2**20,
        ge=0,
        description="bytes of text vectors of earlier adapters kept on the temporary disk, so that a rollback encodes "
        "no text; 15 MB per adapter for a catalogue of 10,000 items",
    )
    pinned_scenarios: tuple[Scenario, ...] = Field(
        default=(),
        description="scenarios loaded at the start besides `scenario`; others are loaded at their first request",
    )
    max_scenarios: int = Field(
        default=4, ge=1, description="scenarios in memory; the least recently used one that is not pinned is replaced"
    )
    canary: CanarySettings = CanarySettings()
    max_candidates: int = Field(default=1_000, ge=1, description="largest number of candidates in one /v1/rank request")
    max_k: int = Field(default=200, ge=20, description="largest number of items in one list; the default of `k` is 20")
    max_batch_requests: int = Field(default=16, ge=1, description="largest number of requests in one /v1/batch request")
    blocklist: Blocklist = Blocklist()
    max_body_bytes: int = Field(
        default=1_048_576,
        ge=1_024,
        description="largest request body, as sent or decompressed; larger ones are answered 413",
    )
    cors_origins: Origins = ()
    max_hidden_bytes: int = Field(
        default=128 * 2**20,
        ge=0,
        description="bytes of text activations in memory; those of a larger catalogue are read from the encoder's "
        "cache when a new adapter changes the text vectors",
    )
    answer_threads: int = Field(
        default=4, ge=1, description="long answers computed at a time; others wait in order of arrival"
    )
    torch_threads: int = Field(
        default=1, ge=1, description="threads of one torch operation; scale with more workers instead"
    )
