"""However examples come, batches keep to the limits, and hold each example once and in order."""

from hypothesis import given
from hypothesis import strategies as st

from streams.joiner import Example
from streams.microbatch import MicroBatcher

ARRIVALS = st.lists(st.tuples(st.integers(0, 60), st.floats(0, 0.5), st.booleans()), max_size=80)


def example(number: int) -> Example:
    return Example(f"e-{number}", "u", None, "i", number, "click", "home", None, 0)


@given(ARRIVALS, st.integers(1, 9), st.integers(1, 120), st.floats(0, 2))
def test_batches_keep_to_the_limits(
    arrivals: list[tuple[int, float, bool]], max_events: int, max_bytes: int, max_age_seconds: float
) -> None:
    batcher = MicroBatcher(max_events=max_events, max_bytes=max_bytes, max_age_seconds=max_age_seconds)
    sizes = {f"e-{number}": size_bytes for number, (size_bytes, _, _) in enumerate(arrivals)}
    came: dict[str, float] = {}
    batches: list[list[Example]] = []
    now = 0.0
    for number, (size_bytes, pause_seconds, look) in enumerate(arrivals):
        now += pause_seconds
        came[f"e-{number}"] = now
        batcher.add(example(number), size_bytes=size_bytes, now=now)
        waiting = list(came)[sum(map(len, batches)) :]
        weight = sum(sizes[event_id] for event_id in waiting)
        full = len(waiting) >= max_events or weight >= max_bytes or now - came[waiting[0]] >= max_age_seconds
        assert batcher.ready(now) == full
        if look and full:
            batches.append(batcher.take())
    while len(batcher):
        batches.append(batcher.take())
    assert [e.event_id for batch in batches for e in batch] == list(came)
    for batch in batches:
        assert 1 <= len(batch) <= max_events
        assert len(batch) == 1 or sum(sizes[e.event_id] for e in batch) <= max_bytes
