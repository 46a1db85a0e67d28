"""Events as the second stage learns from them, before they are learnt: each with the candidates to re-rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peft_adapters.learning.batches import Batch
from peft_adapters.ranking.affinities import affinity_features, weighted_sum
from peft_adapters.ranking.arrays import IntArray
from peft_adapters.ranking.counter_features import CounterFeatures
from peft_adapters.ranking.features import affinity_weights, context_weights
from peft_adapters.ranking.ranker import Ranker
from peft_adapters.ranking.second_stage import RERANKED, gather_features
from peft_adapters.ranking.second_stage_features import VectorTable

_SCORED_CELLS = 640_000  # events times items, so that the scores of a micro-batch cost the same in any catalogue
_MOST_EVENTS, _FEWEST_EVENTS = 128, 8
_WHOLE_ITEMS = 100_000  # of a larger catalogue, a sample is scored
CANDIDATES = 48  # of an event
_HARDEST = 16  # of them: the event's item and the best others


@dataclass(frozen=True, slots=True)
class EventGroups:
    """Events whose item is among the candidates that the second stage would re-rank.

    Attributes:
        inputs: [events, inputs, candidates] inputs of the candidates; the event's item comes first.
        scores: [events, candidates] scores by the first stage.
        log_expected: [events, candidates] log of the probability that a candidate is in the sample.
        weight: [events] weight in the loss.
    """

    inputs: Tensor
    scores: Tensor
    log_expected: Tensor
    weight: Tensor

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.weight)

    @property
    def is_candidate(self) -> Tensor:
        """Return for each place whether it holds a candidate, [events, candidates]."""
        return self.scores > -torch.inf

    def gains(self, output: Tensor) -> Tensor:
        """Return how much a network's outputs [events, candidates] improve the discounted gain, [events]."""
        return self._gain(self.scores + output) - self._gain(self.scores)

    def _gain(self, scores: Tensor) -> Tensor:
        """Return the discounted gain of each event's item at its estimated rank, [events]."""
        above = (scores[:, 1:] >= scores[:, :1]) * torch.exp(-self.log_expected[:, 1:])
        return 1 / torch.log2(2 + above.sum(dim=1))

    def kept(self) -> dict[str, Tensor]:
        """Return what a step on these events needs, beside the inputs."""
        return {"scores": self.scores - self.log_expected, "weight": self.weight}


