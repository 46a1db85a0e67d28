"""Settings of the guard."""

from pydantic import BaseModel, ConfigDict, Field


class GuardSettings(BaseModel):
    """The weight that a user or an item may have in training, and the limits beyond which it is quarantined."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user_batch_events: int = Field(
        default=128, ge=1, description="events of one user in a micro-batch; more share the weight of this many"
    )
    user_hour_events: int = Field(default=2_000, ge=1, description="events of one user that count in an hour")
    user_item_hour_events: int = Field(
        default=5, ge=1, description="events of one user with one item that count in an hour"
    )
    item_batch_events: int = Field(
        default=32,
        ge=1,
        description="events of one item in a micro-batch from users who do not vouch for it; more share the weight",
    )
    item_hour_events: int = Field(
        default=20,
        ge=1,
        description="events of one item that count in an hour from users who do not vouch for it, beside its share",
    )
    item_hour_share: float = Field(
        default=0.05, ge=0, le=1, description="share of the hour's events that such events of one item may have"
    )
    item_hour_factor: float = Field(
        default=10.0, ge=1, description="multiple of an item's usual share, and of an even share, that they may have"
    )
    vouch_events: int = Field(
        default=3, ge=1, description="events with other items that vouch for one event with an item"
    )
    burst_events: float = Field(
        default=2.0, ge=0, description="events of any item that count from users who do not vouch for it"
    )
    burst_factor: float = Field(
        default=3.0, ge=1, description="multiple of an item's share of attention that counts in addition"
    )
    memory_hours: float = Field(default=168.0, gt=0, description="half-life of all counts, in event time")
    user_quarantine_events: int = Field(
        default=100, ge=1, description="events of one user that were left out before the user is quarantined"
    )
    item_quarantine_events: int = Field(
        default=50, ge=1, description="least events of one item that were left out before the item is quarantined"
    )
    max_users: int = Field(default=10_000, ge=1, description="users that are remembered; the least recent go first")
    max_items: int = Field(default=10_000, ge=1, description="items that are remembered; the least recent go first")
    max_quarantined: int = Field(
        default=10_000, ge=1, description="users and items that stay in quarantine; the oldest go first"
    )
