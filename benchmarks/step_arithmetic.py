"""Scenario `step-arithmetic`: the share of the machine's matrix-multiply rate that a LoRA training step reaches.

The step is forward and backward of the suffix, on as many texts as the learner takes, with LoRA on the last layer. Its
floating-point operations are counted on plain PEFT layers (products only; norms, GELU and softmax count as none), so
that omitted arithmetic would not look like speed. Rates are in GFLOP/s:

- `step`: those operations over the time of the learner's suffix.
- `plain_layers`: the same over the time of PEFT's layers, one length at a time.
- `like_the_step`: products of the step's own wide shapes, in its proportions.
- `large`: the best of some large square products; `value` is the step's share of this one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Measurement, data_settings
from benchmarks.prefix_cache_training import sampled_texts
from peft_adapters.encoder.encoder import Encoder
from peft_adapters.settings import EncoderSettings, LearnerSettings

TARGET = 0.5
ROUNDS = 7
REPEATS = 3  # timings per round; the best counts, since other processes only slow it down
LARGE = (1_024, 2_048, 3_072)
SEED = 0


def run(data: Path) -> Measurement:
    """Measure on items drawn from the catalogue of `data`."""
    encoder = Encoder(EncoderSettings(cache_dir=None))
    hidden = encoder.prefix(sampled_texts(data, LearnerSettings().lora_items))
    goal = torch.randn(len(hidden), encoder.dim, generator=torch.Generator().manual_seed(SEED))

    def plain() -> Tensor:
        return _plain_suffix(encoder, hidden)

    with FlopCounterMode(display=False) as counter:
        _step(encoder, plain, goal)
    operations = counter.get_total_flops() / 1e9
    tokens = sum(map(len, hidden))
    wide = [torch.randn(width, encoder.dim) for width in (encoder.dim, 4 * encoder.dim)]
    states = torch.randn(tokens, encoder.dim)
    wide_operations = sum(2 * 4 * tokens * weight.numel() for weight in wide) / 1e9
    rounds = []
    for _ in range(ROUNDS):
        figures = {
            "step": operations / _seconds(lambda: _step(encoder, lambda: encoder.suffix(hidden), goal)),
            "plain_layers": operations / _seconds(lambda: _step(encoder, plain, goal)),
            "like_the_step": wide_operations / _seconds(lambda: _products(states, wide)),
            "large": max(2 * size**3 / 1e9 / _seconds(_square(size)) for size in LARGE),
        }
        figures["ratio_like_the_step"] = figures["step"] / figures["like_the_step"]
        figures["ratio_plain_layers"] = figures["plain_layers"] / figures["large"]
        rounds.append(figures | {"ratio": figures["step"] / figures["large"]})
    return Measurement(
        unit="of the best large matrix product's rate",
        value=median(round_["ratio"] for round_ in rounds),
        target=TARGET,
        settings={
            "encoder": encoder.settings.model_dump(mode="json", exclude={"cache_dir", "cache_max_bytes"}),
            "texts": len(hidden),
            "tokens": tokens,
            "step_gflop": round(operations, 2),
            "large_sizes": LARGE,
            **data_settings(data),
            "seed": SEED,
        },
        rounds=rounds,
    )


def _step(encoder: Encoder, vectors: Callable[[], Tensor], goal: Tensor) -> None:
    (nn.functional.normalize(vectors(), dim=1) * goal).sum().backward()  # type: ignore[no-untyped-call]
    for parameter in encoder.lora_parameters():
        parameter.grad = None


def _plain_suffix(encoder: Encoder, hidden: list[Tensor]) -> Tensor:
    """Run PEFT's own layers on texts of one length at a time."""
    layers = encoder.peft_model.get_base_model().encoder.layer[encoder.split :]  # type: ignore[union-attr, index]
    by_length: dict[int, list[Tensor]] = {}
    for states in hidden:
        by_length.setdefault(len(states), []).append(states)
    pooled = []
    for texts in by_length.values():
        states = torch.stack(texts).float()
        for layer in layers:
            states = layer(states)
        pooled.append(states.mean(dim=1))
    return torch.cat(pooled)


def _products(states: Tensor, weights: list[Tensor]) -> None:
    """Multiply four times for each weight's shape, two of them transposed, as forward and backward do."""
    for weight in weights:
        wide = states @ weight.t()
        states @ weight.t()
        wide @ weight
        wide @ weight


def _square(size: int) -> Callable[[], Tensor]:
    left, right = torch.randn(size, size), torch.randn(size, size)
    return lambda: left @ right


def _seconds(function: Callable[[], object]) -> float:
    """Return the best time of `REPEATS`, after one untimed run."""
    function()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)
