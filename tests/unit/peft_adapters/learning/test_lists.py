"""Lists: seen as of their own time, what late clicks weigh, what their position explains, and what they leave alone."""

import math

import numpy as np
import pytest
import torch
from tiny_model import Bought, Listed, shown_stream, tiny_learner

from peft_adapters.learning.batches import ListBatch
from peft_adapters.learning.learner import Learner
from peft_adapters.learning.losses import DelayedFeedback, lists_loss
from peft_adapters.ranking.ranker import FrozenRanker
from peft_adapters.settings import AFFINITIES, COUNTER_FEATURES, FEATURES, PASSED_OVER, LearnerSettings

MINUTE_MS = 60_000
HALF_LIFE_EVENTS = 1_000


@pytest.fixture
def learner() -> Learner:
    return tiny_learner(LearnerSettings(lora=False), items=12)


def bought(learner: Learner, *events: tuple[str, int, int]) -> None:
    """Learn of (user, item, minute)."""
    for user, item, minute in events:
        learner.learn(learner.observe([Bought(user, None, f"item-{item}", minute * MINUTE_MS)]))


def listed(user: str, minute: int, items: list[int], clicked: list[int], **fields: bool | float) -> Listed:
    ids, was = tuple(f"item-{item}" for item in items), tuple(item in clicked for item in items)
    return Listed(user, minute * MINUTE_MS, ids, was, **fields)  # type: ignore[arg-type]


def test_a_list_is_seen_as_it_was_when_shown(learner: Learner) -> None:
    bought(learner, ("bob", 1, 0), ("bob", 2, 1), ("ann", 1, 2))
    shown = listed("ann", 3, [2, 3, 4], [2, 4])
    then = learner.observe_lists([shown])
    bought(learner, ("ann", 2, 3), ("ann", 4, 4))  # its own clicks, counted before the list is learnt
    later = learner.observe_lists([shown])
    assert later.context_rows.tolist() == then.context_rows.tolist() == [1]
    torch.testing.assert_close(later.affinity_weights, then.affinity_weights)
    for name in (
        "transition",
        "skip_transition",
        "session_cooccurrence",
        "history_cooccurrence",
        "neighbour_cooccurrence",
        "session_lift",
        "in_session",
    ):
        row = COUNTER_FEATURES.index(name)
        torch.testing.assert_close(
            later.counter_features[row], then.counter_features[row], rtol=0, atol=0.3
        )  # rows have more counts by now
    row = COUNTER_FEATURES.index("never_sold")
    assert later.counter_features[row].tolist() == then.counter_features[row].tolist() == [0, 1, 1]
    row = COUNTER_FEATURES.index("transition")
    assert then.counter_features[row, 0] > 0  # 1 was followed by 2, of bob; of ann that is the list's own click
    unaware = learner.observe_lists([listed("ann", 3, [2, 3, 4], [])])
    assert unaware.counter_features[row, 0] > later.counter_features[row, 0]


def test_many_lists_are_what_each_is_alone(learner: Learner) -> None:
    stream = shown_stream(150, items=12, seed=2, length=5)
    for _, clicks in stream:
        if clicks:
            learner.learn(learner.observe(clicks))
    lists = [shown for shown, _ in stream]
    together, alone = learner.observe_lists(lists), [learner.observe_lists([shown]) for shown in lists]
    torch.testing.assert_close(together.counter_features, torch.cat([one.counter_features for one in alone], dim=1))
    scores = learner.judge_lists(together).scores
    for own, one in zip(scores, alone, strict=True):
        torch.testing.assert_close(own, learner.judge_lists(one).scores[0])


def test_an_unknown_item_is_refused(learner: Learner) -> None:
    with pytest.raises(KeyError, match="item-99"):
        learner.observe_lists([listed("ann", 0, [1, 99], [])])


def test_shown_and_clicked_are_counted_and_a_late_click_is_not_shown_again(learner: Learner) -> None:
    learner.learn_lists(learner.observe_lists([listed("ann", 0, [1, 2, 3], [2]), listed("bob", 0, [2, 3], [])]))
    learner.learn_lists(learner.observe_lists([listed("bob", 0, [3], [3], is_correction=True)]))
    learner.learn_lists(learner.observe_lists([listed("eve", 0, [1, 2], [1], weight=0.0)]))
    late_purchase = listed("bob", 0, [3], [], is_correction=True)._replace(purchases=("item-3",))
    learner.learn_lists(learner.observe_lists([late_purchase]))
    counters = learner.ranker.counters
    assert counters.shown[:5].tolist() == [0, 1, 2, 2, 0]
    assert counters.clicked[:5].tolist() == [0, 0, 1, 1, 0]
    assert counters.bought[:5].tolist() == [0, 0, 0, 1, 0]
    assert (learner.lists.feedback.in_time, learner.lists.feedback.late) == (2, 1)


