"""Settings of shoppers' states. Imports nothing heavy, so that the command line starts at once."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class StateSettings(BaseModel):
    """Source of shoppers' states, and their storage in Redis or Valkey."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["worker", "redis", "request"] = Field(
        default="worker",
        description="source of shoppers' states: `worker` reads the log in each worker, `redis` reads what `headwater "
        "state-writer` stores in Redis or Valkey, `request` takes them from each request",
    )
    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"),
        description="address of Redis: redis:// or rediss:// (TLS), with user and password",
    )
    prefix: str = Field(
        default="headwater", min_length=1, description="prefix of all keys in Redis, followed by a colon"
    )
    timeout_seconds: float = Field(
        default=0.05,
        gt=0,
        description="longest wait of a scorer for Redis; after it, the scorer answers from its fallback",
    )
    write_timeout_seconds: float = Field(default=5.0, gt=0, description="longest wait of the writer for Redis")
    fallback_shoppers: int = Field(
        default=10_000,
        ge=1,
        description="most recently seen shoppers whose states a scorer keeps for times without Redis",
    )
    keep_days: float = Field(
        default=90.0, gt=0, description="days without an event after which a shopper's state is deleted"
    )
    look_back_events: int = Field(
        default=2_000_000, ge=0, description="newest clicks and purchases written to an empty Redis"
    )
    metrics_host: str = Field(default="127.0.0.1", description="address of the writer's metrics page")
    metrics_port: int = Field(
        default=9109, ge=0, le=65_535, description="port of the writer's metrics page; 0 takes a free one"
    )
