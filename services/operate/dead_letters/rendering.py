"""Rendering of dead letters as text. Their content is untrusted: no control character reaches the terminal."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from services.operate.dead_letters.letters import DeadLetterListing
from streams.dead_letters import DeadLetter

_HEADINGS = ("LETTER", "FIRST SEEN", "REASON", "BYTES", "PAYLOAD", "REPLAYED", "ERROR")
ERROR_CHARS = 100


def table(letters: Sequence[DeadLetter]) -> Iterator[str]:
    """Yield the lines of a table."""
    rows = [_HEADINGS, *map(_row, letters)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def counts(listing: DeadLetterListing) -> str:
    """Return the number of letters, in total and by reason."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in _largest_first(listing.by_reason))
    total = listing.by_reason.total()
    shown = f", {len(listing.letters)} of them shown" if len(listing.letters) < total else ""
    unreadable = f"; {listing.unreadable} records on the topic are not dead letters" if listing.unreadable else ""
    return f"{total} dead letters{shown}{': ' if reasons else ''}{reasons}{unreadable}"


def json_line(letter: DeadLetter) -> str:
    """Return a letter as one line of JSON, with its key and without its payload."""
    return json.dumps({"letter": letter.record_key()} | letter.model_dump(mode="json", exclude={"payload"}))


def whole(letter: DeadLetter) -> Iterator[str]:
    """Yield lines with all fields of one letter."""
    yield f"letter: {printable(letter.record_key())}"
    for name, value in letter.model_dump(mode="json", exclude={"key", "payload"}).items():
        yield f"{name}: {_moment(value) if name.endswith('_ts') else printable(str(value))}"
    yield f"key: {_text_or_base64(letter.original_key(), letter.key)}"
    yield f"payload: {_text_or_base64(letter.original(), letter.payload)}"


def printable(text: str) -> str:
    r"""Escape characters that are not printable, such as those that move the cursor or change colours.

    >>> print(printable("a\tb\x1b[31m"))
    a\tb\x1b[31m
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _largest_first(counted: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))


def _row(letter: DeadLetter) -> tuple[str, ...]:
    error = printable(letter.error)
    return (
        printable(letter.record_key()),
        _moment(letter.first_seen_ts),
        str(letter.reason),
        str(letter.payload_bytes),
        letter.payload_policy,
        _moment(letter.replayed_ts),
        error if len(error) <= ERROR_CHARS else f"{error[:ERROR_CHARS]}...",
    )


def _text_or_base64(value: bytes | None, base64: str | None) -> str:
    if value is None:
        return "none"
    try:
        lines = value.decode().split("\n")
    except UnicodeDecodeError:
        return f"(not text, base64) {base64}"
    return "\n".join(map(printable, lines))


def _moment(epoch_ms: int | None) -> str:
    if epoch_ms is None:
        return "-"
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