def event_groups(
    batch: Batch, ranker: Ranker, *, novelty: Tensor | None = None, generator: np.random.Generator
) -> EventGroups:
    """Return some of a micro-batch's events, each with the candidates that the second stage would re-rank.

    The whole catalogue is scored, because the best of a sample are worse than those that are re-ranked. So that this
    takes the same time for any catalogue, the events are the fewer the larger it is. Of a catalogue too large even for
    that, the sampled candidates are used: each stands for `1 / probability` items, so its estimated rank is the sum
    over those above it.

    Args:
        batch: micro-batch that is neither learnt nor counted yet.
        ranker: weights of the first stage that the network is added to.
        novelty: [events] what each event can still teach about searches: the probability that it is used; None if no
            event has a query.
        generator: draws events and candidates.
    """
    whole = len(ranker) <= _WHOLE_ITEMS
    events = _used_events(len(batch), novelty, generator, most=_SCORED_CELLS // len(ranker) if whole else _MOST_EVENTS)
    contexts, columns = batch.contexts.part(events), None if whole else batch.candidates
    counted = torch.from_numpy(CounterFeatures.of(ranker.counters).features(contexts, columns))
    rows = contexts.rows()
    query_vectors, candidate_vectors = ranker.vectors("query", rows), ranker.vectors("candidate", columns)
    affinities = affinity_features(
        affinity_weights(context_weights(contexts, len(ranker)), rows),
        query_vectors,
        candidate_vectors,
        ranker.global_preference,
        ranker.text_share(columns),
        None if batch.query_vector is None else batch.query_vector[torch.from_numpy(events)],
    )
    scores = weighted_sum(ranker.heads, counted, affinities)
    targets = batch.items[events] if columns is None else np.searchsorted(columns, batch.items[events])
    log_expected = torch.zeros(len(ranker)) if columns is None else batch.log_expected
    places, best, expected = _drawn(*_best_of(scores, torch.from_numpy(targets), log_expected), generator)
    kept = torch.nonzero(best[:, 0] > -torch.inf)[:, 0]
    of_first_stage = gather_features(counted, affinities, places)[:, kept]
    places, best, expected = places[kept], best[kept], expected[kept]
    more = ranker.second_stage_features().features(
        contexts.part(kept.numpy()),
        places.numpy() if columns is None else columns[places.numpy()],
        query=VectorTable(query_vectors.numpy(), rows),
        candidate=VectorTable(candidate_vectors.numpy(), columns),
    )
    inputs = [of_first_stage.transpose(0, 1), torch.from_numpy(more), best.clamp(min=-1e4)[:, None]]
    return EventGroups(
        _padded(torch.cat(inputs, dim=1), 0.0),
        _padded(best, -torch.inf),
        _padded(expected, 0.0),
        batch.weight[torch.from_numpy(events)][kept],
    )


def _used_events(size: int, novelty: Tensor | None, generator: np.random.Generator, *, most: int) -> IntArray:
    """Return the indices of the events that are used, spread over the micro-batch of `size`."""
    events = np.arange(size)
    if novelty is not None:
        events = events[generator.random(size) < novelty.numpy()]
    count = min(len(events), max(_FEWEST_EVENTS, min(_MOST_EVENTS, most)))
    return events[np.arange(count) * len(events) // max(1, count)]


def _best_of(scores: Tensor, targets: Tensor, log_expected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the candidates that are among the re-ranked of the whole catalogue, the event's item first.

    Args:
        scores: [events, columns] scores by the first stage.
        targets: [events] index of each event's item.
        log_expected: [columns] log of the probability that a column is in the sample.

    Returns:
        Indices, scores and log probabilities, [events, chosen] each. A score is minus infinity where the candidate is
        not among the re-ranked; if the first one's is, the event's item is not.
    """
    best = scores.topk(min(RERANKED, scores.shape[1]), dim=1)
    is_target = best.indices == targets[:, None]
    expected = log_expected[best.indices].masked_fill(is_target, 0.0)
    stands_for = torch.exp(-expected)
    is_chosen = (stands_for.cumsum(dim=1) - stands_for < RERANKED) & is_target.any(dim=1, keepdim=True)
    order = is_target.float().argsort(dim=1, descending=True, stable=True)
    values = best.values.masked_fill(~is_chosen, -torch.inf)
    return best.indices.gather(1, order), values.gather(1, order), expected.gather(1, order)


def _drawn(
    places: Tensor, best: Tensor, expected: Tensor, generator: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the event's item and the best others, and draw from the rest, with the log-Q correction of the drawn ones.

    Args:
        places: [events, chosen] indices of the candidates, the event's item first and the others best first.
        best: [events, chosen] their scores.
        expected: [events, chosen] log of the probability that each is in the sample.
        generator: draws without replacement, uniformly.
    """
    rest = places.shape[1] - _HARDEST
    if places.shape[1] <= CANDIDATES:
        return places, best, expected
    drawn = torch.from_numpy(generator.random((len(places), rest)).argsort(axis=1)[:, : CANDIDATES - _HARDEST])
    order = torch.cat([torch.arange(_HARDEST).expand(len(places), -1), drawn.sort(dim=1).values + _HARDEST], dim=1)
    expected = expected.gather(1, order)
    expected[:, _HARDEST:] += math.log((CANDIDATES - _HARDEST) / rest)
    return places.gather(1, order), best.gather(1, order), expected


def _padded(values: Tensor, filler: float) -> Tensor:
    """Return values [..., candidates] extended to the width of a group."""
    return torch.nn.functional.pad(values, (0, CANDIDATES - values.shape[-1]), value=filler)
