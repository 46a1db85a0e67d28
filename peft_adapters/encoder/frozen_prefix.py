"""The frozen layers of a model, and the hook that ends a forward pass below the first LoRA layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_adapters.errors import EncoderError, HeadwaterModelError

SUPPORTED = (
    "encoders like BERT, RoBERTa, DistilBERT, ELECTRA, MPNet and ModernBERT work, and decoder-only models like Llama, "
    "Mistral, Qwen2, Qwen3 and Gemma 3"
)


class PrefixDoneError(HeadwaterModelError):
    """Carries the hidden states out of the model at the split, so the layers above it do not run.

    Args:
        hidden: [texts, tokens, dim] activations at the split.
    """

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class FrozenPrefix:
    """The frozen layers for one text at a time, thread-safe, without padding or rounding.

    `Encoder.prefix` pads its batches so that cached activations of items are identical bit for bit. This class is for
    texts that are not cached on disk.

    Args:
        model: model whose weights are shared; its modules are copied and may be replaced.
        split: index of the first layer that does not run.
        tokenise: function that returns the token ids of a text.

    Attributes:
        layers: the layers below the split.
    """

    def __init__(self, model: PreTrainedModel, split: int, tokenise: Callable[[str], list[int]]) -> None:
        weights = [*model.parameters(), *model.buffers()]
        self._model = copy.deepcopy(model, memo={id(weight): weight for weight in weights})
        self._tokenise = tokenise
        _, layers = transformer_layers(self._model)
        self.layers = list(layers)[:split]
        layers[split].register_forward_pre_hook(stop_with_hidden_states, with_kwargs=True)

    @torch.inference_mode()
    def __call__(self, text: str) -> Tensor:
        """Return fp32 activations [tokens, dim] of a text."""
        try:
            self._model(input_ids=torch.tensor([self._tokenise(text)]))
        except PrefixDoneError as done:
            return done.hidden[0]
        raise EncoderError("the layer at the split was never run")


def stop_with_hidden_states(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """End a forward pass before the hooked layer runs (a forward pre-hook)."""
    raise PrefixDoneError(args[0] if args else kwargs["hidden_states"])


def transformer_layers(base: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the name and list of transformer blocks: the module list as long as the configured number of layers.

    Raises:
        EncoderError: the model is an encoder-decoder, or has no such list with linear modules.
    """
    count = None if base.config.is_encoder_decoder else getattr(base.config, "num_hidden_layers", None)
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and linear_names(name, module, 0):
            return name, module
    raise EncoderError(f"{type(base).__name__} is not one stack of layers with linear modules in them; {SUPPORTED}")


def linear_names(name: str, layers: nn.ModuleList, split: int) -> list[str]:
    """Return the names of the linear modules from layer `split` on: the target modules of LoRA."""
    return [
        f"{name}.{index}.{child}"
        for index in range(split, len(layers))
        for child, module in layers[index].named_modules()
        if isinstance(module, nn.Linear)
    ]
