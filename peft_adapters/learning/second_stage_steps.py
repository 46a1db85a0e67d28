"""Steps of the second stage: networks learnt from clicks and purchases, one from lists, and how much each kind pays.

After each micro-batch a network takes some steps on it and some on groups drawn from the newest ones: interactions
between features are learnt slowly, and without replay a network gains nothing over the linear score. A group is an
event with its candidates, or a list with its items.

Each network is judged on groups it has not learnt, against the first stage alone. Its strength, the factor on its
output, follows from that trial, so that it costs nothing where it does not pay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.list_steps import NOT_OF_LISTS
from peft_adapters.learning.network_learner import NetworkLearner
from peft_adapters.learning.replay_ring import ReplayRing
from peft_adapters.learning.second_stage_groups import EventGroups
from peft_adapters.learning.second_stage_lists import ListGroups
from peft_adapters.learning.state_dicts import StateDict
from peft_adapters.learning.trial import Trial
from peft_adapters.ranking.second_stage import INPUT_NAMES, NETWORKS, SecondStage
from peft_adapters.settings import PASSED_OVER, SECOND_STAGE_GROUPS, LearnerSettings

_KEPT_GROUPS = 7_680
_NEW_STEPS, _REPLAY_STEPS = 4, 8  # after each micro-batch
_FEWEST_NEW = 16  # new groups before which no step is taken, so that small micro-batches cost no more than large ones
_STEP_GROUPS = 64  # of a step, at most; half as many as events of a micro-batch cost half as much and lose little
# Of features that only the second stage uses, those that count a list's own clicks.
_COUNTING = {name for group in ("pairs", "order", "item", "neighbours") for name in SECOND_STAGE_GROUPS[group]}

_LEVELS = 255  # of a replayed input
_SMALLEST_STEP = 1e-12

_Gradient = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


class SecondStageSteps:
    """All networks while they learn, and the trials that decide on their strengths.

    Args:
        settings: how to learn.

    Attributes:
        trials: by what networks learn from, the trial of their mean against the first stage alone.
    """

    def __init__(self, settings: LearnerSettings) -> None:
        self._settings = settings
        unused = {*PASSED_OVER, *(set(INPUT_NAMES[:-1]) - set(settings.features))}
        masked = {"positives": unused, "lists": unused | {*NOT_OF_LISTS} | _COUNTING}
        self._networks = {
            name: NetworkLearner(
                torch.tensor([float(feature not in masked[name]) for feature in INPUT_NAMES]),
                networks=NETWORKS.count(name),
                seed=settings.seed + place,
            )
            for place, name in enumerate(masked)
        }
        self._replays = {name: ReplayRing(_KEPT_GROUPS) for name in masked}
        self.trials = {name: Trial() for name in masked}

    def served(self, listed_share: float) -> SecondStage:
        """Return the networks as they are served, blended as the heads are.

        Args:
            listed_share: share of the events that came in lists.
        """
        shares, parts = {"positives": 1 - listed_share, "lists": listed_share}, []
        for name, learner in self._networks.items():
            count = NETWORKS.count(name)
            strength = torch.full((count,), self.trials[name].share * shares[name] / count)
            scaling = {"mean": learner.mean.expand(count, -1), "scale": learner.scale.expand(count, -1)}
            parts.append(scaling | learner.weights | {"strength": strength})
        return SecondStage(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def step(self, groups: EventGroups, *, number: int) -> None:
        """Judge the networks of clicks and purchases on new events, then learn them.

        Args:
            groups: events that are not learnt yet.
            number: number of this step; it seeds the draws from the replay.
        """
        self._step("positives", groups, self._event_gradient, number)

    def step_lists(self, groups: ListGroups, *, number: int) -> None:
        """Judge the network of lists on new lists, then learn them; arguments as in `step`."""
        self._step("lists", groups, list_gradient, number)

    def _step(self, name: str, groups: EventGroups | ListGroups, gradient: _Gradient, number: int) -> None:
        if not len(groups):
            return
        network, replay = self._networks[name], self._replays[name]
        self.trials[name].add(groups.gains(self._output(network, groups.inputs)))
        inputs, is_candidate = groups.inputs.transpose(0, 1), groups.is_candidate
        network.observe(inputs.flatten(1) if bool(is_candidate.all()) else inputs[:, is_candidate])
        replay.add(quantised(groups.inputs) | groups.kept())
        if replay.waiting < _FEWEST_NEW:
            return
        new = replay.take_new()
        generator = np.random.default_rng([self._settings.seed, number, 3])
        for step in range(_NEW_STEPS + _REPLAY_STEPS):
            is_new = step < _NEW_STEPS
            drawn = _some(new, generator) if is_new else replay.draw(generator, _STEP_GROUPS)
            network.step(_standardised(network, drawn), lambda output, drawn=drawn: gradient(output, drawn))  # type: ignore[misc]

    @staticmethod
    def _output(network: NetworkLearner, inputs: Tensor) -> Tensor:
        """Return the outputs [groups, candidates] for inputs [groups, inputs, candidates]."""
        flat = network.standardised(inputs.transpose(0, 1)).flatten(1)
        return network.output(flat).view(len(inputs), -1)

    def _event_gradient(self, output: Tensor, events: Mapping[str, Tensor]) -> Tensor:
        """Return the gradient of the focused loss, see `losses.generalised_cross_entropy`, in the outputs [all]."""
        scores, weight = events["scores"], events["weight"]
        probability = torch.softmax(output.view(scores.shape) + scores, dim=1)
        likely = probability[:, 0] ** self._settings.loss_focus * weight / len(scores)
        probability[:, 0] -= 1
        return (probability * likely[:, None]).flatten()

    # ---- state

    def clear_replay(self) -> None:
        """Discard all groups that are kept for replay."""
        for replay in self._replays.values():
            replay.clear()

    def state_dict(self) -> StateDict:
        """Return weights, optimisers, standardisation and trials; nothing if the second stage is off."""
        if not self._settings.second_stage:
            return {}
        return {
            name: network.state_dict() | {"trial": self.trials[name].state_dict()}
            for name, network in self._networks.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; one of no networks, or of others than today's, is nothing learnt. Discard the replay."""
        self.clear_replay()
        for name, network in self._networks.items():
            part = dict(state.get(name, {}))
            trial = part.pop("trial", {})
            self.trials[name].load_state_dict(trial if network.fits(part) else {})
            network.load_state_dict(part)

    def replay_state_dict(self) -> StateDict:
        """Return the groups kept for replay."""
        return {name: replay.state_dict() for name, replay in self._replays.items()}

    def load_replay(self, state: Mapping[str, Any]) -> None:
        """Restore what `replay_state_dict` returned; groups with other inputs than today's are discarded."""
        for name, replay in self._replays.items():
            part = state.get(name, {})
            has_inputs = bool(part) and part["low"].shape[1] == len(INPUT_NAMES)
            replay.load_state_dict(part if has_inputs else {})

    def load_published(self, published: SecondStage, listed_share: float) -> None:
        """Start from the networks of a bundle, at their strengths until a trial says otherwise.

        Args:
            published: networks as they were served.
            listed_share: share of the events that came in lists.
        """
        shares = {"positives": 1 - listed_share, "lists": listed_share}
        for name, network in self._networks.items():
            own = torch.tensor([kind == name for kind in NETWORKS])
            strength = float(published.strength[own].sum())
            if strength:
                network.load_published({key: value[own] for key, value in published.tensors().items()})
                self.trials[name].restart(min(1.0, strength / shares[name]))


