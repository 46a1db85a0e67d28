"""Which of the older versions stay, to go back to."""

from collections.abc import Mapping

_MINUTE_MS = 60_000


def first_of_each_minute(published_at_ms: Mapping[int, int], *, minutes: int) -> set[int]:
    """Versions that were the first in a minute, of so many minutes up to the newest.

    The choice stands while later versions come and others go.

    Args:
        published_at_ms: By version.
        minutes: How far back; 0 is not at all.

    >>> sorted(first_of_each_minute({1: 0, 2: 59_000, 3: 61_000, 4: 119_000, 5: 180_000}, minutes=2))
    [3, 5]
    """
    newest = max(published_at_ms.values(), default=0)
    first: dict[int, int] = {}
    for version, at_ms in sorted(published_at_ms.items()):
        if newest - at_ms < minutes * _MINUTE_MS:
            first.setdefault(at_ms // _MINUTE_MS, version)
    return set(first.values())
