"""What a user or an item may weigh in what is learnt."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from streams.joiner import Example, ShownList


class GuardSettings(BaseModel):
    """Caps on users and items."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Guard:
    """Weighs what is learnt, by user and by item."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings

    def weigh(self, examples: Sequence[Example]) -> list[Example]:
        """Weights of a slice's positives."""
        return list(examples)

    def weigh_lists(self, lists: Sequence[ShownList]) -> list[ShownList]:
        """Weights of a slice's lists."""
        return list(lists)

    def release(self, key: str) -> None:
        """Let a user or an item out of quarantine."""

    def forget(self, user: str) -> None:
        """Forget a user."""

    def newly_quarantined(self) -> list[Any]:
        """What went into quarantine since the last call."""
        return []

    def state(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave."""
