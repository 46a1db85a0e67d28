"""Learning, ranking and backtesting in process, from data frames and files."""

from pathlib import Path

import pandas as pd
import pytest
from tiny_model import tiny_bert

import headwater
from headwater import EncoderSettings, Learner, LearnerSettings, Ranker, Settings

EVENTS = 240


@pytest.fixture(scope="module")
def encoder() -> EncoderSettings:
    return EncoderSettings(model=str(tiny_bert()))


@pytest.fixture(scope="module")
def items() -> pd.DataFrame:
    return pd.DataFrame({"item_id": [f"item-{n}" for n in range(12)], "title": [f"a thing {n}" for n in range(12)]})


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    """Shoppers who buy an even item and then its odd neighbour."""
    rows = [
        {
            "ts": 1_700_000_000_000 + 60_000 * n,
            "user_id": f"user-{n // 2}",
            "session_id": f"session-{n // 2}",
            "event_type": "purchase",
            "item_id": f"item-{2 * (n // 2 % 6) + n % 2}",
        }
        for n in range(EVENTS)
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def learner(items: pd.DataFrame, events: pd.DataFrame, encoder: EncoderSettings) -> Learner:
    return headwater.learn(items, events, encoder=encoder, settings=LearnerSettings(lora=False), batch_events=16)


def test_a_data_frame_and_a_file_are_learnt_alike(
    learner: Learner, items: pd.DataFrame, events: pd.DataFrame, encoder: EncoderSettings, tmp_path: Path
) -> None:
    items.to_csv(tmp_path / "items.csv", index=False)
    events.to_csv(tmp_path / "events.csv", index=False)
    again = headwater.learn(
        tmp_path / "items.csv",
        str(tmp_path / "events.csv"),
        encoder=encoder,
        settings=LearnerSettings(lora=False),
        batch_events=16,
    )
    assert again.events_learned == learner.events_learned == EVENTS
    assert again.ranker.heads.equal(learner.ranker.heads)


def test_a_stream_may_end_early(items: pd.DataFrame, events: pd.DataFrame, encoder: EncoderSettings) -> None:
    assert headwater.learn(items, events, encoder=encoder, max_events=40, batch_events=16).events_learned == 40


def test_a_ranker_has_learnt_what_goes_together_and_stays_as_it_is(
    learner: Learner, items: pd.DataFrame, events: pd.DataFrame
) -> None:
    ranker = Ranker(learner)
    first = ranker.recommend(3, session_items=["item-4"], exclude=["item-4"])
    assert first.item_ids[0] == "item-5"
    ranked = ranker.rank(["item-9", "item-5", "unheard-of"], session_items=["item-4"])
    assert (ranked.item_ids, ranked.unknown_candidates) == (["item-5", "item-9"], ("unheard-of",))
    headwater.learn(items, events, learner=learner, batch_events=16)
    assert ranker.recommend(3, session_items=["item-4"], exclude=["item-4"]) == first
    assert Ranker(learner).recommend(3, session_items=["item-4"], exclude=["item-4"]) != first


def test_a_ranker_takes_queries_and_earlier_sessions(learner: Learner) -> None:
    ranker = Ranker(learner)
    plain = ranker.rank(["item-1", "item-2"])
    assert ranker.rank(["item-1", "item-2"], query="a thing 2") != plain
    assert ranker.rank(["item-1", "item-2"], earlier_sessions=[["item-0"], ["item-3"]]) != plain
    assert ranker.rank(["unheard-of"]).items == ()


def test_a_backtest_returns_a_row_for_each_policy(
    items: pd.DataFrame, events: pd.DataFrame, encoder: EncoderSettings
) -> None:
    frame = headwater.backtest(
        items,
        events,
        policies=["live-without-lora", "popularity"],
        seeds=2,
        settings=Settings(encoder=encoder),
        batch_events=16,
    )
    assert list(frame.index) == ["live-without-lora", "popularity"]
    assert frame.loc["live-without-lora", "ndcg20"] > frame.loc["popularity", "ndcg20"]
    assert frame.loc["popularity", "hr20_ci95"] >= 0
    assert frame.attrs["report"]["judged_events"] == EVENTS


def test_a_table_that_is_neither_path_nor_frame_is_refused(items: pd.DataFrame) -> None:
    with pytest.raises(TypeError, match=r"`events` must be a path or a pandas\.DataFrame, got list"):
        headwater.learn(items, [{"user_id": "ann"}])  # type: ignore[arg-type]
