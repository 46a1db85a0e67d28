"""Compiled loops that compute the outputs of the second stage's networks."""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_adapters.ranking.compiled import compiled
from peft_adapters.ranking.vector_kernels import add_scaled

LIMIT = 5.0  # standard deviations at which an input is clipped
_BLOCK = 128  # candidates at a time, so that all activations stay in the first cache


@compiled
def add_four_by_four(weights: Any, inputs: Any, totals: Any) -> None:
    """Add four inputs [4, candidates], weighted by [4, 4], to the totals of four units [4, candidates].

    Loads and stores take longest, and a value loaded once is used four times.
    """
    first, second, third, fourth = inputs[0], inputs[1], inputs[2], inputs[3]
    unit_1, unit_2, unit_3, unit_4 = totals[0], totals[1], totals[2], totals[3]
    w11, w12, w13, w14 = weights[0, 0], weights[0, 1], weights[0, 2], weights[0, 3]
    w21, w22, w23, w24 = weights[1, 0], weights[1, 1], weights[1, 2], weights[1, 3]
    w31, w32, w33, w34 = weights[2, 0], weights[2, 1], weights[2, 2], weights[2, 3]
    w41, w42, w43, w44 = weights[3, 0], weights[3, 1], weights[3, 2], weights[3, 3]
    for candidate in range(len(unit_1)):
        of_1, of_2, of_3, of_4 = first[candidate], second[candidate], third[candidate], fourth[candidate]
        unit_1[candidate] += w11 * of_1 + w12 * of_2 + w13 * of_3 + w14 * of_4
        unit_2[candidate] += w21 * of_1 + w22 * of_2 + w23 * of_3 + w24 * of_4
        unit_3[candidate] += w31 * of_1 + w32 * of_2 + w33 * of_3 + w34 * of_4
        unit_4[candidate] += w41 * of_1 + w42 * of_2 + w43 * of_3 + w44 * of_4


@compiled
def layer(weights: Any, biases: Any, inputs: Any, out: Any) -> None:
    """Write the activations of a layer of rectified linear units to `out`.

    Args:
        weights: [units, inputs] weights; both numbers are multiples of four.
        biases: [units] biases.
        inputs: [inputs, candidates] values.
        out: [units, candidates] array to fill.
    """
    zero = np.float32(0)
    for unit in range(0, len(weights), 4):
        totals = out[unit : unit + 4]
        for member in range(4):
            totals[member] = biases[unit + member]
        for number in range(0, len(inputs), 4):
            add_four_by_four(weights[unit : unit + 4, number : number + 4], inputs[number : number + 4], totals)
        for member in range(4):
            total = totals[member]
            for candidate in range(len(total)):
                total[candidate] = max(total[candidate], zero)


@compiled
def standardise(values: Any, mean: Any, scale: Any, out: Any) -> None:
    """Write values [candidates] in standard deviations from their mean, clipped, to `out`."""
    limit = np.float32(LIMIT)
    for candidate in range(len(out)):
        out[candidate] = min(max((values[candidate] - mean) * scale, -limit), limit)


@compiled
def add_outputs(networks: Any, features: Any, more: Any, scores: Any) -> None:
    """Add the networks' outputs to `scores`, each candidate on its own.

    Args:
        networks: what `SecondStage.kernel` returns.
        features: [FEATURES or more, candidates] inputs of the first stage.
        more: [SECOND_STAGE_FEATURES, candidates] inputs that only the second stage uses.
        scores: [candidates] scores of the first stage, added to.
    """
    (varying, of_varying, w1), (constant, of_constant, w1_constant), (b1, w2, b2, w3, strength), first_stage = networks
    units = len(b1[0])
    for start in range(0, len(scores), _BLOCK):
        size = min(_BLOCK, len(scores) - start)
        linear = scores[start : start + size].copy()
        standard = np.zeros((w1.shape[2], size), np.float32)
        first, second = np.empty((units, size), np.float32), np.empty((w2.shape[1], size), np.float32)
        value, biases = np.empty(1, np.float32), np.empty(units, np.float32)
        for network in range(len(strength)):
            biases[:] = b1[network]
            for place in range(len(constant)):  # the same for all candidates
                mean, scale = of_constant[network, 0, place], of_constant[network, 1, place]
                standardise(more[constant[place] - first_stage, :1], mean, scale, value)
                add_scaled(value[0], w1_constant[network, place], biases)
            for place in range(len(varying)):
                number = varying[place]
                if number < first_stage:
                    values = features[number, start : start + size]
                elif number < first_stage + len(more):
                    values = more[number - first_stage, start : start + size]
                else:
                    values = linear
                standardise(values, of_varying[network, 0, place], of_varying[network, 1, place], standard[place])
            layer(w1[network], biases, standard, first)
            layer(w2[network], b2[network], first, second)
            for unit in range(len(second)):
                add_scaled(strength[network] * w3[network, unit], second[unit], scores[start : start + size])
