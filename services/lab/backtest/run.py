"""One run of a backtest: one policy, one seed, the whole stream in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peft_adapters.learning.learner import Learner
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.lab.backtest.policies import Policy, policy_settings
from services.lab.backtest.replay import Data, Outcome, Replay
from services.lab.backtest.rivals import LearnerRival
from services.lab.backtest.river_rival import RiverRival
from services.lab.offline.inputs import new_learner
from services.lab.offline.stream import chunks


@dataclass(frozen=True, slots=True)
class Start:
    """What learners start from, where it is not nothing.

    Attributes:
        begin: brings a fresh learner there, before it is given the catalogue; it is sent to other processes.
        learnt: the share of the stream's events that is learnt there: they are replayed, and not learnt again.
    """

    begin: Callable[[Learner], None]
    learnt: float = 0.0


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
