"""A single run of a backtest: one policy, one seed, the whole stream in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peft_adapters.learning.learner import Learner
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.lab.backtest.policies import Policy, policy_settings
from services.lab.backtest.policy_models import LearnerModel, PolicyModel
from services.lab.backtest.replay import Data, Outcome, Replay
from services.lab.backtest.river_baseline import RiverBaseline
from services.lab.backtest.stan_baseline import StanBaseline
from services.lab.offline.inputs import new_learner
from services.lab.offline.stream import chunks


@dataclass(frozen=True, slots=True)
class Start:
    """The state that learners start from.

    Attributes:
        begin: loads the state into an empty learner.
        learnt: share of the stream's events that the state has learnt already.
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
    """Replay the stream: every event and list is judged by the state published before its micro-batch, then learnt.

    Args:
        policy: the policy to run.
        data: the data to replay.
        encoder: settings of the encoder.
        learner: settings of the learner before the policy changes them; their seed is the run's.
        progress: called with the number of events of each micro-batch.
        start: the state that learners start from; None starts with nothing learnt.
    """
    if policy.rule in _BASELINES:
        replay = Replay(policy, data, _BASELINES[policy.rule](data, encoder, learner))
    else:
        model = _learner_model(policy, data, encoder, learner, start)
        replay = Replay(policy, data, model, learnt_before=start.learnt if start else 0.0)
    replay.warm_up()
    for chunk in chunks(data.stream, data.batch_events):
        replay.judge(chunk)
        replay.learn(chunk)
        if chunk.examples:
            progress(len(chunk.examples))
    replay.judge_queries()
    return replay.outcome()


def _river(data: Data, encoder: EncoderSettings, learner: LearnerSettings) -> PolicyModel:
    return RiverBaseline(data.items, seed=learner.seed)


def _stan(data: Data, encoder: EncoderSettings, learner: LearnerSettings) -> PolicyModel:
    return StanBaseline(data.items)


def _lambdamart(data: Data, encoder: EncoderSettings, learner: LearnerSettings) -> PolicyModel:
    from services.lab.backtest.lambdamart_baseline import LambdaMartBaseline  # LightGBM is an optional dependency

    model = new_learner(encoder, learner)
    model.add_items(data.items)
    text = model.ranker.text.numpy()
    guests = data.stream.guests
    return LambdaMartBaseline(model.catalogue.rows, text, prices=data.prices, guests=guests, seed=learner.seed)


_BASELINES: dict[str, Callable[[Data, EncoderSettings, LearnerSettings], PolicyModel]] = {
    "river": _river,
    "stan": _stan,
    "lambdamart": _lambdamart,
}


def _learner_model(
    policy: Policy, data: Data, encoder: EncoderSettings, learner: LearnerSettings, start: Start | None
) -> LearnerModel:
    settings = policy_settings(learner, policy.rule, learner.seed, left_out=policy.left_out)
    # The learner itself need not score the whole catalogue, because a published copy of it ranks.
    model = new_learner(
        encoder.model_copy(update={"lora_seed": learner.seed}), settings.model_copy(update={"judged_items": 1})
    )
    if start is not None:
        start.begin(model)
    model.add_items(data.items)
    return LearnerModel(model, with_lists=bool(data.stream.lists))
