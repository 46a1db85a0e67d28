"""Training examples: clicks and purchases, and the lists that shoppers were shown."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from streams.events import Click, Purchase


@dataclass(slots=True)  # not frozen: that would double the time to construct one
class Example:
    """A positive example: a user, an item, and what the user did with it."""

    event_id: str
    user_id: str
    session_id: str | None
    item_id: str
    ts: int  # epoch ms, event time
    kind: Literal["click", "purchase"]
    scenario: str
    position: int | None
    publish_ts_ms: int  # epoch ms, when the producer published it
    topic: str = ""
    weight: float = 1.0
    query: str | None = None  # the search query that led to the event
    shown: bool = False  # whether it was joined to an impression of this user
    left_out: str = ""  # outcome of an event that the guard left out: capped or quarantined


@dataclass(slots=True)
class ShownList:
    """An impression whose click window has passed, or a correction of one.

    Attributes:
        item_ids: the items that were shown and are in the catalogue.
        positions: the position of each item in the list, from 0.
        clicked: whether each item was clicked or bought before its negative was due.
        is_correction: whether this is a single item that was clicked or bought after it was learnt as a negative, or
            bought after it was learnt as clicked; `clicked` and `bought` say which of the two is new.
        bought: whether each item was bought before its negative was due; by default none was.
        query: the search query that the list answered, if any.
        left_out: the outcome of a list that the guard left out: capped or quarantined.
    """

    user_id: str
    session_id: str | None
    ts: int  # epoch ms, event time
    item_ids: tuple[str, ...]
    positions: tuple[int, ...]
    clicked: tuple[bool, ...]
    is_correction: bool = False
    topic: str = ""
    weight: float = 1.0
    bought: tuple[bool, ...] = ()
    query: str | None = None
    left_out: str = ""

    def __post_init__(self) -> None:
        """Set one flag per item."""
        self.bought = self.bought or (False,) * len(self.item_ids)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as checkpoints store them; their name for `is_correction` is `late`."""
        fields = asdict(self)
        return {"late" if name == "is_correction" else name: value for name, value in fields.items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ShownList":
        """Return the list that `to_json` stored; JSON has turned its tuples into lists."""
        tuples: dict[str, Any] = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        fields = fields | tuples
        return cls(is_correction=fields.pop("late"), **fields)


def example_of(event: Click | Purchase, *, publish_ts_ms: int, query: str | None = None) -> Example:
    """Return the example of a click or purchase alone, without a join to an impression.

    Args:
        event: the click or purchase.
        publish_ts_ms: when it was published, epoch milliseconds.
        query: the search query that led to it, if known.
    """
    return Example(
        event_id=event.event_id,
        user_id=event.user_id,
        session_id=event.session_id,
        item_id=event.item_id,
        ts=event.ts,
        kind="click" if isinstance(event, Click) else "purchase",
        scenario=event.scenario,
        position=event.position if isinstance(event, Click) else None,
        publish_ts_ms=publish_ts_ms,
        query=query,
    )
