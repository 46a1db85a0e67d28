"""The second stage: small networks that re-rank what the linear first stage ranks highest.

A linear score cannot say "a repeat matters when the session is short". So the score of a candidate is

    first stage + sum over networks of strength * network(clip((x - mean) / deviation, -5, 5))

over the first stage's features and score, and `SECOND_STAGE_FEATURES`. It depends on nothing but the candidate and the
context, whatever else is asked for. A network is a multi-layer perceptron with two hidden layers of rectified linear
units. Two networks, which began with other weights, learn from clicks and purchases; their mean is served, which errs
less than either. Another one learns from lists. `strength` says how much of each is served.

The networks have only seen what the first stage ranks high. So in a ranking of the whole catalogue they re-rank the
`RERANKED` best, and the others stay below these in the order of the first stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from peft_adapters.ranking import second_stage_kernels
from peft_adapters.ranking.affinities import Affinities
from peft_adapters.ranking.arrays import FloatArray
from peft_adapters.ranking.features import pad_features
from peft_adapters.settings import FEATURES, SECOND_STAGE_FEATURES, SECOND_STAGE_GROUPS

HIDDEN = (32, 32)  # units of the hidden layers
INPUT_NAMES = (*FEATURES, *SECOND_STAGE_FEATURES, "first_stage")
LIMIT, RERANKED = second_stage_kernels.LIMIT, second_stage_kernels.RERANKED
_LINE_POINTS = 64  # at which a gradient is taken along a line
NETWORKS = ("positives", "positives", "lists")  # what each network learns from
_IS_CONSTANT = torch.tensor([name in SECOND_STAGE_GROUPS["context"] for name in INPUT_NAMES])  # for all candidates


@dataclass(frozen=True, slots=True)
class SecondStage:
    """Weights of the networks, one after another along the first dimension.

    Attributes:
        mean: [networks, inputs] mean of each input.
        scale: [networks, inputs] one over the standard deviation of each input; 0 for inputs that are not used.
        w1: [networks, 32, inputs] weights of the first layer.
        b1: [networks, 32] biases of the first layer.
        w2: [networks, 32, 32] weights of the second layer.
        b2: [networks, 32] biases of the second layer.
        w3: [networks, 32] weights of the output; it needs no bias, since only differences between scores count.
        strength: [networks] factor on each output, 0 to 1.
    """

    mean: Tensor
    scale: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    strength: Tensor

    @classmethod
    def empty(cls) -> Self:
        """Return networks of zeros, which change no score."""
        return cls(*(torch.zeros(len(NETWORKS), *shape) for shape in shapes().values()))

    @property
    def is_active(self) -> bool:
        """Return whether a network has any effect."""
        return bool(self.strength.any())

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Return the networks of `tensors`; without any, or with others than today's, ones that change no score.

        Raises:
            ValueError: a weight has another shape.
        """
        if not tensors or tensors["mean"].shape != (len(NETWORKS), len(INPUT_NAMES)):
            return cls.empty()
        networks = cls(**{field.name: tensors[field.name].float() for field in fields(cls)})
        for name, shape in shapes().items():
            found = tuple(getattr(networks, name).shape)
            if found != (len(NETWORKS), *shape):
                raise ValueError(f"second_stage.{name} must have shape {(len(NETWORKS), *shape)}, got {found}")
        return networks

    def clone(self) -> Self:
        """Return a copy that does not change with the learner's weights."""
        return replace(self, **{name: value.clone() for name, value in self.tensors().items()})

    def double(self) -> Self:
        """Return the networks in double precision."""
        return replace(self, **{name: value.double() for name, value in self.tensors().items()})

    def output(self, inputs: Tensor) -> Tensor:
        """Return what the networks add to the score, [...].

        Args:
            inputs: [inputs, ...] values of the candidates.
        """
        flat = inputs.flatten(1)
        total = torch.zeros(flat.shape[1], dtype=inputs.dtype)
        for number in torch.nonzero(self.strength)[:, 0].tolist():
            total += self.strength[number] * (self.w3[number] @ self._activations(flat, number)[2])
        return total.view(inputs.shape[1:])

    def mean_slopes(self, inputs: Tensor) -> Tensor:
        """Return the mean gradient of the output along the straight line from zero to the inputs, [inputs, candidates].

        An input times its mean slope is its share of the output by integrated gradients (Sundararajan et al. 2017).

        Args:
            inputs: [inputs, candidates] values of the candidates.
        """
        position = (torch.arange(_LINE_POINTS, dtype=inputs.dtype) + 0.5) / _LINE_POINTS
        line = (inputs[..., None] * position).flatten(1)
        slopes = torch.zeros_like(line)
        for number in torch.nonzero(self.strength)[:, 0].tolist():
            standard, first, second = self._activations(line, number)
            of_second = self.w3[number][:, None] * (second > 0)
            of_first = (self.w2[number].T @ of_second) * (first > 0)
            of_inputs = (self.w1[number].T @ of_first) * (standard.abs() < LIMIT)
            slopes += self.strength[number] * self.scale[number][:, None] * of_inputs
        return slopes.view(*inputs.shape, _LINE_POINTS).mean(dim=-1)

    def _activations(self, inputs: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return standardised inputs and both hidden layers of a network for inputs [inputs, candidates]."""
        standard = standardised(inputs, self.mean[number], self.scale[number])
        first = torch.relu(torch.addmm(self.b1[number][:, None], self.w1[number], standard))
        second = torch.relu(torch.addmm(self.b2[number][:, None], self.w2[number], first))
        return standard, first, second

    def kernel(self) -> tuple[object, ...]:
        """Return the active networks' weights as arrays, in the form that `second_stage_kernels.add_outputs` takes.

        Inputs that no network uses are left out, and those that do not depend on the candidate are kept apart: places
        [inputs], means and scales [networks, 2, inputs] and weights of both kinds, [networks, 32, inputs] and
        [networks, inputs, 32]. Weights of zero round the inputs of the former up to what the kernel takes at a time.
        The other weights follow, then whether each network standardises its inputs in another way than the one before,
        and the number of features of the first stage.
        """
        active = self.strength != 0
        mean, scale, w1, *others = (value[active] for value in self.tensors().values())
        is_used = (scale != 0).any(dim=0)
        varying, constant = (torch.nonzero(is_used & kind)[:, 0] for kind in (~_IS_CONSTANT, _IS_CONSTANT))
        scaling = torch.stack([mean, scale], dim=1)
        padding = -len(varying) % second_stage_kernels.AT_A_TIME
        return (
            _arrays(varying, scaling[..., varying], torch.nn.functional.pad(w1[..., varying], (0, padding))),
            _arrays(constant, scaling[..., constant], w1[..., constant].transpose(1, 2)),
            _arrays(*others),
            np.array(
                [not place or not torch.equal(scaling[place], scaling[place - 1]) for place in range(len(scaling))]
            ),
            len(FEATURES),
        )


def _arrays(*tensors: Tensor) -> tuple[FloatArray, ...]:
    return tuple(tensor.contiguous().numpy() for tensor in tensors)


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of one network, by name."""
    inputs, (first, second) = len(INPUT_NAMES), HIDDEN
    return {
        "mean": (inputs,),
        "scale": (inputs,),
        "w1": (first, inputs),
        "b1": (first,),
        "w2": (second, first),
        "b2": (second,),
        "w3": (second,),
        "strength": (),
    }


def standardised(inputs: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Return inputs [inputs, ...] in standard deviations from their mean, clipped."""
    shape = (len(inputs), *(1,) * (inputs.dim() - 1))
    return ((inputs - mean.view(shape)) * scale.view(shape)).clamp(-LIMIT, LIMIT)


def gather_features(counted: Tensor, affinities: Affinities, places: Tensor) -> Tensor:
    """Return the first stage's features of some candidates of each context, [FEATURES, contexts, chosen].

    Args:
        counted: [COUNTER_FEATURES, contexts, candidates] counter features.
        affinities: affinities of all candidates.
        places: [contexts, chosen] indices of the candidates.
    """
    of_counters = counted.gather(2, places.expand(len(counted), *places.shape))
    chosen = Affinities(
        affinities.products.gather(2, places.expand(len(affinities.products), *places.shape)),
        affinities.attention.gather(1, places),
        affinities.preference[places],
        affinities.text_share[places],
        None if affinities.query is None else affinities.query.gather(1, places),
    )
    return pad_features(torch.cat([of_counters, torch.stack(chosen.features())]))


def rerank(
    scores: Tensor,
    second_stage: SecondStage,
    *,
    counted: Tensor,
    affinities: Affinities,
    more: Callable[[Tensor], Tensor],
    count: int = RERANKED,
) -> Tensor:
    """Return scores [contexts, candidates] after the second stage.

    Args:
        scores: [contexts, candidates] scores of the first stage.
        second_stage: the networks.
        counted: [COUNTER_FEATURES, contexts, candidates] counter features.
        affinities: affinities of all candidates.
        more: function that returns SECOND_STAGE_FEATURES [features, contexts, chosen] of indices [contexts, chosen].
        count: number of candidates to re-rank.
    """
    places = scores.topk(min(count, scores.shape[1]), dim=1, sorted=False).indices
    best = scores.gather(1, places)
    inputs = torch.cat([gather_features(counted, affinities, places), more(places), best[None]])
    best = best + second_stage.output(inputs)
    others = scores.scatter(1, places, -math.inf)
    excess = others.amax(dim=1, keepdim=True) - best.amin(dim=1, keepdim=True)
    return (others - excess.clamp(min=0)).scatter(1, places, best)
