"""One run of a backtest: one policy, one seed, the whole stream in order."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from peft_adapters.catalogue import Catalogue, item_text
from peft_adapters.encoder import Encoder
from peft_adapters.learner import Learner
from peft_adapters.prefix_cache import PrefixCache
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.backtest.judging import Ranks
from services.replay.dataset import DatasetError, read_events, read_items
from streams.events import Click, Purchase
from streams.joiner import Example, example_of

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


def read_examples(path: Path, known: set[str], *, max_events: int | None) -> list[Example]:
    """Clicks and purchases in time order; other rows are passed over.

    Raises:
        DatasetError: there is none, or one is of an item that the catalogue does not have.
    """
    events = (event for event in read_events(path) if isinstance(event, Click | Purchase))
    examples = [example_of(event, publish_ts_ms=event.ts) for event in islice(events, max_events)]
    if not examples:
        raise DatasetError(f"{path}: expected clicks or purchases, found none; check its event_type column")
    unknown = {example.item_id for example in examples} - known
    if unknown:
        raise DatasetError(
            f"{path}: {len(unknown)} items are not in the catalogue, among them {sorted(unknown)[:3]}; "
            "add them to --items"
        )
    return sorted(examples, key=lambda example: example.ts)


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
    examples: Sequence[Example],
    batch_events: int,
    progress: Callable[[int], None],
) -> Ranks:
    """Replay the stream: every event is judged by what stood after the batch before, then learnt."""
    model = new_learner(encoder.model_copy(update={"lora_seed": learner.seed}), learner)
    model.add_items(items)
    for earlier in _batches(warm_up, batch_events):
        model.learn(model.observe(earlier))
    ranks = Ranks()
    sold_items = {example.item_id for example in warm_up}
    users = {example.user_id for example in warm_up}
    for examples_of_batch in _batches(examples, batch_events):
        sold = model.ranker.counters.events > 0
        batch = model.observe(examples_of_batch)
        ranks.add(model.judge(batch), batch.items, sold)
        model.learn(batch)
        for example in examples_of_batch:
            ranks.first_of_item.append(example.item_id not in sold_items)
            ranks.new_user.append(example.user_id not in users)
            sold_items.add(example.item_id)
            users.add(example.user_id)
        progress(len(examples_of_batch))
    return ranks


def new_learner(encoder_settings: EncoderSettings, settings: LearnerSettings) -> Learner:
    """A learner of an empty catalogue, its frozen activations kept in the settings' cache."""
    encoder = Encoder(encoder_settings)
    return Learner(encoder, Catalogue(PrefixCache.of(encoder)), settings)


def _batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]
