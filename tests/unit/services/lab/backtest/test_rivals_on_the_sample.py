"""The baselines and slices on the bundled sample of a shop's purchases, with titles as bags of words."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

import services.lab.demo
from peft_adapters.ranking.arrays import FloatArray
from peft_adapters.settings import LearnerSettings
from services.data.dataset import read_items
from services.lab.backtest.policies import parse_policies
from services.lab.backtest.policy_models import PolicyModel
from services.lab.backtest.replay import Data, Replay
from services.lab.backtest.stan_baseline import StanBaseline
from services.lab.offline.judging import Ranks, figures
from services.lab.offline.slices import slice_figures, slices
from services.lab.offline.stream import chunks, read_stream

SAMPLE = Path(services.lab.demo.__file__).parent / "data"
EVENTS = 1_200


@pytest.fixture(scope="module")
def data() -> Data:
    items = list(read_items(SAMPLE / "items.csv.gz"))
    known = {item.item_id for item in items}
    stream = read_stream(SAMPLE / "events.csv.gz", known, max_events=EVENTS, click_window_seconds=600)
    prices = {item.item_id: item.price for item in items if item.price is not None}
    return Data([(item.item_id, item.title) for item in items], [], stream, 128, prices=prices)


def ranks(data: Data, name: str, model: PolicyModel) -> Ranks:
    replay = Replay(parse_policies([name])[0], data, model)
    for chunk in chunks(data.stream, data.batch_events):
        replay.judge(chunk)
        replay.learn(chunk)
    return replay.outcome().ranks


def bags_of_words(titles: Sequence[str]) -> FloatArray:
    vectors = np.zeros((len(titles), 256), dtype=np.float32)
    for vector, title in zip(vectors, titles, strict=True):
        for word in title.split():
            vector[crc32(word.encode()) % 256] += 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def popular(data: Data) -> Ranks:
    """Return the ranks by the number of events before each micro-batch."""
    rows = {item[0]: row for row, item in enumerate(data.items)}
    sold, places = np.zeros(len(rows)), array("i")
    for chunk in chunks(data.stream, data.batch_events):
        bought = [rows[example.item_id] for example in chunk.examples]
        places.extend(int((sold >= sold[row]).sum()) for row in bought)
        np.add.at(sold, bought, 1)
    return Ranks(rank=places)


def test_stan_ranks_better_than_popularity(data: Data) -> None:
    stan = ranks(data, "stan", StanBaseline(data.items))
    assert figures(stan)["hr20"] > 2 * np.mean(np.array(popular(data).rank) <= 20)


def test_lambdamart_ranks_better_than_stan(data: Data) -> None:
    pytest.importorskip("lightgbm")
    from services.lab.backtest.lambdamart_baseline import LambdaMartBaseline

    text = bags_of_words([item[1] for item in data.items])
    rows = {item[0]: row for row, item in enumerate(data.items)}
    seed, guests = LearnerSettings().seed, data.stream.guests
    trees = ranks(data, "lambdamart", LambdaMartBaseline(rows, text, prices=data.prices, guests=guests, seed=seed))
    stan = ranks(data, "stan", StanBaseline(data.items))
    assert figures(trees)["ndcg20"] > figures(stan)["ndcg20"], (figures(trees), figures(stan))


def test_slices_add_up_to_all_events(data: Data) -> None:
    parts, stan = slices(data.stream), ranks(data, "stan", StanBaseline(data.items))
    values = slice_figures(stan, parts)
    for names in (("session_first", "session_2_3", "session_later"), ("repeat", "not_repeat")):
        assert sum(values[f"events_{name}"] for name in names) == EVENTS
        mean = sum(values[f"events_{name}"] * values[f"ndcg20_{name}"] for name in names) / EVENTS
        assert mean == pytest.approx(figures(stan)["ndcg20"])
