"""One run of a backtest: one policy, one seed, the whole stream in order."""

from __future__ import annotations

import csv
import gzip
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from peft_adapters.catalogue import Catalogue, item_text
from peft_adapters.encoder import Encoder
from peft_adapters.learner import Learner
from peft_adapters.prefix_cache import PrefixCache
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.backtest.judging import Ranks
from services.backtest.stream import Shown, Stream, chunks
from services.replay.dataset import DatasetError, read_items
from streams.joiner import Example, ShownList

_WARM_UP_GAP_MS = 24 * 3_600_000  # so that no session goes on from the warm-up into the data


def read_catalogue(path: Path) -> list[tuple[str, str]]:
    """Item ids and texts, in file order."""
    return [
        (
            item.item_id,
            item_text(title=item.title, brand=item.brand, category=item.category, description=item.description),
        )
        for item in read_items(path)
    ]


def read_warm_up(path: Path, known: set[str], before_ms: int) -> list[Example]:
    """Earlier items of users (user_id, prior_items oldest first) as purchases a second apart, all before `before_ms`.

    Raises:
        DatasetError: the file cannot be read, or has not those columns.
    """
    try:
        pairs = [(user, item) for user, prior in _histories(path) for item in prior.split() if item in known]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    start = before_ms - _WARM_UP_GAP_MS - 1_000 * len(pairs)
    return [
        Example(
            event_id=f"warm-up-{index}",
            user_id=user,
            session_id=None,
            item_id=item,
            ts=start + 1_000 * index,
            kind="purchase",
            scenario="home",
            position=None,
            publish_ts_ms=0,
        )
        for index, (user, item) in enumerate(pairs)
    ]


def _histories(path: Path) -> Iterator[tuple[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if not {"user_id", "prior_items"} <= set(reader.fieldnames or ()):
            raise DatasetError(
                f"{path}: expected columns user_id and prior_items, found {reader.fieldnames}; see the README"
            )
        for row in reader:
            yield row["user_id"], row["prior_items"]


def run_policy(
    *,
    encoder: EncoderSettings,
    learner: LearnerSettings,
    items: Sequence[tuple[str, str]],
    warm_up: Sequence[Example],
    stream: Stream,
    batch_events: int,
    progress: Callable[[int], None],
) -> Ranks:
    """Replay the stream: every event and list is judged by what stood after the batch before, then learnt."""
    model = new_learner(encoder.model_copy(update={"lora_seed": learner.seed}), learner)
    model.add_items(items)
    for earlier in _batches(warm_up, batch_events):
        model.learn(model.observe(earlier))
    ranks = Ranks()
    sold_items = {example.item_id for example in warm_up}
    users = {example.user_id for example in warm_up}
    pending: list[tuple[int, ShownList]] = []  # lessons that are not due yet, in order of their time
    for chunk in chunks(stream, batch_events):
        ranks.add_lists(*_judged_lists(model, chunk.lists))
        if chunk.examples:
            _judge_and_learn(model, chunk.examples, ranks, sold_items, users)
            progress(len(chunk.examples))
        pending += [lesson for shown in chunk.lists for lesson in shown.lessons]
        pending.sort(key=lambda lesson: lesson[0])
        due = bisect_right(pending, chunk.end_ms, key=lambda lesson: lesson[0])
        model.learn_lists(model.observe_lists([shown for _, shown in pending[:due]]))
        del pending[:due]
    return ranks


def _judged_lists(model: Learner, lists: Sequence[Shown]) -> tuple[list[Tensor], list[Sequence[bool]]]:
    """Scores of what was shown, and what was clicked of it: before any of its clicks is learnt."""
    # Nothing is known yet of what will be clicked, as it is where the list is ranked.
    asked = [replace(shown.as_shown, clicked=(False,) * len(shown.as_shown.clicked)) for shown in lists]
    return model.judge_lists(model.observe_lists(asked)), [shown.as_shown.clicked for shown in lists]


def _judge_and_learn(
    model: Learner, examples: Sequence[Example], ranks: Ranks, sold_items: set[str], users: set[str]
) -> None:
    sold = model.ranker.counters.events > 0
    batch = model.observe(examples)
    ranks.add(model.judge(batch), batch.items, sold)
    model.learn(batch)
    for example in examples:
        ranks.first_of_item.append(example.item_id not in sold_items)
        ranks.new_user.append(example.user_id not in users)
        sold_items.add(example.item_id)
        users.add(example.user_id)


def new_learner(encoder_settings: EncoderSettings, settings: LearnerSettings) -> Learner:
    """A learner of an empty catalogue, its frozen activations kept in the settings' cache."""
    encoder = Encoder(encoder_settings)
    return Learner(encoder, Catalogue(PrefixCache.of(encoder)), settings)


def _batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]
