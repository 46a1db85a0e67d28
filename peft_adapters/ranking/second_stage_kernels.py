"""Compiled loops that compute the outputs of the second stage's networks."""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_adapters.ranking.compiled import compiled
from peft_adapters.ranking.vector_kernels import add_scaled

LIMIT = 5.0  # standard deviations at which an input is clipped
_BLOCK = 128  # candidates at a time, so that all activations stay in the first cache


@compiled
def add_four(weights: Any, inputs: Any, total: Any) -> None:
    """Add four inputs [4, candidates], each times its weight [4], to `total` [candidates]."""
    first, second, third, fourth = inputs[0], inputs[1], inputs[2], inputs[3]
    of_first, of_second, of_third, of_fourth = weights[0], weights[1], weights[2], weights[3]
    for candidate in range(len(total)):
        total[candidate] += (
            of_first * first[candidate]
            + of_second * second[candidate]
            + of_third * third[candidate]
            + of_fourth * fourth[candidate]
        )


@compiled
def layer(weights: Any, biases: Any, inputs: Any, out: Any) -> None:
    """Write the activations of a layer of rectified linear units to `out`.

    Args:
        weights: [units, inputs] weights.
        biases: [units] biases.
        inputs: [inputs, candidates] values.
        out: [units, candidates] array to fill.
    """
    zero = np.float32(0)
    for unit in range(len(weights)):
        total = out[unit]
        total[:] = biases[unit]
        fours = len(inputs) // 4 * 4
        for number in range(0, fours, 4):  # four at a time: loads and stores of sums take longest
            add_four(weights[unit, number : number + 4], inputs[number : number + 4], total)
        for number in range(fours, len(inputs)):
            add_scaled(weights[unit, number], inputs[number], total)
        for candidate in range(len(total)):
            total[candidate] = max(total[candidate], zero)


@compiled
def add_outputs(networks: Any, features: Any, more: Any, scores: Any) -> None:
    """Add the networks' outputs to `scores`, each candidate on its own.

    Args:
        networks: weights of the networks, in the order of `SecondStage`'s attributes.
        features: [FEATURES or more, candidates] inputs of the first stage.
        more: [SECOND_STAGE_FEATURES, candidates] inputs that only the second stage uses.
        scores: [candidates] scores of the first stage, added to.
    """
    mean, scale, w1, b1, w2, b2, w3, strength = networks
    limit = np.float32(LIMIT)
    inputs, of_first_stage = mean.shape[1], mean.shape[1] - 1 - len(more)
    for start in range(0, len(scores), _BLOCK):
        size = min(_BLOCK, len(scores) - start)
        linear = scores[start : start + size].copy()
        standard, first, second = (
            np.empty((inputs, size), np.float32),
            np.empty((w1.shape[1], size), np.float32),
            np.empty((w2.shape[1], size), np.float32),
        )
        for network in range(len(strength)):
            for number in range(inputs):
                if number < of_first_stage:
                    values = features[number, start : start + size]
                elif number == inputs - 1:
                    values = linear
                else:
                    values = more[number - of_first_stage, start : start + size]
                shift, factor, target = mean[network, number], scale[network, number], standard[number]
                for candidate in range(size):
                    target[candidate] = min(max((values[candidate] - shift) * factor, -limit), limit)
            layer(w1[network], b1[network], standard, first)
            layer(w2[network], b2[network], first, second)
            for unit in range(w2.shape[1]):
                add_scaled(strength[network] * w3[network, unit], second[unit], scores[start : start + size])
