"""The split encoder computes what PEFT's whole model computes; the adapter has an effect, and it can be undone."""

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import tiny_bert, tiny_encoder, tiny_roberta
from torch import Tensor

from peft_adapters.encoder.encoder import MAX_TEXT_CHARS, Encoder, text_digest
from peft_adapters.errors import EncoderError
from peft_adapters.settings import EncoderSettings

TEXTS = ["red mug", "a very large round glass vase with a bird on it", "", "lamp", "blue oak plate", "red mug"]
FP16 = 5e-3  # absolute, for layer-normed activations of order 1, after the layers above


def whole_model(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Return mean-pooled vectors [texts, dim] of PEFT's forward pass through all layers, with padding."""
    tokens = encoder.tokenizer(list(texts), padding=True, truncation=True, max_length=64, return_tensors="pt")
    mask: Tensor = tokens["attention_mask"][:, :, None].float()
    hidden: Tensor = encoder.peft_model(**tokens).last_hidden_state
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


def shake_lora(encoder: Encoder, *, seed: int = 1) -> None:
    """Set the adapter to weights that have an effect; PEFT initialises it to zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.lora_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(params=["bert", "roberta", "bert, two layers", "bert, all layers"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    model = tiny_roberta() if request.param == "roberta" else tiny_bert()
    return tiny_encoder(model, lora_layers={"bert, two layers": 2, "bert, all layers": 3}.get(request.param, 1))


def test_split_equals_peft_forward_of_the_whole_model(encoder: Encoder) -> None:
    shake_lora(encoder)
    split = encoder.suffix(encoder.prefix(TEXTS))
    torch.testing.assert_close(split, whole_model(encoder, TEXTS), atol=FP16, rtol=FP16)


def test_split_equals_peft_forward_on_the_default_model() -> None:
    encoder = Encoder(EncoderSettings(cache_dir=None))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.lora_parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    split = torch.nn.functional.normalize(encoder.suffix(encoder.prefix(TEXTS)).detach(), dim=1)
    whole = torch.nn.functional.normalize(whole_model(encoder, TEXTS).detach(), dim=1)
    assert (split * whole).sum(dim=1).min().item() > 0.9999
    assert encoder.split == 5


def test_adapter_has_an_effect_and_removing_it_restores_the_base(encoder: Encoder) -> None:
    hidden = encoder.prefix(TEXTS)
    base, start = encoder.suffix(hidden), encoder.lora_state()
    shake_lora(encoder)
    assert float((encoder.suffix(hidden) - base).detach().abs().max()) > 0.1
    encoder.load_lora(start)
    assert torch.equal(encoder.suffix(hidden), base)


def test_prefix_does_not_feel_the_adapter(encoder: Encoder) -> None:
    before = encoder.prefix(TEXTS)
    shake_lora(encoder)
    assert all(torch.equal(a, b) for a, b in zip(before, encoder.prefix(TEXTS), strict=True))


def test_merged_equals_unmerged_and_keeps_its_weights_when_training_goes_on(encoder: Encoder) -> None:
    hidden = encoder.prefix(TEXTS)
    shake_lora(encoder)
    unmerged = encoder.suffix(hidden).detach()
    merged = encoder.merged()
    torch.testing.assert_close(merged(hidden), unmerged, atol=1e-4, rtol=1e-4)
    shake_lora(encoder, seed=2)
    torch.testing.assert_close(merged(hidden), unmerged, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(encoder.suffix(hidden), unmerged, atol=0.1)


def test_mixed_batch_equals_its_slices(encoder: Encoder) -> None:
    shake_lora(encoder)
    hidden = encoder.prefix(TEXTS)
    together = encoder.suffix(hidden)
    alone = torch.cat([encoder.suffix([states]) for states in hidden])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_no_text_gives_no_vector() -> None:
    encoder = tiny_encoder()
    assert encoder.prefix([]) == []
    assert encoder.suffix([]).shape == (0, encoder.dim)


def test_only_lora_of_the_last_layers_gets_gradients() -> None:
    encoder = tiny_encoder(lora_layers=2)
    shake_lora(encoder)
    encoder.suffix(encoder.prefix(TEXTS)).square().sum().backward()  # type: ignore[no-untyped-call]
    named = dict(encoder.peft_model.named_parameters())
    trained = {name for name, parameter in named.items() if parameter.grad is not None}
    assert trained
    assert all("lora_" in name and ("layer.1." in name or "layer.2." in name) for name in trained)
    assert len(trained) == len(encoder.lora_parameters()) == 2 * 2 * 6  # layers, A and B, linear modules


def test_long_text_is_cut() -> None:
    encoder = tiny_encoder()
    (hidden,) = encoder.prefix(["mug " * 500])
    assert hidden.shape == (encoder.settings.max_tokens, encoder.dim)
    assert hidden.dtype == torch.float16


def test_lora_starts_from_its_seed() -> None:
    first, same, other = (tiny_encoder(lora_seed=seed).lora_state() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_an_encoder_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    tiny_encoder(lora_seed=9)
    assert torch.equal(torch.rand(1), expected)


def test_base_digest_tells_weights_and_splits_apart() -> None:
    digests = {
        tiny_encoder().base_digest,
        tiny_encoder(lora_layers=2).base_digest,
        tiny_encoder(tiny_bert(seed=5)).base_digest,
    }
    assert len(digests) == 3
    assert tiny_encoder(lora_seed=4).base_digest == tiny_encoder().base_digest


def test_text_digest_is_blake2b() -> None:
    assert text_digest("Mug") == hashlib.blake2b(b"Mug", digest_size=16).hexdigest()


def test_construction_is_silent(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        tiny_encoder()
    out, err = capfd.readouterr()
    assert (out, err, caplog.records) == ("", "", [])


def test_adapter_config_is_json_that_names_the_model() -> None:
    config = tiny_encoder().adapter_config()
    assert config["base_model_name_or_path"] == str(tiny_bert())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["r"] == 4


def test_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"`encoder\.model` must name .* give a local path"):
        tiny_encoder(tmp_path / "nowhere")


def test_more_lora_layers_than_layers_are_refused() -> None:
    with pytest.raises(EncoderError, match=r"`encoder\.lora_layers` must be at most 3, .* got 4"):
        tiny_encoder(lora_layers=4)


def test_adapter_of_another_shape_is_refused() -> None:
    encoder = tiny_encoder()
    before = encoder.lora_state()
    with pytest.raises(EncoderError, match="do not fit"):
        encoder.load_lora(tiny_encoder(lora_layers=2).lora_state())
    assert all(torch.equal(before[name], value) for name, value in encoder.lora_state().items())


def test_tokenizer_that_pads_on_the_left_is_made_to_pad_on_the_right(tmp_path: Path) -> None:
    model = tmp_path / "left"
    shutil.copytree(tiny_bert(), model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "left"}))
    encoder = tiny_encoder(model)
    torch.testing.assert_close(encoder.suffix(encoder.prefix(TEXTS)), whole_model(encoder, TEXTS), atol=FP16, rtol=FP16)


def test_activations_do_not_depend_on_what_is_encoded_beside_a_text() -> None:
    encoder = tiny_encoder()
    texts = [" ".join(["red", "oak", "mug"][: 1 + n % 3] * (1 + n % 5)) for n in range(23)]
    together = encoder.prefix(texts)
    for order in (range(22, -1, -1), range(0, 23, 2), [7]):
        for index, alone in zip(order, encoder.prefix([texts[index] for index in order]), strict=True):
            assert torch.equal(alone, together[index])


@pytest.mark.parametrize("text", ["red mug " * 131_072, "x" * 2**20, "茶" * 350_000, " " * 2**20])
def test_a_text_of_1_mb_is_cut_before_it_is_tokenised(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny_encoder()
    tokenizer, lengths = encoder.tokenizer, list[int]()

    def tokenise(texts: list[str], **kwargs: object) -> object:
        lengths.extend(map(len, texts))
        return tokenizer(texts, **kwargs)

    monkeypatch.setattr(encoder, "tokenizer", Tokenise(tokenise, tokenizer))
    (alone,) = encoder.prefix([text])
    (cut,) = encoder.prefix([text[:MAX_TEXT_CHARS]])
    encoder.frozen_prefix()(text)
    assert torch.equal(alone, cut)
    assert max(lengths) == MAX_TEXT_CHARS


def test_a_text_under_the_bound_is_tokenised_whole() -> None:
    encoder = tiny_encoder()
    text = "x" * (MAX_TEXT_CHARS - 8) + " red mug"
    whole = encoder.tokenizer(text, truncation=True, max_length=encoder.settings.max_tokens)["input_ids"]
    assert encoder._token_ids([text]) == [whole]


class Tokenise:
    """A tokenizer that is called through a function."""

    def __init__(self, called: Callable[..., object], whole: Any) -> None:
        self._called, self._whole = called, whole

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._called(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)
