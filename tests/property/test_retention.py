"""Any history of publications: retention follows its rules, is bounded, and never selects a removed version."""

from hypothesis import given
from hypothesis import strategies as st

from peft_adapters.registry.retention import PublishedVersion, Retention

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
START_MS = 1_764_000_000_000

# Pauses between publications: bursts, a usual pace, and nights without any.
PAUSES_MS = st.one_of(
    st.integers(0, 2_000), st.integers(0, 3 * MINUTE_MS), st.integers(0, 3 * HOUR_MS), st.integers(0, 30 * HOUR_MS)
)
PUBLICATIONS = st.lists(
    st.tuples(PAUSES_MS, st.booleans(), st.integers(1, 50)), min_size=1, max_size=80
)  # pause, full or delta, size
RETENTIONS = st.builds(
    Retention, versions=st.integers(1, 6), minutes=st.sampled_from([0, 5, 60]), hours=st.sampled_from([0, 4, 72])
)
History = dict[int, PublishedVersion]


def history_of(publications: list[tuple[int, bool, int]]) -> History:
    """Return versions as they would be published: a delta builds on the version before it."""
    history, at_ms = History(), START_MS
    for version, (pause_ms, full, size_bytes) in enumerate(publications, start=1):
        at_ms += pause_ms
        history[version] = PublishedVersion(None if full or version == 1 else version - 1, at_ms, size_bytes)
    return history


def chain(history: History, version: int) -> set[int]:
    found: set[int] = set()
    link: int | None = version
    while link is not None:
        found.add(link)
        link = history[link].builds_on
    return found


def demanded(history: History, retention: Retention) -> set[int]:
    """Return the versions to keep, computed by the rules as the documentation states them."""
    full = [version for version in history if history[version].builds_on is None]
    newest_ms = history[max(history)].published_at_ms
    wanted = set(sorted(history)[-retention.versions :])
    for window_ms, length in ((MINUTE_MS, retention.minutes), (HOUR_MS, retention.hours)):
        for version in full:
            own_ms = history[version].published_at_ms
            older = {history[v].published_at_ms // window_ms for v in full if v < version}
            if own_ms // window_ms not in older and newest_ms - own_ms < length * window_ms:
                wanted.add(version)
    return {link for version in wanted for link in chain(history, version)}


@given(publications=PUBLICATIONS, retention=RETENTIONS, named=st.sets(st.integers(1, 80), max_size=3))
def test_kept_versions_follow_the_rule_however_often_it_was_applied(
    publications: list[tuple[int, bool, int]], retention: Retention, named: set[int]
) -> None:
    history, left = history_of(publications), History()
    for version, fields in history.items():
        seen = {v: history[v] for v in history if v <= version}
        left[version] = fields
        kept = retention.select(left, named=named)
        assert kept <= left.keys()  # monotone: a removed version is never selected again
        left = {v: left[v] for v in kept}
        chains = {link for v in named & seen.keys() & left.keys() for link in chain(history, v)}
        assert demanded(seen, retention) | chains == kept


@given(publications=PUBLICATIONS, retention=RETENTIONS, limit=st.integers(1, 400), named=st.sets(st.integers(1, 80)))
def test_kept_versions_are_within_the_size_and_the_oldest_go_first(
    publications: list[tuple[int, bool, int]], retention: Retention, limit: int, named: set[int]
) -> None:
    history = history_of(publications)
    named &= history.keys()
    always = {link for version in {max(history), *named} for link in chain(history, version)}
    bounded = Retention(retention.versions, retention.minutes, retention.hours, limit)
    unbounded, kept = retention.select(history, named=named), bounded.select(history, named=named)
    assert always <= kept <= unbounded
    assert all(chain(history, version) <= kept for version in kept)
    assert sum(history[v].size_bytes for v in kept) <= max(limit, sum(history[v].size_bytes for v in always))
    removed = max(unbounded - kept, default=0)
    assert all(v > removed or v in always | chain_of_newer(history, kept, v) for v in kept)
    assert bounded.select({v: history[v] for v in kept}, named=named) == kept


def chain_of_newer(history: History, kept: set[int], version: int) -> set[int]:
    """Return the links of the chains of all kept versions above one."""
    return {link for newer in kept if newer > version for link in chain(history, newer)}


def test_three_days_of_a_version_every_ten_seconds_are_kept_by_the_minute_and_by_the_hour() -> None:
    retention = Retention(versions=1, minutes=60, hours=72)
    left = History()
    for version in range(1, 80 * 360 + 1):
        left[version] = PublishedVersion(None, START_MS + version * 10_000, 1)
        if version % 30 == 0:
            left = {v: left[v] for v in retention.select(left)}
    ages_ms = [left[max(left)].published_at_ms - fields.published_at_ms for fields in left.values()]
    assert sum(age < HOUR_MS for age in ages_ms) in range(60, 63)
    assert len(left) in range(60 + 70, 60 + 74)
    assert 71 * HOUR_MS <= max(ages_ms) < 72 * HOUR_MS
