"""Compiled loops that compute the outputs of the second stage's networks."""

from __future__ import annotations

from typing import Any

import numpy as np

from peft_adapters.ranking.compiled import compiled
from peft_adapters.ranking.vector_kernels import add_scaled

RERANKED = 200  # best candidates of the first stage that the networks see in a ranking of the whole catalogue
LIMIT = 5.0  # standard deviations at which an input is clipped
# Candidates at a time, whose activations stay in the first cache. BLAS is no faster for products as small, and on some
# processors its sums depend on a candidate's place among the others.
_BLOCK = 64
AT_A_TIME = 4  # units and inputs of a layer; their numbers must be multiples


@compiled
def layer(weights: Any, biases: Any, inputs: Any, out: Any) -> None:
    """Write the activations of a layer of rectified linear units to `out`, each candidate on its own.

    Args:
        weights: [units, inputs] weights.
        biases: [units] biases.
        inputs: [inputs, 64] values of a block of candidates.
        out: [units, 64] array to fill.
    """
    zero = np.float32(0)
    for unit in range(0, len(out), AT_A_TIME):
        out_0, out_1, out_2, out_3 = out[unit], out[unit + 1], out[unit + 2], out[unit + 3]
        for candidate in range(_BLOCK):
            out_0[candidate] = biases[unit]
            out_1[candidate] = biases[unit + 1]
            out_2[candidate] = biases[unit + 2]
            out_3[candidate] = biases[unit + 3]
        for place in range(0, len(inputs), AT_A_TIME):
            a_0, a_1, a_2, a_3 = weights[unit, place : place + AT_A_TIME]
            b_0, b_1, b_2, b_3 = weights[unit + 1, place : place + AT_A_TIME]
            c_0, c_1, c_2, c_3 = weights[unit + 2, place : place + AT_A_TIME]
            d_0, d_1, d_2, d_3 = weights[unit + 3, place : place + AT_A_TIME]
            in_0, in_1, in_2, in_3 = inputs[place], inputs[place + 1], inputs[place + 2], inputs[place + 3]
            for candidate in range(_BLOCK):
                x_0, x_1, x_2, x_3 = in_0[candidate], in_1[candidate], in_2[candidate], in_3[candidate]
                out_0[candidate] += a_0 * x_0 + a_1 * x_1 + a_2 * x_2 + a_3 * x_3
                out_1[candidate] += b_0 * x_0 + b_1 * x_1 + b_2 * x_2 + b_3 * x_3
                out_2[candidate] += c_0 * x_0 + c_1 * x_1 + c_2 * x_2 + c_3 * x_3
                out_3[candidate] += d_0 * x_0 + d_1 * x_1 + d_2 * x_2 + d_3 * x_3
        for candidate in range(_BLOCK):
            out_0[candidate] = max(out_0[candidate], zero)
            out_1[candidate] = max(out_1[candidate], zero)
            out_2[candidate] = max(out_2[candidate], zero)
            out_3[candidate] = max(out_3[candidate], zero)


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
