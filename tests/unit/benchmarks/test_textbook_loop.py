"""The textbook's rows say what was known before each event."""

from benchmarks.textbook_loop import HISTORY_ITEMS, _rows
from streams.examples import Example


def bought(user_id: str, item_id: str, ts: int) -> Example:
    return Example(
        event_id=f"event-{ts}",
        user_id=user_id,
        session_id=None,
        item_id=item_id,
        ts=ts,
        kind="purchase",
        scenario="home",
        position=None,
        publish_ts_ms=0,
    )


def test_a_row_has_what_the_user_bought_before_newest_first() -> None:
    texts = {f"item-{number}": f"title {number}" for number in range(40)}
    events = [bought(f"user-{ts % 2}", f"item-{ts}", ts) for ts in range(40)]
    rows = list(_rows(events, texts))
    assert [history for history, _, _ in rows[:5]] == ["", "", "title 0", "title 1", "title 2. title 0"]
    assert len(rows[-1][0].split(". ")) == HISTORY_ITEMS
    assert {label for _, _, label in rows} == {0, 1}
    assert all(candidate == f"title {ts}" for ts, (_, candidate, label) in enumerate(rows) if label)
