"""Each family of encoders, split, computes what PEFT's whole model computes; pooling; refused models."""

import json
import shutil
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from tiny_families import DECODERS, ENCODERS, bare_tokenizer, random_model, tiny_model_of
from tiny_model import save_model, tiny_bert
from torch import Tensor
from transformers import AutoModel

from peft_adapters.encoder.encoder import Encoder
from peft_adapters.encoder.prefix_cache import PrefixCache
from peft_adapters.errors import EncoderError
from peft_adapters.settings import EncoderSettings

LONG = "a very large round glass vase with a red bird on it and an oak plate"  # longer than any local attention here
TEXTS = ["red mug", LONG, "", "lamp", "blue oak plate", "red mug", "small oak lamp"]
EXACT = 1e-5
FP16 = 3e-2  # absolute, for vectors of order 1; random layers amplify errors more than trained ones


def encoder_of(model: Path, **settings: Any) -> Encoder:
    """Return an encoder whose adapter has an effect."""
    settings = {"lora_rank": 4, "cache_dir": None, "activations": "float32"} | settings
    encoder = Encoder(EncoderSettings(model=str(model), **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.lora_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return encoder


@cache
def exact_encoder(family: str, lora_layers: int = 2) -> Encoder:
    return encoder_of(tiny_model_of(family), lora_layers=lora_layers)


def plain_peft(encoder: Encoder) -> PeftModel:
    """Return a separate PEFT model with the same adapter."""
    config = encoder.adapter_config()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = get_peft_model(
            AutoModel.from_pretrained(encoder.settings.model),
            LoraConfig(r=config["r"], lora_alpha=config["lora_alpha"], target_modules=config["target_modules"]),
        )
    set_peft_model_state_dict(model, encoder.lora_state())
    return model.eval()


def by_plain_peft(encoder: Encoder, texts: Sequence[str], model: PeftModel | None = None) -> Tensor:
    """Return pooled vectors [texts, dim] of the whole model, with all texts in one padded and masked batch."""
    tokens = [ids or [102] for ids in encoder.tokenizer(list(texts), truncation=True, max_length=64)["input_ids"]]
    longest = max(map(len, tokens))
    ids = torch.tensor([[*text_ids, *[0] * (longest - len(text_ids))] for text_ids in tokens])
    mask = torch.tensor([[1] * len(text_ids) + [0] * (longest - len(text_ids)) for text_ids in tokens])
    states: Tensor = (model or plain_peft(encoder))(input_ids=ids, attention_mask=mask).last_hidden_state
    by_text = [padded[: len(text_ids)] for padded, text_ids in zip(states, tokens, strict=True)]
    pool = {"mean": lambda text: text.mean(dim=0), "cls": lambda text: text[0], "last": lambda text: text[-1]}
    return torch.stack([pool[encoder.pooling](text) for text in by_text])


@pytest.mark.parametrize("lora_layers", [1, 2])
@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
def test_split_equals_peft_forward_of_the_whole_model(family: str, lora_layers: int) -> None:
    encoder = exact_encoder(family, lora_layers)
    expected = by_plain_peft(encoder, TEXTS).detach()
    cache = PrefixCache(encoder, None)
    for hidden in (encoder.prefix(TEXTS), cache.get(TEXTS), cache.get(TEXTS)):  # computed, and read back
        torch.testing.assert_close(encoder.suffix(hidden).detach(), expected, atol=EXACT, rtol=EXACT)
        torch.testing.assert_close(encoder.merged()(hidden), expected, atol=EXACT, rtol=EXACT)
    assert (cache.hits, cache.misses) == (len(TEXTS) + 1, len(set(TEXTS)))
    assert encoder.split == len(encoder._layers) - lora_layers


@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
def test_half_precision_costs_little(family: str) -> None:
    encoder = exact_encoder(family)
    halved = [states.half() for states in encoder.prefix(TEXTS)]
    difference = encoder.suffix(halved) - encoder.suffix(encoder.prefix(TEXTS))
    assert 0 < difference.abs().max().item() < FP16


def test_activations_beyond_half_precision_are_refused() -> None:
    encoder = encoder_of(tiny_model_of("Llama"), activations="float16")
    with torch.no_grad():
        encoder.peft_model.get_base_model().get_input_embeddings().weight.mul_(1e6)  # type: ignore[operator]
    with pytest.raises(EncoderError, match=r"`encoder\.activations` must be float32"):
        encoder.prefix(["mug"])


@pytest.mark.parametrize("family", ["Bert", "MPNet", "ModernBert", "Qwen3"])
def test_gradients_are_those_of_plain_peft(family: str) -> None:
    encoder = exact_encoder(family)
    plain = plain_peft(encoder)
    wanted = torch.randn(len(TEXTS), encoder.dim, generator=torch.Generator().manual_seed(2))
    (by_plain_peft(encoder, TEXTS, plain) * wanted).sum().backward()  # type: ignore[no-untyped-call]
    expected = [parameter.grad for parameter in plain.parameters() if parameter.grad is not None]
    loss = (encoder.suffix(encoder.prefix(TEXTS)) * wanted).sum()
    given = torch.autograd.grad(loss, encoder.lora_parameters())
    largest = max(float(gradient.abs().max()) for gradient in expected)
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * largest, rtol=1e-3)


@pytest.mark.parametrize("family", ["Roberta", "ModernBert", "Qwen3"])
def test_activations_do_not_depend_on_what_is_encoded_beside_a_text(family: str) -> None:
    encoder = exact_encoder(family)
    together = encoder.prefix(TEXTS)
    for index, text in enumerate(TEXTS):
        assert torch.equal(encoder.prefix([text])[0], together[index])


def test_texts_beyond_one_run_of_the_layers() -> None:
    encoder = exact_encoder("ModernBert")
    hidden = encoder.prefix([LONG] * 3 + ["mug"]) * 100
    together = encoder.suffix(hidden).detach()
    torch.testing.assert_close(together, encoder.suffix(hidden[:4]).detach().repeat(100, 1), atol=EXACT, rtol=EXACT)


# ---- pooling


def with_pooling_file(tmp_path: Path, config: dict[str, Any], model: Path | None = None) -> Path:
    directory = tmp_path / "pooled"
    shutil.copytree(model or tiny_bert(), directory)
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_as_asked(pooling: str) -> None:
    encoder = encoder_of(tiny_model_of("Bert"), pooling=pooling)
    assert encoder.pooling == pooling
    torch.testing.assert_close(
        encoder.suffix(encoder.prefix(TEXTS)), by_plain_peft(encoder, TEXTS), atol=EXACT, rtol=EXACT
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 16}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_auto_follows_the_files_of_sentence_transformers(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    assert encoder_of(with_pooling_file(tmp_path, config)).pooling == expected


@pytest.mark.parametrize(
    "config",
    [{"pooling_mode_max_tokens": True}, {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, {}],
)
def test_auto_refuses_another_pooling_but_what_is_asked_for_goes(tmp_path: Path, config: dict[str, Any]) -> None:
    model = with_pooling_file(tmp_path, config)
    with pytest.raises(EncoderError, match=r"one of mean, cls and last, got .* set `encoder\.pooling`"):
        encoder_of(model)
    assert encoder_of(model, pooling="mean").pooling == "mean"


def test_auto_without_files_takes_the_last_token_of_decoders_alone() -> None:
    assert {exact_encoder(family).pooling for family in DECODERS} == {"last"}
    assert {exact_encoder(family).pooling for family in ENCODERS} == {"mean"}


def test_pooling_and_precision_are_told_apart() -> None:
    mean, last, halved = (
        encoder_of(tiny_bert(), **settings)
        for settings in ({"pooling": "mean"}, {"pooling": "last"}, {"activations": "float16"})
    )
    assert len({mean.base_digest, last.base_digest, halved.base_digest}) == 3
    assert mean.prefix_digest == last.prefix_digest != halved.prefix_digest


# ---- incomplete tokenizers, and unsupported models


def test_a_tokenizer_without_padding_token_and_marks() -> None:
    encoder = exact_encoder("Llama")
    assert encoder.tokenizer.pad_token_id is None
    empty, word = encoder.prefix(["", "mug"])
    assert len(empty) == len(word) == 1
    assert torch.isfinite(encoder.suffix([empty])).all()
    assert bare_tokenizer()("")["input_ids"] == []


@pytest.mark.parametrize(
    ("family", "why"),
    [("T5", "not one stack"), ("GPT2", "not one stack"), ("Albert", "not one stack"), ("Gemma2", "softcap")],
)
def test_others_are_refused_with_what_works(family: str, why: str) -> None:
    marks = {"bos_token_id": 101, "eos_token_id": 102}
    model = save_model(random_model(family, **marks))
    with pytest.raises(EncoderError, match=rf"{why}.* BERT, RoBERTa, .* ModernBERT work, .* Llama, Mistral, Qwen2"):
        encoder_of(model)