def test_a_list_of_no_weight_teaches_nothing(learner: Learner) -> None:
    other = tiny_learner(LearnerSettings(lora=False), items=12)
    lists = [listed("ann", 0, [1, 2, 3], [2]), listed("eve", 0, [3, 4], [4])]
    ignored = [lists[0], lists[1]._replace(weight=0.0)]
    counted = [lists[0], lists[1]._replace(clicked=(False, False), weight=0.0)]
    learner.learn_lists(learner.observe_lists(ignored))
    other.learn_lists(other.observe_lists(counted))
    torch.testing.assert_close(learner.lists.heads, other.lists.heads)
    assert learner.ranker.counters.shown.tolist() == other.ranker.counters.shown.tolist()


def test_without_lists_the_score_is_the_catalogues_alone(learner: Learner) -> None:
    bought(learner, ("ann", 1, 0), ("ann", 2, 1))
    assert torch.equal(learner.ranker.heads, learner.positives.heads)
    learner.learn_lists(learner.observe_lists([listed("ann", 3, [1, 2], [2])]))
    share = 1 / 2  # one click in a list, two events
    torch.testing.assert_close(
        learner.ranker.heads, torch.lerp(learner.positives.heads, learner.lists.served_heads, share)
    )


def test_position_is_learnt_and_is_no_part_of_the_score() -> None:
    """Whatever is shown first is clicked: what was shown there owes nothing to its text."""
    learner = tiny_learner(LearnerSettings(lora=False), items=12)
    for index in range(150):
        items = [(index + step) % 12 for step in range(6)]
        learner.learn_lists(learner.observe_lists([listed(f"u{index}", index, items, items[:1])]))
    assert learner.lists.examination[1] > 0.5
    batch = learner.observe_lists([listed("new", 999, [0, 1, 2, 3, 4, 5], [])])
    turned = learner.observe_lists([listed("new", 999, [5, 4, 3, 2, 1, 0], [])])
    torch.testing.assert_close(learner.judge_lists(batch).scores[0], learner.judge_lists(turned).scores[0].flip(0))


def test_what_was_passed_over_is_known_of_the_next_list_and_not_of_its_own(learner: Learner) -> None:
    bought(learner, ("ann", 1, 0), ("bob", 1, 0))
    first = listed("ann", 0, [1, 2, 3], [1])
    lists = [first, listed("bob", 0, [4, 5], []), listed("bob", 1, [6, 7], [6], weight=0.0)]
    learner.learn_lists(learner.observe_lists(lists))
    assert learner.shoppers.passed_over("ann", MINUTE_MS) == [3, 2]
    assert learner.shoppers.passed_over("bob", MINUTE_MS) == []  # nothing clicked, perhaps not seen; or of no weight
    assert not passed_over_weights(learner.observe_lists([first])).any()
    later = learner.observe_lists([listed("ann", 1, [2, 9], [])])
    assert later.context_rows[passed_over_weights(later)[0] > 0].tolist() == [2, 3]
    batch = learner.observe([Bought("ann", None, "item-9", MINUTE_MS)])
    assert batch.contexts.passed.tolist() == [[3, 2]]
    learner.ranker.heads = learner.lists.heads + torch.linspace(-1, 1, len(FEATURES))
    torch.testing.assert_close(FrozenRanker(learner.ranker).score(batch.contexts), learner.judge(batch))


def passed_over_weights(batch: ListBatch) -> torch.Tensor:
    return batch.affinity_weights[AFFINITIES.index("passed_over_affinity")]


def test_who_passes_over_what_is_like_it_is_not_offered_it(learner: Learner) -> None:
    """Two kinds of shoppers: each clicks on one half of the items in every list and passes over the other half."""
    rng = np.random.default_rng(3)
    for minute in range(500):
        user, items = f"u{minute % 20}", rng.permutation(12)[:6].tolist()
        clicked = [item for item in items if item < 6] if minute % 2 else [item for item in items if item >= 6]
        bought(learner, *((user, item, minute) for item in clicked[:1]))
        learner.learn_lists(learner.observe_lists([listed(user, minute, items, clicked[:1])]))
    weights = dict(zip(FEATURES, learner.lists.heads.tolist(), strict=True))
    assert weights["passed_over_affinity"] < -0.1
    for served in (learner.ranker.heads, learner.lists.served_heads):  # scorers do not know what was passed over
        weights = dict(zip(FEATURES, served.tolist(), strict=True))
        assert [weights[name] for name in PASSED_OVER] == [0.0, 0.0]


