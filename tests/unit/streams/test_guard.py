"""Weights of several forms of spam, and of honest use beside it."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from streams.examples import Example, ShownList
from streams.guard import Guard
from streams.guard_settings import GuardSettings

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


def event(number: int, user_id: str, item_id: str, *, ts: int = 0, publish_ts_ms: int | None = None) -> Example:
    return Example(
        event_id=f"e{number}",
        user_id=user_id,
        session_id=None,
        item_id=item_id,
        ts=ts,
        kind="click",
        scenario="home",
        position=None,
        publish_ts_ms=ts if publish_ts_ms is None else publish_ts_ms,
    )


def shown(user_id: str, clicked: str | None) -> ShownList:
    items = ("a", "target")
    clicks = tuple(item_id == clicked for item_id in items)
    return ShownList(user_id=user_id, session_id=None, ts=0, item_ids=items, positions=(0, 1), clicked=clicks)


def visits(users: Sequence[str], items: Sequence[str], *, ts: int = 0) -> list[Example]:
    """Return events in which each user looks at each item once."""
    return [event(0, user_id, item_id, ts=ts) for user_id in users for item_id in items]


def weights(guard: Guard, examples: Sequence[Example]) -> list[float]:
    return [example.weight for example in guard.weigh(examples)]


def one_by_one(guard: Guard, examples: Sequence[Example]) -> list[float]:
    return [weight for example in examples for weight in weights(guard, [example])]


ITEMS = [f"i{number}" for number in range(10)]
MANY = [f"i{number}" for number in range(300)]
NOW = 24 * HOUR_MS


def learn_a_day(guard: Guard) -> None:
    """Return a guard after a day of a shop before `NOW`: each hour one shopper looks at every item."""
    for hour in range(24):
        guard.weigh(visits([f"u{hour % 4}"], MANY, ts=hour * HOUR_MS))


@pytest.fixture
def guard() -> Guard:
    return Guard(GuardSettings())


def test_a_wholesale_basket_and_a_bestseller_weigh_what_they_are(guard: Guard) -> None:
    basket = visits(["wholesaler"], [f"i{number}" for number in range(128)])
    assert set(weights(guard, basket)) == {1.0}
    for number in range(200):
        visit = visits([f"u{number}"], [*ITEMS[number % 4 :][:5], "best"], ts=number * 300_000)
        assert set(weights(guard, visit)) == {1.0}
    assert sum(guard.downweighted.values()) == 0


def test_the_same_item_again_and_again_counts_a_few_times_an_hour(guard: Guard) -> None:
    guard.weigh(visits(["u", *(f"u{number}" for number in range(30))], ITEMS * 4))
    repeats = [event(n, "u", "i1", ts=HOUR_MS + n) for n in range(8)]
    assert one_by_one(guard, repeats) == [1.0] * 5 + [0.0] * 3
    assert guard.downweighted["user_item"] == 3
    assert one_by_one(guard, [event(9, "u", "i1", ts=2 * HOUR_MS)]) == [1.0]


def test_an_item_that_people_come_for_alone_counts_a_few_times_under_however_many_ids(guard: Guard) -> None:
    guard.weigh(visits([f"u{number}" for number in range(30)], ITEMS))
    spam = [event(n, f"bot-{n}", "target", ts=n * 60_000) for n in range(100)]
    weighed = one_by_one(guard, spam)
    assert weighed == [1.0] * 2 + [0.0] * 98
    assert guard.downweighted["item_burst"] == 98
    assert guard.in_quarantine == {"user": 0, "item": 1}
    honest = visits(["u1"], ["target"], ts=DAY_MS)
    assert weights(guard, honest) == [1.0], "those who look at other things too still count for it"


def test_spam_spread_over_weeks_gets_no_more_than_its_allowance_as_it_fades(guard: Guard) -> None:
    days = 28
    weighed: list[float] = []
    for day in range(days):
        guard.weigh(visits([f"u{day % 7}"], ITEMS, ts=day * DAY_MS))
        weighed += one_by_one(guard, [event(n, f"bot-{n}", "target", ts=day * DAY_MS + n) for n in range(2)])
    assert 2 <= sum(weighed) <= 2 + 3 * 0.7 * days / 7, "2 at once, then what fades: a half a week"


def test_first_clicks_of_new_users_count_where_they_follow_what_others_like(guard: Guard) -> None:
    guard.weigh(visits([f"u{number}" for number in range(50)], ITEMS))
    newcomers = [event(n, f"new-{n}", ITEMS[n % 10], ts=n) for n in range(60)]
    assert set(one_by_one(guard, newcomers)) == {1.0}


def test_where_everybody_clicks_once_and_goes_items_are_measured_by_themselves(guard: Guard) -> None:
    guests = [event(n, f"guest-{n}", "best" if n % 4 == 0 else f"i{n % 40}", ts=n * 60_000) for n in range(2_000)]
    assert sum(one_by_one(guard, guests)) > 0.99 * len(guests)


def test_a_user_of_more_events_than_an_hour_has_counts_up_to_the_limit() -> None:
    guard = Guard(GuardSettings(user_hour_events=20))
    many = visits(["u"], [f"i{number}" for number in range(30)])
    assert one_by_one(guard, many) == [1.0] * 20 + [0.0] * 10
    assert guard.downweighted["user_hour"] == 10
    assert one_by_one(guard, visits(["u"], ["i1"], ts=HOUR_MS)) == [1.0]
    assert not guard.quarantined


def test_a_bot_goes_to_quarantine_by_volume_and_by_repeats() -> None:
    guard = Guard(GuardSettings(user_hour_events=5, user_quarantine_events=10))
    guard.weigh(visits(["crawler"], [f"i{number}" for number in range(50)]))
    guard.weigh([event(n, "clicker", "i1", ts=n) for n in range(3 * 5)])
    assert [(new.key, new.why.reason) for new in guard.newly_quarantined()] == [("user/crawler", "user_hour")]
    patient = Guard(GuardSettings(user_quarantine_events=10))
    patient.weigh([event(n, "clicker", "i1", ts=n) for n in range(15)])
    (new,) = patient.newly_quarantined()
    assert (new.key, new.why.reason, new.why.count, new.why.limit) == ("user/clicker", "user_item", 10, 10)
    assert "e14" not in new.why.event_id, "a producer's id may name people"
    assert weights(patient, visits(["clicker"], ITEMS)) == [0.0] * 10
    assert patient.downweighted["quarantine"] == 10
    assert patient.newly_quarantined() == []


def test_newcomers_who_were_shown_an_item_count_up_to_its_share_of_an_hour_and_its_usual() -> None:
    limits = {"item_hour_events": 10, "item_hour_factor": 1.0}
    guard = Guard(GuardSettings(item_hour_share=0.0, **limits))
    learn_a_day(guard)
    guests = [replace(event(n, f"guest-{n}", "hyped", ts=NOW + n), shown=True) for n in range(60)]
    assert 10 <= sum(one_by_one(guard, guests)) <= 12
    assert guard.downweighted["item_hour"] >= 45
    assert {one.left_out for one in guard.weigh(guests)} == {"capped"}
    large = Guard(GuardSettings(item_hour_share=0.5, **limits))
    learn_a_day(large)
    assert sum(one_by_one(large, guests)) == 60, "a small part of the hour's events is less than its share"


def test_an_item_that_many_shoppers_look_at_among_others_takes_over_an_hour(guard: Guard) -> None:
    guard.weigh(visits([f"u{number}" for number in range(30)], ITEMS))
    looks = [[f"i{n % 10}", f"i{n % 9}", f"i{n % 7}", "hyped"] for n in range(200)]
    wave = [one for n, items in enumerate(looks) for one in visits([f"new-{n}"], items, ts=HOUR_MS + n)]
    assert sum(one_by_one(guard, wave)) > 0.99 * len(wave)


def test_spam_takes_no_weight_from_those_who_vouch_within_a_batch_or_an_hour(guard: Guard) -> None:
    users = [f"u{number}" for number in range(30)]
    guard.weigh(visits(users, ITEMS))
    spam = [event(n, f"bot-{n}", "rival", ts=n) for n in range(400)]
    weighed = weights(guard, [*spam[:200], *visits(users, ["rival"], ts=300)])
    assert sum(weighed[:200]) < 6
    assert min(weighed[200:]) > 0.9
    guard.weigh(spam[200:])
    assert weights(guard, visits(["late"], [*ITEMS, "rival"], ts=500))[-1] == 1.0


def test_spam_for_other_items_buys_an_item_no_allowance(guard: Guard) -> None:
    guard.weigh(visits([f"u{number}" for number in range(30)], ITEMS))
    guard.weigh([event(n, f"bot-{n}", f"decoy-{n % 5}", ts=n) for n in range(1_000)])
    spam = [event(n, f"late-bot-{n}", "i1", ts=2_000 + n) for n in range(100)]
    assert sum(one_by_one(guard, spam)) < 20


def test_what_is_released_before_it_was_told_is_not_told(guard: Guard) -> None:
    guard.weigh([event(n, "clicker", "i1") for n in range(120)])
    guard.release("user/clicker")
    assert guard.newly_quarantined() == []


def test_what_new_users_look_at_first_counts_because_they_go_on_to_look_at_more(guard: Guard) -> None:
    for number in range(200):
        assert set(one_by_one(guard, visits([f"u{number}"], ["landing", *ITEMS[:4]], ts=number * 60_000))) == {1.0}
    passing = [event(n, f"passer-by-{n}", "landing", ts=200 * 60_000) for n in range(30)]
    assert sum(one_by_one(guard, passing)) > 2, "more than an unknown item is allowed"
    one_by_one(guard, [event(n, f"passer-by-{n}", "landing", ts=201 * 60_000) for n in range(30, 130)])
    assert guard.in_quarantine["item"] == 0, "fewer went at once than stayed"


def test_many_of_one_user_or_newcomers_for_one_item_in_a_batch_share_the_limits_weight() -> None:
    guard = Guard(GuardSettings(user_batch_events=4, item_batch_events=2, burst_events=9))
    for number in range(30):
        guard.weigh(visits([f"u{number}"], ITEMS[:3]))
        guard.weigh(visits([f"u{number}"], ITEMS[3:6]))
    batch = [*visits(["u"], ITEMS[:8]), *visits(["v", "w", "x"], ["target"]), *visits(["u1", "u2", "u3"], ["i1"])]
    weighed = weights(guard, batch)
    assert weighed[:8] + weighed[11:] == [0.5] * 8 + [1.0] * 3
    assert 2 / 3 <= weighed[8] == weighed[9] == weighed[10] < 0.8, "the limit, and ten times its usual share"
    assert (guard.downweighted["user_batch"], guard.downweighted["item_batch"]) == (8, 3)
    assert [(cap.key, cap.left_out, cap.weighed_down) for cap in guard.caps] == [
        ("user/u", 0, 8),
        ("item/target", 0, 3),
    ]


def test_a_time_ahead_of_the_log_makes_nothing_fade(guard: Guard) -> None:
    guard.weigh(visits([f"u{number}" for number in range(30)], ITEMS))
    weeks = [event(n, f"bot-{n}", "target", ts=n * 7 * DAY_MS, publish_ts_ms=n) for n in range(40)]
    assert sum(one_by_one(guard, weeks)) == 2


def test_a_released_item_counts_for_everybody_for_a_week(guard: Guard) -> None:
    guard.weigh(visits([f"u{number}" for number in range(30)], ITEMS))
    guard.weigh([event(n, f"bot-{n}", "target", ts=n) for n in range(100)])
    guard.release("item/target")
    assert guard.in_quarantine["item"] == 0
    after = [event(n, f"fan-{n}", "target", ts=1_000 + n) for n in range(100)]
    assert set(one_by_one(guard, after)) == {1.0}
    assert guard.in_quarantine["item"] == 0
    later = [event(n, f"bot-{n}", "target", ts=8 * DAY_MS + n) for n in range(100, 400)]
    assert sum(one_by_one(guard, later)) < 10, "then it is measured again"


def test_an_item_can_be_released_before_a_campaign_a_user_cannot(guard: Guard) -> None:
    guard.weigh(visits(["u"], ITEMS))
    guard.release("item/campaign")
    guard.release("user/clicker")
    assert set(one_by_one(guard, [event(n, f"fan-{n}", "campaign") for n in range(50)])) == {1.0}
    assert sum(one_by_one(guard, [event(n, "clicker", "i1") for n in range(50)])) == 5


def test_lists_of_newcomers_beyond_an_items_hour_do_not_count_others_do(guard: Guard) -> None:
    learn_a_day(guard)
    guard.weigh([replace(event(n, f"bot-{n}", "target", ts=NOW), shown=True) for n in range(400)])
    lists = [shown("bot-1", "target"), shown("bot-2", None), shown("u1", "target"), shown("bot-3", "a")]
    weighed = guard.weigh_lists(lists)
    assert [one.weight for one in weighed] == [0.0, 1.0, 1.0, 1.0]
    assert [one.left_out for one in weighed] == ["capped", "", "", ""]
    guard.weigh([event(n, "clicker", "i1") for n in range(120)])
    assert guard.in_quarantine["user"] == 1
    (one,) = guard.weigh_lists([shown("clicker", None)])
    assert (one.weight, one.left_out) == (0.0, "quarantined")


def test_what_is_left_out_says_whether_it_was_capped_or_in_quarantine(guard: Guard) -> None:
    guard.weigh(visits([f"u{number}" for number in range(30)], ITEMS))
    spam = guard.weigh([event(n, f"bot-{n}", "target", ts=n) for n in range(80)])
    outcomes = [one.left_out for one in spam]
    assert outcomes[:2] == ["", ""], "a few count"
    assert outcomes == sorted(outcomes), "then they are capped, then the item is in quarantine"
    assert outcomes.count("capped") >= 40
    assert outcomes.count("quarantined") >= 10
    (cap,) = guard.caps
    assert (cap.key, cap.rule, cap.left_out) == ("item/target", "item_burst", 78)


def test_an_item_is_newly_capped_once_an_hour(guard: Guard) -> None:
    guard.weigh(visits([f"u{number}" for number in range(30)], ITEMS))
    found = []
    for hour in range(3):
        for minute in range(30):
            at = hour * HOUR_MS + minute * 60_000
            guard.weigh([event(minute, f"bot-{hour}-{minute}", "target", ts=at)])
            found += [(cap.key, cap.hour) for cap in guard.newly_capped()]
    assert found == [("item/target", 0), ("item/target", 1), ("item/target", 2)]
    assert [cap.hour for cap in guard.caps] == [2]
    guard.weigh(visits(["u1"], ITEMS, ts=9 * HOUR_MS))
    assert guard.caps == [], "after an hour without"


def test_lists_of_one_user_share_the_limits_weight_in_a_batch() -> None:
    guard = Guard(GuardSettings(user_batch_events=2))
    lists = [shown("u", None)] * 4 + [shown("v", None)]
    assert [one.weight for one in guard.weigh_lists(lists)] == [0.5] * 4 + [1.0]


def test_a_forgotten_user_is_unknown(guard: Guard) -> None:
    guard.weigh([event(n, "clicker", "i1") for n in range(120)])
    guard.forget("clicker")
    assert guard.quarantined == {}
    assert guard.newly_quarantined() == []
    assert "clicker" not in str(guard.state()["users"])
    assert weights(guard, visits(["clicker"], ["i2"])) == [1.0]


def test_what_is_weighed_one_is_left_as_it_is(guard: Guard) -> None:
    (example,) = visits(["u"], ["i1"])
    assert guard.weigh([example]) == [example]
    (again,) = guard.weigh([replace(example, weight=0.25)])
    assert again.weight == 1.0, "the guard's word alone counts"


def test_an_event_that_is_ahead_does_not_move_the_time_of_others_and_kept_times_heal() -> None:
    guard, now_ms = Guard(GuardSettings()), 1_790_000_000_000
    one_by_one(guard, visits(["u", "v", "w"], ITEMS, ts=now_ms))
    before = guard.state()
    guard.bound(now_ms)
    weights(guard, [event(9, "ahead", "i1", ts=now_ms + 59_000)])
    assert guard.state()["stream"][0] == now_ms
    assert guard.state()["stream"][1] == before["stream"][1]

    spoilt = Guard(GuardSettings())
    one_by_one(spoilt, visits(["u", "v", "w"], ITEMS, ts=now_ms + 20 * HOUR_MS))
    spoilt.bound(now_ms)
    state = spoilt.state()
    hours = {row[4] for row in (state["stream"], *state["items"].values())} | {
        row[1] for row in state["users"].values()
    }
    assert {row[0] for row in (state["stream"], *state["items"].values())} == {now_ms}
    assert hours == {now_ms // HOUR_MS}
    weights(spoilt, [event(9, "u", "i1", ts=now_ms + HOUR_MS)])
    assert spoilt.state()["stream"][0] == now_ms
    spoilt.bound(now_ms + HOUR_MS)
    weights(spoilt, [event(10, "u", "i1", ts=now_ms + HOUR_MS)])
    assert spoilt.state()["stream"][0] == now_ms + HOUR_MS
