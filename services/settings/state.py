"""Settings of shoppers' states. Free of anything heavy, so that the command line starts at once."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class StateSettings(BaseModel):
    """Where scorers have shoppers' states from, and how they are kept in Redis or Valkey."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["worker", "redis", "request"] = Field(
        default="worker",
        description="each worker's own reading of the log, what `headwater state-writer` keeps in Redis or Valkey, or "
        "what each request says of itself",
    )
    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"), description="redis:// or rediss:// (TLS), with user and password"
    )
    prefix: str = Field(default="headwater", min_length=1, description="all keys in Redis begin with it and a colon")
    timeout_seconds: float = Field(
        default=0.05, gt=0, description="a scorer waits no longer for Redis; it answers from what it has"
    )
    write_timeout_seconds: float = Field(default=5.0, gt=0, description="the writer waits so long")
    fallback_shoppers: int = Field(
        default=10_000, ge=1, description="shoppers seen last whose states a scorer keeps for when Redis is away"
    )
    keep_days: float = Field(default=90.0, gt=0, description="a shopper who did nothing for so long is dropped")
    look_back_events: int = Field(
        default=2_000_000, ge=0, description="newest clicks and purchases written to a Redis that holds nothing yet"
    )
    metrics_host: str = Field(default="127.0.0.1", description="of the writer's metrics page")
    metrics_port: int = Field(default=9109, ge=0, le=65_535, description="0 takes a free one")
