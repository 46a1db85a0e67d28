"""Settings of the updater. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from peft_adapters.registry.retention import Retention
from services.settings.registry import DEFAULT_REGISTRY_URL


class UpdaterSettings(BaseModel):
    """Micro-batches, checkpoints and publications of the updater."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint_dir: Path = Path(".headwater/checkpoints")
    start_from: Path | None = Field(
        default=None,
        description="directory written by `headwater fit`, or a full bundle; used if there is no checkpoint",
    )
    registry_url: str = Field(
        default=DEFAULT_REGISTRY_URL, description="registry to publish to: a directory or any fsspec address"
    )
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=9108, ge=0, le=65_535, description="port of the metrics page; 0 takes a free one")
    max_events: int | None = Field(
        default=None, ge=1, description="number of learnt events after which the updater stops; None never stops"
    )
    batch_events: int = Field(default=256, ge=1, description="clicks and purchases at which a micro-batch closes")
    batch_seconds: float = Field(default=0.25, gt=0, description="longest wait of the first event of a micro-batch")
    batch_bytes: int = Field(
        default=1 << 20, ge=1, description="size at which a micro-batch closes, including impressions and items"
    )
    late_seconds: float = Field(
        default=1.0,
        gt=0,
        description="age of events from which on learning lags: LoRA then learns from one slice in four",
    )
    checkpoint_seconds: float = Field(
        default=5.0, ge=0, description="shortest time between two checkpoints; a restart repeats what was learnt since"
    )
    publish_seconds: float = Field(default=0.5, ge=0, description="shortest time between two publications")
    publish_share: float = Field(
        default=0.35,
        gt=0,
        le=1,
        description="largest share of the time spent on publications; slow ones are spaced further apart",
    )
    snapshot_every: int = Field(
        default=20, ge=1, description="versions between two full bundles; the others are deltas"
    )
    keep_versions: int = Field(
        default=240, ge=1, description="newest versions that are all kept, with the versions they build on"
    )
    keep_minutes: int = Field(
        default=60, ge=0, description="minutes for which the first full version of each minute is kept"
    )
    keep_hours: int = Field(default=72, ge=0, description="hours for which the first full version of each hour is kept")
    keep_bytes: int = Field(
        default=2 * 2**30,
        ge=1,
        description="total size of kept versions; the oldest are deleted first, but never the newest version, versions "
        "named by the rollout, and the versions they build on",
    )
    keep_checkpoints: int = Field(
        default=2,
        ge=2,
        description="checkpoints kept; a start falls back to an older one if the newest is damaged",
    )
    click_window_seconds: float = Field(
        default=600.0, gt=0, description="event time after which a shown and not clicked item becomes a negative"
    )
    purchase_window_seconds: float = Field(
        default=86_400.0, gt=0, description="event time during which a click or purchase still corrects a negative"
    )
    idle_seconds: float = Field(
        default=60.0,
        gt=0,
        description="time after which a partition that is silent, or "
        "whose events are older, no longer holds windows open",
    )
    max_impressions: int = Field(
        default=2_000_000, ge=1, description="impressions kept on disk until their windows close"
    )
    hold_seconds: float = Field(default=3_600.0, gt=0, description="event time that an event waits for an unknown item")
    dedupe_horizon: int = Field(default=400_000, ge=1, description="event ids remembered to detect duplicates")
    torch_threads: int = Field(default=1, ge=1, description="threads of one torch operation")

    @property
    def retention(self) -> Retention:
        """Return the rule for keeping published versions."""
        return Retention(
            versions=self.keep_versions, minutes=self.keep_minutes, hours=self.keep_hours, size_bytes=self.keep_bytes
        )
