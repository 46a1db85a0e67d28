"""One run of a backtest: one policy, one seed, the whole stream in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from peft_adapters.catalogue import Catalogue
from peft_adapters.encoder import Encoder
from peft_adapters.learner import Learner
from peft_adapters.modalities import CatalogueItem
from peft_adapters.prefix_cache import PrefixCache
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.backtest.policies import Policy, policy_settings
from services.backtest.replay import Data, Outcome, Replay
from services.backtest.rivals import LearnerRival
from services.backtest.river_rival import RiverRival
from services.backtest.stream import chunks
from services.input_file import opened_text
from services.input_rows import RefusedRows, table_rows
from services.items import catalogue_item
from services.replay.dataset import DatasetError, read_items
from streams.joiner import Example

_WARM_UP_GAP_MS = 24 * 3_600_000  # so that no session goes on from the warm-up into the data


@dataclass(frozen=True, slots=True)
class Start:
    """What learners start from, where it is not nothing.

    Attributes:
        begin: brings a fresh learner there, before it is given the catalogue; it is sent to other processes.
        learnt: the share of the stream's events that is learnt there: they are replayed, and not learnt again.
    """

    begin: Callable[[Learner], None]
    learnt: float = 0.0


def read_catalogue(path: Path, *, refused: RefusedRows | None = None) -> list[CatalogueItem]:
    """Items in file order: ids, texts and, where they have any, vectors.

    Args:
        path: a table of items.
        refused: takes the rows that are no valid items; without it the first one is an error.
    """
    return [catalogue_item(item) for item in read_items(path, refused=refused)]


def read_warm_up(path: Path, known: set[str], before_ms: int) -> list[Example]:
    """Earlier items of users (user_id, prior_items oldest first) as purchases a second apart, all before `before_ms`.

    Raises:
        DatasetError: the file cannot be read, or has not those columns.
    """
    pairs = [(user, item) for user, prior in _histories(path) for item in prior.split() if item in known]
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
    columns = ("user_id", "prior_items")
    with opened_text(path) as text:
        for row in table_rows(text, path, required=columns, known=columns):
            if row.fault is not None:
                raise DatasetError(f"{path}, row {row.number}: {row.fault} (line {row.line})")
            yield row.cells["user_id"], row.cells["prior_items"]


def run_policy(
    policy: Policy,
    data: Data,
    *,
    encoder: EncoderSettings,
    learner: LearnerSettings,
    progress: Callable[[int], None],
    start: Start | None = None,
) -> Outcome:
    """Replay the stream: every event and list is judged by what was published before its micro-batch, then learnt.

    Args:
        policy: who ranks.
        data: the stream.
        encoder: of the learner.
        learner: before the policy takes parts away; its seed is the run's.
        progress: told of every micro-batch's events.
        start: what learners start from.
    """
    if policy.rule == "river":
        replay = Replay(policy, data, RiverRival(data.items, seed=learner.seed))
    else:
        rival = _learner_rival(policy, data, encoder, learner, start)
        replay = Replay(policy, data, rival, learnt_before=start.learnt if start else 0.0)
    replay.warm_up()
    for chunk in chunks(data.stream, data.batch_events):
        replay.judge(chunk)
        replay.learn(chunk)
        if chunk.examples:
            progress(len(chunk.examples))
    return replay.outcome()


def _learner_rival(
    policy: Policy, data: Data, encoder: EncoderSettings, learner: LearnerSettings, start: Start | None
) -> LearnerRival:
    settings = policy_settings(learner, policy.rule, learner.seed)
    # The learner itself need not look at the whole catalogue: what ranks is a copy.
    model = new_learner(
        encoder.model_copy(update={"lora_seed": learner.seed}), settings.model_copy(update={"judged_items": 1})
    )
    if start is not None:
        start.begin(model)
    model.add_items(data.items)
    return LearnerRival(model, with_lists=bool(data.stream.lists))


def new_learner(encoder_settings: EncoderSettings, settings: LearnerSettings) -> Learner:
    """A learner of an empty catalogue, its frozen activations kept in the settings' cache."""
    encoder = Encoder(encoder_settings)
    return Learner(encoder, Catalogue(PrefixCache.of(encoder)), settings)
