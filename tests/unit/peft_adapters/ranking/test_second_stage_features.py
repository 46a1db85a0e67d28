"""Compiled loops compute what plain loops over dense tables compute, and each candidate on its own."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from peft_adapters.ranking.arrays import FloatArray
from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.item_facts import ItemFacts, ItemFactsTable
from peft_adapters.ranking.second_stage_features import SecondStageFeatures, VectorTable, newest_rows
from peft_adapters.ranking.session_neighbours import SessionNeighbours
from peft_adapters.ranking.shoppers import Contexts, pad
from peft_adapters.ranking.words import words
from peft_adapters.settings import SECOND_STAGE_FEATURES, SECOND_STAGE_GROUPS

ITEMS, DIM, MINUTE_MS, DAY_MS = 40, 16, 60_000, 86_400_000
SESSIONS, NEWEST_MS = 12, 1_700_000_000_000
VOCABULARY = [f"word{number}" for number in range(30)]


@dataclass
class World:
    """Everything that features follow from."""

    counters: Counters
    neighbours: SessionNeighbours
    sessions: dict[int, list[int]]
    texts: list[str]
    prices: list[float | None]
    query: torch.Tensor
    candidate: torch.Tensor
    text: torch.Tensor

    @property
    def facts(self) -> ItemFacts:
        table = ItemFactsTable()
        table.set(zip(range(ITEMS), self.texts, self.prices, strict=True))
        return table.facts()

    def features(self, contexts: Contexts, rows: "np.ndarray[tuple[int, int], np.dtype[np.int64]]") -> FloatArray:
        """Return features [features, contexts, candidates] from tables of all vectors."""
        query, candidate = VectorTable(self.query.numpy()), VectorTable(self.candidate.numpy())
        features = SecondStageFeatures.of(self.counters, self.neighbours, self.facts, self.text.numpy())
        return features.features(contexts, rows, query=query, candidate=candidate).swapaxes(0, 1)


def world(seed: int) -> World:
    rng, draw = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    counters = Counters()
    counters.grow(ITEMS)
    for _ in range(6):
        items = rng.integers(ITEMS - 5, size=50)  # the last items were never sold
        before = [rng.integers(ITEMS - 5, size=rng.integers(0, 25)).tolist()[:20] for _ in items]
        counters.update(items, before, rng.random(50) < 0.3)
    texts = [" ".join(rng.choice(VOCABULARY, size=rng.integers(0, 30))) for _ in range(ITEMS)]
    prices = [float(price) if price > 0 else None for price in rng.integers(0, 9, size=ITEMS)]
    vectors = [torch.nn.functional.normalize(torch.randn(ITEMS, DIM, generator=draw), dim=1) for _ in range(3)]
    neighbours, sessions = SessionNeighbours(), dict[int, list[int]]()
    keys, items = rng.integers(1, SESSIONS, size=90), rng.integers(ITEMS - 5, size=90)
    neighbours.grow(ITEMS)
    neighbours.update(items, keys, NEWEST_MS - DAY_MS * np.arange(90)[::-1])
    for key, item in zip(keys.tolist(), items.tolist(), strict=True):
        sessions.setdefault(key, []).append(item)
    return World(counters, neighbours, sessions, texts, prices, *vectors)


def history(rng: np.random.Generator, longest: int) -> tuple[list[int], list[int], list[int]]:
    count = int(rng.integers(0, longest))
    ages = np.sort(rng.integers(0, 4, size=count) + int(rng.integers(0, 2)))
    elapsed_ms = np.sort(rng.integers(0, 9 * DAY_MS, size=count))
    return rng.integers(ITEMS, size=count).tolist(), ages.tolist(), elapsed_ms.tolist()


def by_plain_loops(
    known: World, items: list[int], ages: list[int], elapsed_ms: list[int], row: int
) -> dict[str, float]:
    """Return the features of one candidate in one context by name."""
    dense = {}
    for name, matrix in known.counters.matrices.items():
        main, recent = matrix.parts()
        dense[name] = (main + recent).toarray().astype(float)
        np.fill_diagonal(dense[name], 0)  # an item is not a pair with itself
    events, n = known.counters.events.astype(float), len(items)
    session = [item for item, age in zip(items, ages, strict=True) if age == 0]
    newest = (session or items)[:20]
    found = dict.fromkeys(SECOND_STAGE_FEATURES, 0.0)

    def log(value: float, scale: float = 1.0) -> float:
        return math.log1p(scale * value)

    pair = [dense["cooccurrence"][item, row] for item in newest]
    follow = [dense["transition"][item, row] for item in newest]
    if newest:
        share = [count / (events[item] + 5) for count, item in zip(pair, newest, strict=True)]
        cosine = [
            count / math.sqrt((events[item] + 5) * (events[row] + 5)) for count, item in zip(pair, newest, strict=True)
        ]
        decay = [0.9**rank for rank in range(len(newest))]
        found |= {
            "cooccurrence_max": log(max(share), 100),
            "cosine_max": log(max(cosine), 50),
            "pair_support": log(sum(pair)),
            "pair_share": sum(count > 0 for count in pair) / len(newest),
            "cosine_mean": log(np.dot(cosine, decay) / sum(decay), 50),
            "cosine_last": log(cosine[0], 50),
            "cooccurrence_last": log(share[0], 100),
            "transition_max": log(
                max(
                    0.8**rank * count / (events[item] + 5)
                    for rank, (count, item) in enumerate(zip(follow, newest, strict=True))
                ),
                100,
            ),
            "transition_last": log(follow[0] / (events[items[0]] + 2), 100),
            "transition_count": log(follow[0]),
            "pair_count_last": log(max(pair[0] - follow[0], 0)),
            "transition_back": log(dense["transition"][row, items[0]] / (events[row] + 2), 100),
        }
    if n > 1:
        found["transition_second"] = log(dense["transition"][items[1], row] / (events[items[1]] + 2), 100)
    after = np.array([dense["followed"][item, row] for item in session[:10]])
    ahead = np.array([dense["followed"][row, item] for item in session[:10]])
    if session:
        orders = (after - ahead) / (after + ahead + 2)
        found |= {
            "order_last": orders[0],
            "order_mean": orders.mean(),
            "order_pooled": (after - ahead).sum() / ((after + ahead).sum() + 2),
            "order_min": orders.min(),
        }
    found |= {
        "evidence": log(events[row]),
        "repeat_rate": math.log((known.counters.repeated[row] + 1) / (events[row] + 5) / 0.2),
        "popularity_now": log(known.counters.popularity_now[row], 10),
        "events_since": log(known.counters.events_since_last[row]),
        "age": log(known.counters.events_since_first[row]),
    }
    earlier = [index for index in range(n) if items[index] == row and ages[index] > 0]
    if earlier:
        found |= {
            "gap_time": log(elapsed_ms[earlier[0]] / DAY_MS),
            "gap_sessions": log(ages[earlier[0]]),
            "bought_before": 1.0,
            "repeat_share": len(earlier) / len(set(ages)),
        }
    for index in range(1, n):
        after_it = items[1:index][::-1][:5] if items[index] == items[0] else []
        for distance, item in enumerate(after_it, start=1):
            if item == row:
                found["followed_last_time"] = max(found["followed_last_time"], 1 / distance)
    found["times_in_session"] = session.count(row)
    log_prices = [math.log(price) for item in newest if (price := known.prices[item]) is not None]
    if log_prices and (own := known.prices[row]) is not None:
        found["price_difference"] = math.log(own) - sum(log_prices) / len(log_prices)
        found["price_distance"] = abs(found["price_difference"])
    found |= {
        "session_length": log(len(session)),
        "history_length": log(n - len(session)),
        "sessions": log(max(ages, default=0)),
        "no_history": float(n == len(session)),
    }
    if items:
        found |= {
            "shopper_repeat_rate": sum(items.count(item) > 1 for item in items) / n,
            "pause": log(elapsed_ms[0] / MINUTE_MS),
            "last_evidence": log(events[items[0]]),
        }
        cosines = (known.query[newest] @ known.candidate[row]).double()
        attention = torch.exp(8 * (cosines - 1))
        text_cosines = known.text[newest[:10]] @ known.text[row]
        found |= {
            "similarity_max": cosines.max().item(),
            "similarity_max_near": cosines[:5].max().item(),
            "similarity_attention": ((attention * cosines).sum() / attention.sum()).item(),
            "similarity_mean": cosines.mean().item(),
            "text_last": text_cosines[0].item(),
            "text_max": text_cosines.max().item(),
            "text_max_near": text_cosines[:3].max().item(),
        }
        overlap = [word_cosine(known.texts, item, row) for item in newest[:10]]
        decay = [0.8**rank for rank in range(len(overlap))]
        found |= {
            "words_last": overlap[0],
            "words_max_near": max(overlap[:3]),
            "words_max": max(overlap),
            "words_mean": np.dot(overlap, decay) / sum(decay),
        }
    if n > 1:
        found["similarity_second"] = float(known.query[items[1]] @ known.candidate[row])
    compared = {*(session or items)[:15]}
    scores, totals = known.neighbours.scores(pad([(items, ages)]), np.array([NEWEST_MS]))
    of_row = scores[:, 0, row].tolist()
    for name, score in zip(("neighbours", "neighbours_after", "neighbours_any_position"), of_row, strict=True):
        found[name] = log(score / totals[0], 100) if totals[0] else 0.0
    found["neighbours_total"] = log(totals[0])
    found["neighbours_count"] = log(sum(not compared.isdisjoint(each) for each in known.sessions.values()))
    return found


def word_cosine(texts: list[str], left: int, right: int) -> float:
    sets = [set(list(dict.fromkeys(words(text)))[:24]) for text in texts]

    def weight(of: set[str]) -> float:
        return sum(math.log(len(texts) / sum(word in each for each in sets)) ** 2 for word in of)

    norms = math.sqrt(weight(sets[left]) * weight(sets[right]))
    return weight(sets[left] & sets[right]) / norms if norms else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_loops_compute_what_the_definitions_say(seed: int) -> None:
    known, rng = world(seed), np.random.default_rng(seed + 100)
    contexts = [history(rng, longest) for longest in (1, 4, 30, 128)]
    rows = np.stack([rng.permutation(ITEMS)[:7] for _ in contexts])
    found = known.features(pad(contexts), rows)
    for number, context in enumerate(contexts):
        for place, row in enumerate(rows[number].tolist()):
            expected = by_plain_loops(known, *context, row)
            values = dict(zip(SECOND_STAGE_FEATURES, found[:, number, place].tolist(), strict=True))
            assert values == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_every_feature_varies() -> None:
    known, rng = world(1), np.random.default_rng(0)
    contexts: list[tuple[list[int], list[int], list[int]]] = [([], [], []), *(history(rng, 60) for _ in range(19))]
    found = known.features(pad(contexts), np.tile(np.arange(ITEMS), (20, 1)))
    assert [name for name, values in zip(SECOND_STAGE_FEATURES, found, strict=True) if values.std() == 0] == []


@pytest.mark.parametrize("seed", range(3))
def test_a_candidate_has_the_same_features_whatever_else_is_asked_for(seed: int) -> None:
    known, rng = world(seed), np.random.default_rng(seed)
    contexts = [history(rng, 50) for _ in range(5)]
    together = known.features(pad(contexts), np.tile(np.arange(ITEMS), (5, 1)))
    for number, context in enumerate(contexts):
        for row in range(ITEMS):
            alone = known.features(pad([context]), np.array([[row]]))
            np.testing.assert_array_equal(alone[:, 0, 0], together[:, number, row])


def test_tables_of_some_vectors_serve_as_well_as_those_of_all() -> None:
    known, rng = world(2), np.random.default_rng(2)
    contexts, rows = pad([history(rng, 50) for _ in range(4)]), np.stack([rng.permutation(ITEMS)[:9] for _ in range(4)])
    query_rows, candidate_rows = newest_rows(contexts), np.unique(rows)
    features = SecondStageFeatures.of(known.counters, known.neighbours, known.facts, known.text.numpy())
    found = features.features(
        contexts,
        rows,
        query=VectorTable(known.query.numpy()[query_rows], query_rows),
        candidate=VectorTable(known.candidate.numpy()[candidate_rows], candidate_rows),
    )
    np.testing.assert_array_equal(found.swapaxes(0, 1), known.features(contexts, rows))


@pytest.mark.parametrize("contexts_and_row", [(pad([([ITEMS], [0])]), 1), (pad([([1], [0])]), ITEMS)])
def test_a_row_that_is_not_counted_is_refused(contexts_and_row: tuple[Contexts, int]) -> None:
    contexts, row = contexts_and_row
    with pytest.raises(IndexError, match=f"below {ITEMS}"):
        world(0).features(contexts, np.array([[row]]))


def test_items_without_facts_have_no_price_and_no_words() -> None:
    known, empty = world(0), ItemFacts.unknown(3)
    table = VectorTable(known.query.numpy())
    found = SecondStageFeatures.of(known.counters, known.neighbours, empty, known.text.numpy()).features(
        pad([([1, 2], [0, 0])]), np.array([[0, 30]]), query=table, candidate=table
    )
    names = {*SECOND_STAGE_GROUPS["price"], *SECOND_STAGE_GROUPS["words"]}
    of = [SECOND_STAGE_FEATURES.index(name) for name in names]
    assert not found[:, of].any()


@pytest.fixture
def table() -> ItemFactsTable:
    table = ItemFactsTable()
    table.set([(0, "red mug", 2.0), (1, "blue mug", None), (2, "lamp", 0.0)])
    return table


def test_facts_of_a_catalogue(table: ItemFactsTable) -> None:
    facts = table.facts()
    np.testing.assert_allclose(facts.log_prices, [math.log(2), math.nan, math.nan])
    assert facts.words[:, :3].tolist() == [[0, 1, -1], [2, 1, -1], [3, -1, -1]]
    np.testing.assert_allclose(facts.squared_idf, np.log([3, 3 / 2, 3, 3]) ** 2, rtol=1e-6)


CHANGES: dict[str, Callable[[ItemFactsTable], None]] = {
    "a new item": lambda table: table.set([(3, "mug lamp oak", 7.0)]),
    "another text": lambda table: table.set([(0, "oak", 2.0)]),
    "another price": lambda table: table.set([(0, "red mug", 3.0)]),
    "many items": lambda table: table.set((row, f"w{row} mug", 1.0) for row in range(3, 3_000)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_facts_stay_as_they_are_while_the_catalogue_changes(
    table: ItemFactsTable, change: Callable[[ItemFactsTable], None]
) -> None:
    facts = table.facts()
    kept = [values.copy() for values in facts]
    change(table)
    assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(facts, kept, strict=True))
    changed = table.facts()
    assert not all(np.array_equal(*pair, equal_nan=True) for pair in zip(changed, kept, strict=True))


def test_words_of_a_former_text_do_not_count(table: ItemFactsTable) -> None:
    table.set([(0, "lamp", 2.0)])
    facts = table.facts()
    np.testing.assert_allclose(facts.squared_idf[[1, 3]], np.log([3, 3 / 2]) ** 2, rtol=1e-6)


def test_facts_in_another_order_of_rows(table: ItemFactsTable) -> None:
    facts = table.facts().of_rows(np.array([2, -1, 0]))
    np.testing.assert_allclose(facts.log_prices, [math.nan, math.nan, math.log(2)])
    assert facts.words[:, :2].tolist() == [[3, -1], [-1, -1], [0, 1]]
