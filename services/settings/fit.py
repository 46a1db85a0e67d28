"""Settings of the offline fit. Free of torch."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class FitSettings(BaseModel):
    """How the data is split by time, and how long is learnt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_percent: float = Field(default=70.0, gt=0, lt=100, description="the oldest events; epochs go over them")
    validation_percent: float = Field(
        default=15.0, gt=0, lt=100, description="the events after them; they say when to stop. What is left is the test"
    )
    max_epochs: int = Field(default=10, ge=1)
    patience: int = Field(default=2, ge=1, description="epochs without a better validation NDCG@20 before it stops")
    batch_events: int = Field(default=128, ge=1, description="events per micro-batch")
    click_window_seconds: float = Field(default=600.0, gt=0, description="when a shown list is learnt")

    @model_validator(mode="after")
    def _leaves_a_test(self) -> Self:
        if self.train_percent + self.validation_percent >= 100:
            raise ValueError(
                "`train_percent` and `validation_percent` must leave something for the test, "
                f"got {self.train_percent:g} and {self.validation_percent:g}"
            )
        return self
