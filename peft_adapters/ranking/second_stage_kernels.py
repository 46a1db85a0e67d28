"""Compiled loops that compute the outputs of the second stage's networks."""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_adapters.ranking.compiled import compiled
from peft_adapters.ranking.vector_kernels import add_scaled

LIMIT = 5.0  # standard deviations at which an input is clipped
# Candidates at a time. All products have this one shape: so BLAS sums in the same order for each candidate, whatever
# else is scored, and the activations stay in the first cache. Larger ones OpenBLAS would divide among threads.
_BLOCK = 64


@compiled
def layer(weights: Any, biases: Any, inputs: Any, out: Any) -> None:
    """Write the activations of a layer of rectified linear units to `out`.

    Args:
        weights: [units, inputs] weights.
        biases: [units] biases.
        inputs: [inputs, candidates] values.
        out: [units, candidates] array to fill.
    """
    np.dot(weights, inputs, out)
    zero = np.float32(0)
    for unit in range(len(out)):
        for candidate in range(out.shape[1]):
            out[unit, candidate] = max(out[unit, candidate] + biases[unit], zero)


@compiled
def standardise(values: Any, mean: Any, scale: Any, out: Any) -> None:
    """Write values [candidates] in standard deviations from their mean, clipped, to `out`."""
    limit = np.float32(LIMIT)
    for candidate in range(len(values)):
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
    (varying, of_varying, w1), (constant, of_constant, w1_constant), (b1, w2, b2, w3, strength), is_new, first_stage = (
        networks
    )
    units = len(b1[0])
    linear = scores.copy()
    standard = np.zeros((w1.shape[2], _BLOCK), np.float32)
    first, second = np.empty((units, _BLOCK), np.float32), np.empty((w2.shape[1], _BLOCK), np.float32)
    value, biases = np.empty(1, np.float32), np.empty(units, np.float32)
    for start in range(0, len(scores), _BLOCK):
        end = min(start + _BLOCK, len(scores))
        for network in range(len(strength)):
            biases[:] = b1[network]
            for place in range(len(constant)):  # the same for all candidates
                mean, scale = of_constant[network, 0, place], of_constant[network, 1, place]
                standardise(more[constant[place] - first_stage, :1], mean, scale, value)
                add_scaled(value[0], w1_constant[network, place], biases)
            for place in range(len(varying) if is_new[network] else 0):
                number = varying[place]
                if number < first_stage:
                    values = features[number, start:end]
                elif number < first_stage + len(more):
                    values = more[number - first_stage, start:end]
                else:
                    values = linear[start:end]
                standardise(values, of_varying[network, 0, place], of_varying[network, 1, place], standard[place])
            layer(w1[network], biases, standard, first)
            layer(w2[network], b2[network], first, second)
            for unit in range(len(second)):
                add_scaled(strength[network] * w3[network, unit], second[unit, : end - start], scores[start:end])
