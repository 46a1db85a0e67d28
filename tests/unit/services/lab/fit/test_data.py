"""The split by time, and passes that learn or only count."""

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_model import paired_stream, state_bytes, tiny_learner

from peft_adapters.settings import LearnerSettings
from services.lab.fit.data import split_by_time, until_percent, waiting_after
from services.lab.fit.passes import count, learn
from services.lab.offline.judging import Ranks
from services.lab.offline.stream import Shown, Stream
from services.settings.fit import FitSettings
from streams.examples import Example, ShownList


def example(index: int, **changes: Any) -> Example:
    own = Example(
        event_id=f"e{index}", user_id=f"u{index % 3}", session_id=None, item_id="item-1", ts=1_000 * index,
        kind="click", scenario="home", position=None, publish_ts_ms=0,
    )  # fmt: skip
    return replace(own, **changes)


def shown(ts: int, due_ms: int) -> Shown:
    whole = ShownList(
        user_id="u0", session_id=None, ts=ts, item_ids=("item-1", "item-2"), positions=(0, 1), clicked=(True, False)
    )
    return Shown(whole, ((due_ms, whole),))


def paired(events: int) -> Stream:
    bought = paired_stream(events, items=20, seed=1)
    ids = ((b.user_id, b.session_id, b.item_id, b.ts) for b in bought)
    return Stream([example(0, user_id=u, session_id=s, item_id=i, ts=t) for u, s, i, t in ids], [])


def test_parts_follow_one_another_and_hold_everything_once() -> None:
    stream = Stream([example(n) for n in range(20)], [shown(n * 1_000 - 500, n * 1_000) for n in range(22)])
    split = split_by_time(stream, FitSettings())
    assert [len(part.examples) for part in split.parts] == [14, 3, 3]
    assert [one for part in split.parts for one in part.examples] == stream.examples
    assert [one for part in split.parts for one in part.lists] == stream.lists
    for earlier, later in zip(split.parts, split.parts[1:], strict=False):
        assert earlier.lists[-1].as_shown.ts < later.examples[0].ts


def test_first_percent_takes_the_oldest() -> None:
    stream = Stream([example(n) for n in range(10)], [shown(n * 1_000 - 500, 0) for n in range(10)])
    kept = until_percent(stream, 40)
    assert kept.examples == stream.examples[:4]
    assert kept.lists == stream.lists[:5]  # the fifth was shown before the event that is left out


def test_lessons_that_are_not_due_wait_for_the_next_part() -> None:
    stream = Stream([example(n) for n in range(5)], [shown(3_000, 9_000), shown(1_000, 2_000), shown(2_000, 8_000)])
    assert [due_ms for due_ms, _ in waiting_after(stream)] == [8_000, 9_000]


@pytest.mark.parametrize(("train", "validation"), [(80.0, 20.0), (0.0, 10.0), (100.0, 10.0)])
def test_a_split_without_a_part_is_refused(train: float, validation: float) -> None:
    with pytest.raises(ValidationError):
        FitSettings(train_percent=train, validation_percent=validation)


def test_counting_moves_counters_and_shoppers_and_no_weights() -> None:
    model = tiny_learner(LearnerSettings(), items=20)
    before, told, ranks = state_bytes(model), list[int](), Ranks()
    count(model, paired(60), batch_events=25, step=told.append, ranks=ranks)
    after = state_bytes(model)
    moved = {name for name in before if before[name] != after[name]}
    assert moved
    assert all(name.startswith("counters.") for name in moved), moved
    assert sum(told) == len(ranks.rank) == model.events_learned == 60
    assert len(model.shoppers) > 0


def test_learning_moves_weights_too() -> None:
    model = tiny_learner(LearnerSettings(), items=20)
    before = state_bytes(model)
    learn(model, paired(60), batch_events=25, step=lambda _: None)
    after = state_bytes(model)
    assert before["heads"] != after["heads"]
    assert before["residuals.query"] != after["residuals.query"]


def test_counts_of_a_learning_and_of_a_counting_pass_are_the_same() -> None:
    one, other = (tiny_learner(LearnerSettings(), items=20) for _ in range(2))
    learn(one, paired(60), batch_events=25, step=lambda _: None)
    count(other, paired(60), batch_events=25, step=lambda _: None)
    ours, theirs = state_bytes(one), state_bytes(other)
    assert all(ours[name] == theirs[name] for name in ours if name.startswith("counters."))