def quantised(inputs: Tensor) -> dict[str, Tensor]:
    """Return inputs [groups, inputs, candidates] as whole numbers of 8 bits, between each group's extremes."""
    low, high = inputs.amin(dim=2, keepdim=True), inputs.amax(dim=2, keepdim=True)
    step = (high - low) / _LEVELS
    levels = ((inputs - low) / step.clamp(min=_SMALLEST_STEP)).round_().to(torch.uint8)
    return {"levels": levels, "low": low, "step": step}


def _some(groups: Mapping[str, Tensor], generator: np.random.Generator) -> Mapping[str, Tensor]:
    """Return groups drawn at random without replacement, or all of few groups."""
    count = len(groups["levels"])
    if count <= _STEP_GROUPS:
        return groups
    places = torch.from_numpy(generator.permutation(count)[:_STEP_GROUPS])
    return {name: value[places] for name, value in groups.items()}


def _standardised(network: NetworkLearner, kept: Mapping[str, Tensor]) -> Tensor:
    """Return the standardised inputs [used inputs, all candidates] of replayed groups."""
    return network.standardised_levels(kept["levels"], kept["low"], kept["step"]).flatten(1)


def list_gradient(output: Tensor, lists: Mapping[str, Tensor]) -> Tensor:
    """Return the gradient of the logistic loss of `losses.lists_loss` in the outputs [all], centred in each list."""
    logits, clicked, weight = lists["logits"], lists["clicked"], lists["weight"]
    output = output.view(logits.shape)
    is_item = logits > -torch.inf
    count = is_item.sum(dim=1, keepdim=True).clamp(min=1)
    centred = output - (output * is_item).sum(dim=1, keepdim=True) / count
    slope = weight * (torch.sigmoid(logits + centred) - clicked) / len(logits)
    slope = slope - slope.sum(dim=1, keepdim=True) / count
    return (slope * is_item).flatten()
