"""Settings of the offline fit. Imports no torch."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class FitSettings(BaseModel):
    """Split of the data by time, and number of epochs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_percent: float = Field(default=70.0, gt=0, lt=100, description="share of the oldest events, which are learnt")
    validation_percent: float = Field(
        default=15.0,
        gt=0,
        lt=100,
        description="share of the events after them, which decide when to stop; the rest is the test",
    )
    max_epochs: int = Field(default=10, ge=1, description="largest number of epochs")
    patience: int = Field(
        default=2, ge=1, description="epochs without a better validation NDCG@20 before the fit stops"
    )
    batch_events: int = Field(default=128, ge=1, description="events per micro-batch")
    click_window_seconds: float = Field(default=600.0, gt=0, description="time after which a shown list is learnt")

    @model_validator(mode="after")
    def _leaves_a_test(self) -> Self:
        if self.train_percent + self.validation_percent >= 100:
            raise ValueError(
                "`train_percent` and `validation_percent` must leave something for the test, "
                f"got {self.train_percent:g} and {self.validation_percent:g}"
            )
        return self
