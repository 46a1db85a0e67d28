"""Retention: which published versions of a scenario are kept.

Three windows count back from the newest version: the newest `versions` of any kind; of older full versions, the first
of each minute for `minutes` minutes, and the first of each hour for `hours` hours. Each version is kept with the
versions that it builds on. If all of that is larger than `size_bytes`, the oldest are removed first. The newest version
and those that a rollout names are always kept, with their chains.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """The fields of a manifest that retention depends on.

    Attributes:
        builds_on: Version that a delta builds on; None of a full version.
        published_at_ms: Time of publication, epoch milliseconds.
        size_bytes: Size of all its files.
    """

    builds_on: int | None
    published_at_ms: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Retention:
    """How many versions are kept, how far back, and how large they may be together.

    Attributes:
        versions: Number of newest versions that are all kept.
        minutes: Of older full versions, the first of each minute is kept for so many minutes.
        hours: Of older full versions, the first of each hour is kept for so many hours.
        size_bytes: Bound on the size of all kept versions; None sets no bound.
    """

    versions: int
    minutes: int = 0
    hours: int = 0
    size_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check the bounds."""
        if self.versions < 1:
            raise ValueError(
                f"`versions` must be at least 1, got {self.versions}; the latest version is what scorers start from"
            )

    def select(self, published: Mapping[int, PublishedVersion], *, named: Iterable[int] = ()) -> set[int]:
        """Choose the versions to keep.

        The choice is stable: a version that is passed over once is not chosen later, while newer versions come.

        Args:
            published: All versions whose manifests can be read.
            named: Versions that the rollout names.

        >>> minute = 60_000
        >>> published = {n: PublishedVersion(None, n * minute // 2, 10) for n in range(8)}
        >>> sorted(Retention(versions=1, minutes=3).select(published))
        [2, 4, 6, 7]
        >>> sorted(Retention(versions=1, minutes=3, size_bytes=30).select(published))
        [4, 6, 7]
        """
        if not published:
            return set()
        newest_first = sorted(published, reverse=True)
        kept = {link for version in {newest_first[0], *named} for link in _chain(published, version)}
        size_bytes = sum(published[version].size_bytes for version in kept)
        for version in sorted({*newest_first[: self.versions], *self._spaced(published)}, reverse=True):
            added = set(_chain(published, version)) - kept
            size_bytes += sum(published[link].size_bytes for link in added)
            if self.size_bytes is not None and size_bytes > self.size_bytes:
                break
            kept |= added
        return kept

    def _spaced(self, published: Mapping[int, PublishedVersion]) -> set[int]:
        """The first full version of each minute and of each hour, as far back as the two windows reach."""
        found: set[int] = set()
        newest_ms = published[max(published)].published_at_ms
        for bucket_ms, buckets in ((_MINUTE_MS, self.minutes), (_HOUR_MS, self.hours)):
            first: dict[int, int] = {}
            for version, own in sorted(published.items(), key=lambda pair: pair[0]):
                if own.builds_on is None:
                    first.setdefault(own.published_at_ms // bucket_ms, version)
            found |= {
                version
                for version in first.values()
                if newest_ms - published[version].published_at_ms < buckets * bucket_ms
            }
        return found


def _chain(published: Mapping[int, PublishedVersion], version: int | None) -> Iterator[int]:
    """A version and all that it builds on, as far as there are manifests of them."""
    while version is not None and version in published:
        yield version
        version = published[version].builds_on
