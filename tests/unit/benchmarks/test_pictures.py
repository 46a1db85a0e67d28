"""What vectors of another modality are worth, on a tiny encoder: those that know raise quality, noise costs nothing."""

from statistics import fmean

from tiny_model import tiny_bert

from benchmarks.pictures import generated, replayed
from peft_adapters.settings import EncoderSettings


def test_vectors_that_know_raise_quality_and_noise_costs_nothing() -> None:
    encoder = EncoderSettings(model=str(tiny_bert()), lora_rank=4, cache_dir=None)
    gains: dict[str, list[float]] = {"image": [], "noise": []}
    for seed in range(3):
        stream, kinds = generated(seed, events=1_000, items=80, groups=5)
        without = replayed(encoder, kinds["without"], stream, seed, batch_events=32)
        for name, own in gains.items():
            own.append(replayed(encoder, kinds[name], stream, seed, batch_events=32) / without)
    assert fmean(gains["image"]) >= 1.03
    assert fmean(gains["noise"]) >= 0.99
