"""The second stage: one score for a candidate however it is asked for, and the best of a catalogue re-ranked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import random_networks

from peft_adapters.ranking.counters import Counters
from peft_adapters.ranking.ranker import ROLES, FrozenRanker, Ranker
from peft_adapters.ranking.second_stage import INPUT_NAMES, RERANKED, SecondStage
from peft_adapters.ranking.second_stage_kernels import add_outputs
from peft_adapters.ranking.shoppers import Contexts, pad
from peft_adapters.settings import FEATURES, SECOND_STAGE_GROUPS

ITEMS = RERANKED + 60
SESSION = pad([([3, 9, 4, 200], [0, 0, 1, 2])])
BOTH = pad([([3, 9, 4, 200], [0, 0, 1, 2]), ([], [])])


def random_ranker(second_stage: SecondStage) -> Ranker:
    rng, draw = np.random.default_rng(0), torch.Generator().manual_seed(0)
    counters = Counters()
    counters.grow(ITEMS)
    items = rng.integers(ITEMS - 5, size=400)
    counters.update(items, [rng.integers(ITEMS - 5, size=rng.integers(0, 9)).tolist() for _ in items])
    ranker = Ranker.empty(16)
    ranker.grow(ITEMS)
    ranker.text = torch.nn.functional.normalize(torch.randn(ITEMS, 16, generator=draw), dim=1)
    ranker.residuals = {role: torch.randn(ITEMS, 16, generator=draw) for role in ROLES}
    ranker.global_preference = torch.randn(16, generator=draw)  # no two candidates have the same score
    ranker.neighbours.update(items, rng.integers(1, 60, size=400), np.arange(400))
    return replace(ranker, counters=counters, second_stage=second_stage)


LINEAR = FrozenRanker(random_ranker(SecondStage.empty()))
RERANKING = FrozenRanker(random_ranker(random_networks(1, (0.8, 0.3))))


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("strengths", [(1.0, 0.0), (0.0, 0.6), (0.3, 0.7)])
@pytest.mark.parametrize("candidates", [0, 1, 7, 128, 129, 300])
def test_the_kernel_gives_what_torch_gives(candidates: int, strengths: tuple[float, float], alike: bool) -> None:
    networks, draw = random_networks(2, strengths), torch.Generator().manual_seed(3)
    if alike:  # as networks that have seen the same events
        networks = replace(networks, **{name: getattr(networks, name)[[0, 0, 2]] for name in ("mean", "scale")})
    inputs = 3 * torch.randn(len(INPUT_NAMES), candidates, generator=draw)
    of_context = [INPUT_NAMES.index(name) for name in SECOND_STAGE_GROUPS["context"]]
    inputs[of_context] = torch.randn(len(of_context), 1, generator=draw)  # the same for all candidates
    scores = inputs[-1].numpy().copy()
    add_outputs(networks.kernel(), inputs[: len(FEATURES)].numpy(), inputs[len(FEATURES) : -1].numpy(), scores)
    expected = inputs[-1] + networks.output(inputs)
    torch.testing.assert_close(torch.from_numpy(scores), expected, rtol=1e-4, atol=1e-4)
    assert candidates == 0 or not torch.allclose(expected, inputs[-1], atol=0.01)


def test_mean_slopes_are_the_gradients_of_the_output() -> None:
    networks, draw = random_networks(2, (0.3, 0.7)).double(), torch.Generator().manual_seed(3)
    inputs = torch.randn(len(INPUT_NAMES), 5, generator=draw).double()
    line = (inputs[..., None] * (torch.arange(64) + 0.5).double() / 64).requires_grad_()
    (gradient,) = torch.autograd.grad(networks.output(line).sum(), line)
    torch.testing.assert_close(networks.mean_slopes(inputs), gradient.mean(dim=-1))
    gained = networks.output(inputs) - networks.output(torch.zeros_like(inputs))
    torch.testing.assert_close((networks.mean_slopes(inputs) * inputs).sum(dim=0), gained, rtol=0, atol=0.05)


@settings(max_examples=40, deadline=None)
@given(rows=st.sets(st.integers(0, ITEMS - 1), min_size=1, max_size=150))
def test_a_score_does_not_depend_on_the_other_candidates(rows: set[int]) -> None:
    whole, _ = RERANKING.score_with_probabilities(SESSION)
    columns = np.array(sorted(rows))
    assert np.array_equal(RERANKING.score_with_probabilities(SESSION, columns)[0], whole[columns])


def test_named_candidates_are_all_reranked() -> None:
    columns = np.arange(ITEMS)
    own, linear = RERANKING.score(SESSION, columns), LINEAR.score(SESSION, columns)
    assert int((own != linear).sum()) == ITEMS
    torch.testing.assert_close(own, RERANKING.score(BOTH, columns)[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("contexts", [SESSION, pad([([], [])])])
def test_the_best_of_the_catalogue_are_reranked_and_the_others_stay_below(contexts: Contexts) -> None:
    linear = LINEAR.score(contexts)[0]
    whole = RERANKING.score(contexts)[0]
    best = linear.topk(RERANKED).indices.sort().values
    others = torch.tensor(sorted({*range(ITEMS)} - {*best.tolist()}))
    pointwise = torch.from_numpy(RERANKING.score_with_probabilities(contexts)[0])
    assert torch.equal(whole[best], pointwise[best])
    assert float(whole[others].max()) <= float(whole[best].min())
    assert torch.equal(whole[others].argsort(), linear[others].argsort())
    assert not torch.equal(whole[best].argsort(), linear[best].argsort())


@pytest.mark.parametrize("count", [1, 20, RERANKED, RERANKED + 30, ITEMS + 1])
def test_the_top_of_a_request_is_that_of_all_scores(count: int) -> None:
    whole = RERANKING.score(SESSION)[0]
    rows, scores = RERANKING.top_k(SESSION, np.arange(ITEMS), count)
    assert rows.tolist() == whole.argsort(descending=True, stable=True)[:count].tolist()
    torch.testing.assert_close(torch.from_numpy(scores), whole[torch.from_numpy(rows)], rtol=1e-5, atol=1e-5)


def test_a_batch_is_reranked_like_one_shopper() -> None:
    alone = torch.cat([RERANKING.score(SESSION), RERANKING.score(pad([([], [])]))])
    torch.testing.assert_close(RERANKING.score(BOTH), alone, rtol=1e-4, atol=1e-4)


def test_networks_without_strength_change_no_score() -> None:
    still = FrozenRanker(random_ranker(random_networks(1, (0.0, 0.0))))
    assert torch.equal(still.score(SESSION), LINEAR.score(SESSION))
    assert torch.equal(still.score(BOTH), LINEAR.score(BOTH))
    assert not still.second_stage.is_active


def test_weights_of_another_set_of_features_are_refused() -> None:
    tensors = random_networks(1, (1.0, 0.0)).tensors()
    with pytest.raises(ValueError, match=r"second_stage.w1 must have shape \(3, 32, "):
        SecondStage.from_tensors(tensors | {"w1": tensors["w1"][:, :, 1:]})
    assert not SecondStage.from_tensors({}).is_active


def test_networks_with_fewer_inputs_change_no_score() -> None:
    tensors = random_networks(1, (1.0, 0.5)).tensors()
    fewer = {name: value[..., 1:] if name in ("mean", "scale", "w1") else value for name, value in tensors.items()}
    assert not SecondStage.from_tensors(fewer).is_active
