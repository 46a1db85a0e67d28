"""Learning, ranking and backtesting in process, from data frames and files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_model import tiny_bert

import headwater
from headwater import EncoderSettings, Learner, LearnerSettings, Ranker, Settings
from services.data.files import InputError

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
    with pytest.raises(TypeError, match=r"`events` must be a path or a pandas\.DataFrame, got list; convert it"):
        headwater.learn(items, [{"user_id": "ann"}])  # type: ignore[arg-type]


class OtherFrame:
    """A data frame of another library."""


def test_a_frame_of_another_library_is_named_with_its_module(items: pd.DataFrame) -> None:
    with pytest.raises(TypeError, match=rf"got {__name__}\.OtherFrame; convert it: .*to_pandas"):
        headwater.learn(items, OtherFrame())  # type: ignore[arg-type]


def test_errors_name_the_data_frame_and_no_temporary_file(items: pd.DataFrame, events: pd.DataFrame) -> None:
    wrong = events.drop(columns="ts").assign(timestamp="soon")
    with pytest.raises(InputError) as refused:
        headwater.learn(items, wrong)
    assert str(refused.value).startswith("data frame `events`, row 1: `timestamp` must be an ISO 8601 time such as")
    assert "line" not in str(refused.value)
    with pytest.raises(InputError, match="data frame `items` must have the columns item_id, title"):
        headwater.learn(items.drop(columns="title"), events)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"batch_events": 0}, "`batch_events` must be at least 1, got 0; leave it out for 128"),
        ({"batch_events": "x"}, "`batch_events` must be a whole number, got 'x'"),
        ({"max_events": 0}, "`max_events` must be at least 1, got 0"),
        ({"learner": object()}, r"`learner` must be a headwater\.Learner, got object"),
        ({"encoder": "bert"}, r"`encoder` must be a headwater\.EncoderSettings, got str"),
        ({"settings": Settings()}, r"`settings` must be a headwater\.LearnerSettings, got Settings"),
    ],
)
def test_wrong_arguments_of_learn_are_named(
    items: pd.DataFrame, events: pd.DataFrame, arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        headwater.learn(items, events, **arguments)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"policies": "live"}, r"`policies` must be a list of names, got the string 'live'; write \['live'\]"),
        ({"policies": []}, "`policies` must name a policy, got none"),
        ({"seeds": 0}, "`seeds` must be at least 1, got 0; leave it out for 3"),
        ({"processes": 0}, "`processes` must be at least 1, got 0"),
        ({"max_events": 0}, "`max_events` must be at least 1, got 0"),
        ({"settings": LearnerSettings()}, r"`settings` must be a headwater\.Settings, got LearnerSettings"),
        ({"bach_events": 3}, "unexpected keyword argument 'bach_events'"),
    ],
)
def test_wrong_arguments_of_backtest_are_named(
    items: pd.DataFrame, events: pd.DataFrame, arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        headwater.backtest(items, events, **arguments)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda ranker: ranker.rank("item-1"), "`candidates` must be a list of ids, got the string 'item-1'"),
        (lambda ranker: ranker.rank([1]), "`candidates` must have strings as ids, got 1"),
        (lambda ranker: ranker.recommend(3, session_items=[4]), "`session_items` must have strings as ids, got 4"),
        (lambda ranker: ranker.recommend(3, earlier_sessions=["item-1"]), "`earlier_sessions` must be a list of ids"),
        (lambda ranker: ranker.recommend(3, exclude="item-1"), "`exclude` must be a list of ids"),
        (lambda ranker: ranker.recommend(0), "`k` must be at least 1, got 0; leave it out for 20 items"),
        (lambda ranker: ranker.recommend("3"), "`k` must be a whole number, got '3'"),
    ],
)
def test_wrong_arguments_of_a_ranker_are_named(
    learner: Learner, call: Callable[[Ranker], object], problem: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        call(Ranker(learner))


def test_a_ranker_is_made_of_a_learner_and_shows_its_size(learner: Learner) -> None:
    assert repr(Ranker(learner)) == "Ranker(version=0, scenario='home', items=12)"
    with pytest.raises(TypeError, match=r"`learner` must be a headwater\.Learner, got NoneType; make one with"):
        Ranker(None)  # type: ignore[arg-type]
