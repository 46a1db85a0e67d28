"""Settings of the updater. Free of torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from peft_adapters.registry.retention import Retention
from services.settings.registry import DEFAULT_REGISTRY_URL


class UpdaterSettings(BaseModel):
    """When a batch closes, when an adapter is published, and where things are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint_dir: Path = Path(".headwater/checkpoints")
    start_from: Path | None = Field(
        default=None, description="a directory of `headwater fit`, or a full bundle; used while there is no checkpoint"
    )
    registry_url: str = Field(default=DEFAULT_REGISTRY_URL, description="a directory or any fsspec address")
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=9108, ge=0, le=65_535, description="0 takes a free one")
    max_events: int | None = Field(default=None, ge=1, description="stop once so many are learnt; None never stops")
    batch_events: int = Field(default=256, ge=1, description="a micro-batch closes at this many clicks and purchases")
    batch_seconds: float = Field(default=0.25, gt=0, description="or when its first event has waited this long")
    batch_bytes: int = Field(default=1 << 20, ge=1, description="or at this size, impressions and items included")
    late_seconds: float = Field(
        default=1.0, gt=0, description="while events are older when learnt, LoRA learns from one slice in four"
    )
    checkpoint_seconds: float = Field(
        default=5.0, ge=0, description="shortest time from one to the next; a restart repeats what was learnt since"
    )
    publish_seconds: float = Field(default=0.5, ge=0, description="shortest time from one publication to the next")
    publish_share: float = Field(
        default=0.35, gt=0, le=1, description="of the time at most goes to publications: what they cost spaces them"
    )
    snapshot_every: int = Field(default=20, ge=1, description="versions from one full bundle to the next")
    keep_versions: int = Field(default=240, ge=1, description="newest versions that are all kept, with their chains")
    keep_minutes: int = Field(
        default=60, ge=0, description="of older full versions, the first of each minute is kept for so many minutes"
    )
    keep_hours: int = Field(
        default=72, ge=0, description="of older full versions, the first of each hour is kept for so many hours"
    )
    keep_bytes: int = Field(
        default=2 * 2**30,
        ge=1,
        description="size of all kept versions together; the oldest are deleted first, but never the newest version, "
        "one that the rollout names, or what these build on",
    )
    keep_checkpoints: int = Field(
        default=2,
        ge=2,
        description="older ones are deleted; a start falls back to an older one if the newest is damaged",
    )
    click_window_seconds: float = Field(
        default=600.0, gt=0, description="event time after which what was shown and not clicked is a negative"
    )
    purchase_window_seconds: float = Field(
        default=86_400.0, gt=0, description="event time for which a click or purchase may still correct that"
    )
    idle_seconds: float = Field(
        default=60.0, gt=0, description="after so long in the log's time a silent partition holds no window open"
    )
    max_impressions: int = Field(default=2_000_000, ge=1, description="kept, on disk, until their windows close")
    hold_seconds: float = Field(default=3_600.0, gt=0, description="event time an event waits for an unknown item")
    dedupe_horizon: int = Field(default=400_000, ge=1, description="event ids remembered")
    torch_threads: int = Field(default=1, ge=1, description="cores a learning step may use")

    @property
    def retention(self) -> Retention:
        """Which published versions are kept."""
        return Retention(
            versions=self.keep_versions, minutes=self.keep_minutes, hours=self.keep_hours, size_bytes=self.keep_bytes
        )
