"""What is learnt when, and when it begins to rank: by a policy model that says what it knows."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny_model import paired_stream, tiny_bert, titled
from torch import Tensor

from peft_adapters.learning.batches import Positive, ShownList
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.lists import JudgedLists
from peft_adapters.ranking.shoppers import Contexts, Shoppers, pad
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.lab.backtest.policies import parse_policies, policy_settings
from services.lab.backtest.policy_models import LearnerModel
from services.lab.backtest.replay import Data, Outcome, Replay
from services.lab.backtest.run import Start, run_policy
from services.lab.offline.inputs import new_learner
from services.lab.offline.stream import Stream, chunks
from streams.examples import Example

DAY_MS = 86_400_000
ITEMS = 50
ENCODER = EncoderSettings(model=str(tiny_bert()), lora_rank=4, cache_dir=None)


class Diary:
    """A policy model that records which events were published when each was judged; events are named by their item."""

    def __init__(self) -> None:
        self.rows = {f"item-{row}": row for row in range(ITEMS)}
        self.learnt: list[int] = []
        self.published: list[int] = []
        self.known_when_judged: dict[int, list[int]] = {}
        self.history_when_judged: dict[int, list[int]] = {}

    def publish(self) -> None:
        self.published = list(self.learnt)

    def scores(self, examples: Sequence[Positive], contexts: Contexts) -> Tensor:
        for example, items in zip(examples, contexts.items.tolist(), strict=True):
            row = self.rows[example.item_id]
            self.known_when_judged[row] = list(self.published)
            self.history_when_judged[row] = [item for item in items if item >= 0]
        return torch.zeros(len(examples), ITEMS)

    def judge_lists(self, lists: Sequence[ShownList], shoppers: Shoppers) -> JudgedLists:
        return JudgedLists([torch.zeros(len(shown.item_ids)) for shown in lists], {})

    def learn(self, examples: Sequence[Positive]) -> None:
        self.learnt += [self.rows[example.item_id] for example in examples]

    def learn_lists(self, lists: Sequence[ShownList]) -> None:
        raise AssertionError


def stream(times_ms: Sequence[int]) -> Stream:
    """Event i is of item i, all by one user."""
    return Stream(
        [
            Example(f"e-{place}", "ann", None, f"item-{place}", ts, "click", "home", None, 0)
            for place, ts in enumerate(times_ms)
        ],
        [],
    )


def replayed(
    policy: str,
    times_ms: Sequence[int],
    *,
    batch_events: int = 2,
    delay_seconds: float = 0.0,
    judge_after: float = 0.0,
    learnt_before: float = 0.0,
) -> tuple[Diary, Outcome]:
    diary, (parsed,) = Diary(), parse_policies([policy])
    data = Data(
        titled(ITEMS),
        [],
        stream(times_ms),
        batch_events,
        label_delay_seconds=delay_seconds,
        judge_after=judge_after,
    )
    replay = Replay(parsed, data, diary, learnt_before=learnt_before)
    replay.warm_up()
    for chunk in chunks(data.stream, batch_events):
        replay.judge(chunk)
        replay.learn(chunk)
    return diary, replay.outcome()


def upto(count: int) -> list[int]:
    return list(range(count))


def test_live_ranks_by_all_micro_batches_before() -> None:
    diary, outcome = replayed("live", range(10))
    assert diary.known_when_judged == {place: upto(place // 2 * 2) for place in range(10)}
    assert outcome.publications == 5
    assert outcome.events_learnt == 10


def test_live_k_publishes_after_every_k_micro_batches_and_not_between() -> None:
    diary, outcome = replayed("live:3", range(20))
    assert diary.known_when_judged == {place: upto(place // 6 * 6) for place in range(20)}
    assert diary.learnt == upto(20)
    assert outcome.publications == 3


def test_stale_stops_learning_and_shoppers_move_on() -> None:
    diary, outcome = replayed("stale:50", range(10))
    assert diary.learnt == upto(5)  # in the middle of a micro-batch
    assert diary.known_when_judged[9] == upto(5)
    assert diary.history_when_judged[9] == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert outcome.events_learnt == 5


def test_nightly_serves_nothing_of_today() -> None:
    hours = [0, 10, 20, 23, 25, 26, 47, 49, 50, 75, 120, 121]
    times_ms = [hour * 3_600_000 for hour in hours]
    diary, outcome = replayed("nightly", times_ms, batch_events=3)
    for place, known in diary.known_when_judged.items():
        today = times_ms[place] // DAY_MS
        assert all(times_ms[other] // DAY_MS < today for other in known), (place, known)
    assert diary.known_when_judged == {
        **{place: [] for place in (0, 1, 2, 3)},
        **{place: upto(3) for place in (4, 5, 6)},  # the micro-batch in which the day began was not learnt at midnight
        **{place: upto(6) for place in (7, 8)},
        **{place: upto(9) for place in (9, 10, 11)},
    }
    assert diary.history_when_judged[6] == [5, 4, 3, 2, 1, 0]
    assert outcome.publications == 3


def test_nightly_publishes_at_each_midnight_of_utc() -> None:
    midnight = 19_000 * DAY_MS
    before, _ = replayed("nightly", [midnight - 2, midnight - 1, midnight, midnight + 1])
    assert before.known_when_judged[2] == [0, 1]
    inside, _ = replayed("nightly", [midnight, midnight + 1, midnight + 2, midnight + 3])
    assert inside.known_when_judged[2] == []


def test_an_event_is_judged_at_its_time_and_learnt_when_its_label_has_come() -> None:
    times_ms = [1_000 * place for place in range(12)]
    diary, outcome = replayed("live", times_ms, delay_seconds=5)
    for place, known in diary.known_when_judged.items():
        assert all(times_ms[other] + 5_000 <= times_ms[place] for other in known), (place, known)
    assert diary.known_when_judged[11] == upto(4)  # when the batch of 9 s had passed, that of 5 s was not 5 s old
    assert diary.history_when_judged[3] == [2, 1, 0]
    assert outcome.events_learnt == 6
    assert len(outcome.ranks.rank) == 12


def test_judged_is_what_comes_after_a_point_and_learnt_is_all() -> None:
    diary, outcome = replayed("live", range(10), batch_events=4, judge_after=0.5)
    assert sorted(diary.known_when_judged) == [5, 6, 7, 8, 9]
    assert diary.known_when_judged[5] == upto(4)
    assert outcome.ranks.first_index == 5
    assert len(outcome.ranks.rank) == len(outcome.ranks.first_of_item) == 5
    assert outcome.ranks.new_user == [False] * 5  # ann was seen before
    assert outcome.events_learnt == 10


def test_what_a_start_has_learnt_is_replayed_and_not_learnt_again() -> None:
    diary, _ = replayed("live", range(10), batch_events=4, learnt_before=0.5)
    assert diary.learnt == [5, 6, 7, 8, 9]
    assert diary.known_when_judged[4] == []
    assert diary.history_when_judged[5] == [4, 3, 2, 1, 0]


# ---- with the learner


PAIRED = [
    Example(f"e-{place}", b.user_id, b.session_id, b.item_id, b.ts, "purchase", "home", None, 0)
    for place, b in enumerate(paired_stream(240, items=ITEMS, seed=1))
]


def ranks_of(policy: str, *, start: Start | None = None) -> list[int]:
    (parsed,) = parse_policies([policy])
    data = Data(titled(ITEMS), [], Stream(PAIRED, []), 20)
    outcome = run_policy(parsed, data, encoder=ENCODER, learner=QUICK, progress=lambda _: None, start=start)
    return list(outcome.ranks.rank)


QUICK = LearnerSettings(negatives=30, lora_refresh_steps=2, lora_learning_rate=0.01)


def test_a_copy_published_after_every_micro_batch_ranks_as_the_learner_itself() -> None:
    model = new_learner(ENCODER, policy_settings(QUICK, "live", 0))
    model.add_items(titled(ITEMS))
    expected = []
    for begin in range(0, len(PAIRED), 20):
        batch = model.observe(PAIRED[begin : begin + 20])
        scores = model.judge(batch)
        own = scores.gather(1, torch.from_numpy(batch.items)[:, None])
        expected += (ITEMS - (scores < own).sum(dim=1)).tolist()
        model.learn(batch)
    assert ranks_of("live") == expected


def test_a_copy_stands_still_while_the_learner_moves_on() -> None:
    """What live:4 ranks by is what live ranked by at the time, so that their first batches after it are alike."""
    live, seldom, stale = ranks_of("live"), ranks_of("live:4"), ranks_of("stale:50")
    for published in range(0, 12, 4):
        batch = slice(20 * published, 20 * published + 20)
        assert seldom[batch] == live[batch]
    assert seldom != live
    assert stale[:140] == live[:140]  # by the batch that begins after half of the events
    assert np.mean(np.array(live[140:]) <= 2) > np.mean(np.array(seldom[20:80]) <= 2)


def test_what_is_learnt_changes_no_score_before_it_is_published() -> None:
    model = new_learner(ENCODER, policy_settings(QUICK, "live", 0))
    model.add_items(titled(ITEMS))
    policy_model, context = LearnerModel(model, with_lists=False), pad([([3, 4], [0, 1])])
    for begin in range(0, 60, 20):
        policy_model.learn(PAIRED[begin : begin + 20])
    policy_model.publish()
    published = policy_model.scores(PAIRED[:1], context)
    for begin in range(60, 160, 20):
        policy_model.learn(PAIRED[begin : begin + 20])
    assert torch.equal(policy_model.scores(PAIRED[:1], context), published)
    policy_model.publish()
    assert not torch.equal(policy_model.scores(PAIRED[:1], context), published)


def test_a_large_catalogue_is_scored_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_learner(ENCODER, policy_settings(QUICK, "live", 0))
    model.add_items(titled(ITEMS))
    policy_model, contexts = LearnerModel(model, with_lists=False), pad([([row], [0]) for row in range(7)])
    whole = policy_model.scores(PAIRED[:7], contexts)
    monkeypatch.setattr("services.lab.backtest.policy_models._SCORED_CELLS", 3 * ITEMS)
    torch.testing.assert_close(policy_model.scores(PAIRED[:7], contexts), whole)


def test_a_run_can_start_from_another_learner() -> None:
    def begin(model: Learner) -> None:
        model.add_items(titled(ITEMS))
        for first in range(0, 120, 20):
            model.learn(model.observe(PAIRED[first : first + 20]))

    started = ranks_of("live-without-lora", start=Start(begin, learnt=0.5))
    assert started[120:] == pytest.approx(ranks_of("live-without-lora")[120:])
    assert started[:20] != ranks_of("live-without-lora")[:20]
    assert ranks_of("river", start=Start(begin, learnt=0.5)) == ranks_of("river")
