"""Points in time on a command line: RFC 3339, or a duration before now."""

import re
import time
from datetime import datetime

from streams.events import TIMESTAMP_PATTERN

# The same texts as a pattern of JSON Schema, for fields of HTTP calls.
MOMENT_OR_AGO = rf"^[0-9]{{1,9}}[smhd]$|{TIMESTAMP_PATTERN}"

_UNITS_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def moment_ms(text: str) -> int:
    """Parse an RFC 3339 time or a duration before now, and return epoch milliseconds.

    Args:
        text: the time, such as `2026-01-31T09:00:00Z`, `30m`, `2h` or `3d`.

    Raises:
        ValueError: the text is neither.

    >>> moment_ms("1970-01-01T00:00:02Z")
    2000
    """
    if ago := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
        return time.time_ns() // 1_000_000 - int(ago[1]) * _UNITS_SECONDS[ago[2]] * 1_000
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        parsed = None
    if parsed is None or parsed.tzinfo is None:
        raise ValueError(
            f"a time must be RFC 3339 with its UTC offset, or how long ago, got {text!r}; "
            "for example 2026-01-31T09:00:00Z or 2h"
        )
    return round(parsed.timestamp() * 1_000)