def test_a_list_that_nothing_was_passed_over_before_is_scored_without_it(learner: Learner) -> None:
    other = tiny_learner(LearnerSettings(lora=False), items=12)
    for either in (learner, other):
        bought(either, ("ann", 1, 0), ("bob", 1, 0))
        either.learn_lists(either.observe_lists([listed("bob", 0, [1, 2], [1])]))
    other.lists.heads[FEATURES.index("passed_over_affinity")] = -9.0
    for user, same in (("ann", True), ("bob", False)):
        batch = learner.observe_lists([listed(user, 1, [2, 3, 4], [])])
        assert torch.allclose(learner.judge_lists(batch).scores[0], other.judge_lists(batch).scores[0]) == same


def test_forget_drops_a_shopper(learner: Learner) -> None:
    bought(learner, ("ann", 1, 0))
    assert learner.forget("ann")
    assert not learner.forget("ann")
    assert learner.observe_lists([listed("ann", 3, [1, 2], [])]).context_rows.tolist() == []


# ---- late clicks


def feedback(in_time: int, late: int) -> DelayedFeedback:
    counted = DelayedFeedback()
    counted.in_time, counted.late = in_time, late
    return counted


def test_weights_are_the_papers_when_all_clicks_are_late() -> None:
    counted = feedback(0, 10**9)
    p = torch.tensor([0.1, 0.5, 0.1, 0.5])
    weights = counted.weights(p, torch.tensor([True, True, False, False]))
    torch.testing.assert_close(weights, torch.tensor([1.1, 1.5, 0.9 * 1.1, 0.5 * 1.5]))


@pytest.mark.parametrize("p", [0.05, 0.3])
@pytest.mark.parametrize("late_share", [0.0, 0.4, 0.9])
def test_weighted_gradients_are_those_of_a_world_without_delay(p: float, late_share: float) -> None:
    """Of 1 shown, `p` are clicked; `late_share` of them are first learnt as negatives, then as positives."""
    counted = feedback(round((1 - late_share) * 10**9), round(late_share * 10**9))
    positive, negative = counted.weights(torch.tensor([p, p]), torch.tensor([True, False])).tolist()
    total = 1 + late_share * p
    assert positive * p / total == pytest.approx(p, rel=1e-5)
    assert negative * (1 - p + late_share * p) / total == pytest.approx(1 - p, rel=1e-5)


def test_few_late_clicks_are_taken_for_rare() -> None:
    assert feedback(0, 1).late_share == pytest.approx(1 / 11)
    assert feedback(5, 0).late_share == 0.0


def test_no_gradient_runs_through_the_weights() -> None:
    p = torch.tensor([0.3], requires_grad=True)
    assert not feedback(1, 100).weights(p, torch.tensor([False])).requires_grad


def batch_of(clicked: list[bool], owner: list[int], *, late: bool = False) -> ListBatch:
    learner = tiny_learner(LearnerSettings(lora=False), items=12)
    lists = [
        listed("ann", 0, list(range(owner.count(index))), [], is_correction=late) for index in range(max(owner) + 1)
    ]
    batch = learner.observe_lists(lists)
    batch.clicked[:] = clicked
    return batch


def test_the_loss_by_hand() -> None:
    batch = batch_of([True, False, False, True], [0, 0, 1, 1])
    scores = torch.tensor([2.0, 0.0, 5.0, 5.0])
    examination = torch.tensor([-1.0, 0.5])
    down = -0.5 * math.log(2)
    logits = [1 - 1, -1 - 1 + down, 0 - 1, 0 - 1 + down]  # each list's mean is taken off
    expected = sum(math.log1p(math.exp(-z if y else z)) for z, y in zip(logits, batch.clicked, strict=True)) / 2
    assert float(lists_loss(batch, scores, examination, feedback(1, 0))) == pytest.approx(expected, rel=1e-5)


def test_a_late_click_is_compared_with_what_lists_score_on_average() -> None:
    batch, counted = batch_of([True], [0], late=True), feedback(1, 0)
    counted.level = 1.5
    loss = lists_loss(batch, torch.tensor([2.0]), torch.tensor([-1.0, 0.0]), counted)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-(2.0 - 1.5 - 1.0))), rel=1e-5)
