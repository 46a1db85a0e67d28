"""The layers of a model, and leaving it below the first one that carries LoRA."""

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
    """Carries the hidden states out of the model at the split; the layers above it need not run."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class FrozenPrefix:
    """The frozen part for one text at a time, from any thread: nothing is padded, nothing is rounded.

    `Encoder.prefix` pads, so that what is kept of items is the same to the last bit; this is for what is not kept.

    Args:
        model: whose weights it shares; its modules are its own, and may be replaced.
        split: the layer from which on nothing is run.
        tokenise: ids of a text.

    Attributes:
        layers: that are run.
    """

    def __init__(self, model: PreTrainedModel, split: int, tokenise: Callable[[str], list[int]]) -> None:
        weights = [*model.parameters(), *model.buffers()]
        self._model = copy.deepcopy(model, memo={id(weight): weight for weight in weights})
        self._tokenise = tokenise
        _, layers = transformer_layers(self._model)
        self.layers = list(layers)[:split]
        layers[split].register_forward_pre_hook(leave_with_hidden, with_kwargs=True)

    @torch.inference_mode()
    def __call__(self, text: str) -> Tensor:
        """fp32 activations [tokens, dim]."""
        try:
            self._model(input_ids=torch.tensor([self._tokenise(text)]))
        except PrefixDoneError as done:
            return done.hidden[0]
        raise EncoderError("the layer at the split was never run")


def leave_with_hidden(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A hook that ends a forward before the layer that it is on."""
    raise PrefixDoneError(args[0] if args else kwargs["hidden_states"])


def transformer_layers(base: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of transformer blocks: the one module list with as many entries as the configuration has layers."""
    count = None if base.config.is_encoder_decoder else getattr(base.config, "num_hidden_layers", None)
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and linear_names(name, module, 0):
            return name, module
    raise EncoderError(f"{type(base).__name__} is not one stack of layers with linear modules in them; {SUPPORTED}")


def linear_names(name: str, layers: nn.ModuleList, split: int) -> list[str]:
    """Names of the linear modules from a layer on, where LoRA goes."""
    return [
        f"{name}.{index}.{child}"
        for index in range(split, len(layers))
        for child, module in layers[index].named_modules()
        if isinstance(module, nn.Linear)
    ]
