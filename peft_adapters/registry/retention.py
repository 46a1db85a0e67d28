"""Retention: the published versions of a scenario that are kept.

Three windows count back from the newest version: the newest `versions` of any kind; of older full versions, the first
of each minute for `minutes` minutes, and the first of each hour for `hours` hours. Each version is kept with the
versions that it builds on. If the kept versions are larger than `size_bytes`, the oldest are removed first. The newest
version and those that a rollout names are always kept, with their chains.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from peft_adapters.errors import ModelValueError

_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """The fields of a manifest that retention depends on.

    Attributes:
        builds_on: version that a delta builds on; None for a full version.
        published_at_ms: time of publication, epoch milliseconds.
        size_bytes: size of all files of the version.
    """

    builds_on: int | None
    published_at_ms: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Retention:
    """Limits on the number, age and size of the kept versions.

    Attributes:
        versions: number of newest versions that are all kept.
        minutes: minutes for which the first full version of each minute is kept.
        hours: hours for which the first full version of each hour is kept.
        size_bytes: limit on the size of all kept versions together; None sets no limit.
    """

    versions: int
    minutes: int = 0
    hours: int = 0
    size_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check that at least one version is kept."""
        if self.versions < 1:
            raise ModelValueError(
                f"`versions` must be at least 1, got {self.versions}; the latest version is what scorers start from"
            )

    def select(self, published: Mapping[int, PublishedVersion], *, named: Iterable[int] = ()) -> set[int]:
        """Choose the versions to keep.

        The choice is stable: a version that is not kept now would not be kept later either, as newer versions arrive.

        Args:
            published: fields of all versions whose manifests can be read, by version.
            named: versions that the rollout names.

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
        for version in sorted({*newest_first[: self.versions], *self._first_of_each_interval(published)}, reverse=True):
            added = set(_chain(published, version)) - kept
            size_bytes += sum(published[link].size_bytes for link in added)
            if self.size_bytes is not None and size_bytes > self.size_bytes:
                break
            kept |= added
        return kept

    def _first_of_each_interval(self, published: Mapping[int, PublishedVersion]) -> set[int]:
        """Return the first full version of each minute and of each hour within the two windows."""
        selected: set[int] = set()
        newest_ms = published[max(published)].published_at_ms
        for interval_ms, intervals in ((_MINUTE_MS, self.minutes), (_HOUR_MS, self.hours)):
            first: dict[int, int] = {}
            for version, fields in sorted(published.items(), key=lambda pair: pair[0]):
                if fields.builds_on is None:
                    first.setdefault(fields.published_at_ms // interval_ms, version)
            selected |= {
                version
                for version in first.values()
                if newest_ms - published[version].published_at_ms < intervals * interval_ms
            }
        return selected


def _chain(published: Mapping[int, PublishedVersion], version: int | None) -> Iterator[int]:
    """Yield a version and the versions it builds on, as far as their manifests are known."""
    while version is not None and version in published:
        yield version
        version = published[version].builds_on
