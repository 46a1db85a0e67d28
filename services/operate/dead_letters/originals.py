"""The refused record of a letter, read from the letter, or from the log while it is retained there."""

from dataclasses import dataclass
from functools import cached_property

from services.settings import Settings
from streams.dead_letters import DeadLetter, redact_letter
from streams.lookup import RecordLookup
from streams.privacy import Pseudonymiser, pseudonymiser


@dataclass(frozen=True, slots=True)
class Original:
    """A record as it was refused: key and value."""

    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class NotReplayable:
    """The reason why a record cannot be put back."""

    why: str


class Originals:
    """Reader of the refused records of letters.

    Args:
        settings: the settings with brokers, and the secret to compare redacted letters with the log.

    Raises:
        BrokerUnreachableError: no broker answers.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lookup = RecordLookup(settings.kafka)

    def of(self, letter: DeadLetter) -> Original | NotReplayable:
        """Return the record of a letter, or the reason why it cannot be put back.

        Everyone who can write to the topic can forge a letter, so no record is sent to a topic that carries no events,
        such as the adapters topic.

        Raises:
            BrokerUnreachableError: no broker answers.
            ConsumeError: the broker refuses the record.
        """
        topics = self._settings.topics
        if topics.kind_of(letter.topic) is None and letter.topic not in topics.dialects:
            return NotReplayable(f"topic {letter.topic!r} carries no events; send corrected ones with --mended")
        if letter.line is not None:
            return NotReplayable(
                "it is one line of a record whose other lines count already; send a corrected event with --mended"
            )
        if not self._lookup.has_topic(letter.topic):
            return NotReplayable(f"topic {letter.topic!r} does not exist")
        if letter.is_complete():
            original: Original | NotReplayable = Original(letter.original_key(), letter.original())
        else:
            original = self._from_log(letter)
        if isinstance(original, Original) and original.value is None:
            return NotReplayable("a record without a value is not an event; send a corrected one with --mended")
        return original

    def close(self) -> None:
        """Close the connection."""
        self._lookup.close()

    def _from_log(self, letter: DeadLetter) -> Original | NotReplayable:
        record = self._lookup.find(letter.topic, letter.partition, letter.offset)
        if record is None:
            return NotReplayable("the letter has no payload, and the log no longer has the record")
        original = Original(record.key, record.value)
        if len(original.value or b"") != letter.payload_bytes or not self._matches(letter, original):
            return NotReplayable("the letter has no payload, and the log has another record in its place")
        return original

    def _matches(self, letter: DeadLetter, original: Original) -> bool:
        """Return whether a record belongs to a letter. For a letter without a key, only the sizes are compared."""
        if letter.payload_policy == "drop":
            return True
        if letter.payload_policy == "keep":
            return letter.original_key() == original.key
        if self._pseudonymise is None:
            return True
        again = redact_letter(
            letter.with_record(original.key, original.value), self._settings.topics, self._pseudonymise
        )
        return (again.key, again.payload) == (letter.key, letter.payload or again.payload)

    @cached_property
    def _pseudonymise(self) -> Pseudonymiser | None:
        """The pseudonymiser; None if this machine does not have the secret, since a new secret would not match."""
        privacy = self._settings.privacy
        return pseudonymiser(privacy) if privacy.secret is not None or privacy.secret_file.exists() else None
