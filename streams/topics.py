"""The topics of a deployment: their names and the configuration that each needs."""

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

TopicName = Annotated[str, Field(min_length=1, max_length=249, pattern=r"^[A-Za-z0-9._-]+$")]
Dialect = Literal["ga4", "segment", "metarank"]

# The largest event that `EventProducer` sends, with the 12 bytes that Kafka's own default adds for a batch's header.
EVENT_MAX_BYTES = 1024 * 1024 + 12
# A dead letter carries up to 1 MiB of refused bytes as base64, and its reason.
DEAD_LETTER_MAX_BYTES = 2 * 1024 * 1024
CREATE_COMMAND = "headwater topics create"
# For topics of any kind: `headwater topics create` does not create topics in other dialects.
MISSING_REMEDY = f"create it with `{CREATE_COMMAND}`, or, if it is in another dialect, have its producer create it"
CREATE_REMEDY = f"run `{CREATE_COMMAND}` as a user that may create topics"


class TopicNeeds(NamedTuple):
    """The configuration that a topic needs.

    Attributes:
        cleanup_policy: the value of `cleanup.policy`.
        max_message_bytes: the least value of `max.message.bytes`.
    """

    cleanup_policy: str
    max_message_bytes: int = EVENT_MAX_BYTES


# Events are deleted by retention. Compaction by user would keep only the last event of each user.
EVENTS = TopicNeeds("delete")
# Readers start from the first record, so the last record of each key must be kept for ever.
LATEST_OF_EACH_KEY = TopicNeeds("compact")
# The letter of a record that is rejected again replaces the first one.
LETTERS = TopicNeeds("compact,delete", DEAD_LETTER_MAX_BYTES)


class Topics(BaseModel):
    """The names of the topics.

    Attributes:
        dialects: further topics to read, and the dialect of their records; Headwater never creates them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    impressions: TopicName = "headwater.impressions"
    clicks: TopicName = "headwater.clicks"
    purchases: TopicName = "headwater.purchases"
    items: TopicName = "headwater.items"
    adapters: TopicName = "headwater.adapters"
    control: TopicName = "headwater.control"
    dead_letters: TopicName = "headwater.dead-letters"
    dialects: dict[TopicName, Dialect] = {}

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        if ours := sorted(set(self.dialects) & set(self.names())):
            raise ValueError(
                f"`dialects` must name topics of other producers, got {ours[0]!r}, which is a topic of our own"
            )
        return self

    @classmethod
    def under(cls, prefix: str) -> Self:
        """Return topics whose names begin with another prefix than `headwater`.

        >>> Topics.under("shop").dead_letters
        'shop.dead-letters'
        """
        return cls(**{name: f"{prefix}.{name.replace('_', '-')}" for name in cls.model_fields if name != "dialects"})

    def kind_of(self, topic: str) -> str | None:
        """Return the kind of event on a topic; None for a topic without our events.

        >>> Topics().kind_of("headwater.clicks")
        'click'
        """
        # Called for every record: frequent topics first, and no table to build.
        if topic == self.clicks:
            return "click"
        if topic == self.impressions:
            return "impression"
        if topic == self.purchases:
            return "purchase"
        return "item" if topic == self.items else None

    def of_kind(self, kind: str) -> str:
        """Return the topic of a kind of event.

        Raises:
            KeyError: if there is no such kind.
        """
        by_kind = {
            "impression": self.impressions,
            "click": self.clicks,
            "purchase": self.purchases,
            "item": self.items,
        }
        return by_kind[kind]

    def names(self) -> list[str]:
        """Return the names of all topics of our own."""
        return list(self.model_dump(exclude={"dialects"}).values())

    def needs(self) -> dict[str, TopicNeeds]:
        """Return the configuration that each topic of our own needs, for creation and checks."""
        return {
            **dict.fromkeys((self.impressions, self.clicks, self.purchases), EVENTS),
            **dict.fromkeys((self.items, self.adapters, self.control), LATEST_OF_EACH_KEY),
            self.dead_letters: LETTERS,
        }

    def catalogues(self) -> list[str]:
        """Return the topics that can contain items; the whole catalogue is in all of these together."""
        return [self.items, *(name for name, dialect in self.dialects.items() if dialect == "metarank")]
