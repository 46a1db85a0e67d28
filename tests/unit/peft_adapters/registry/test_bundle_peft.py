"""PEFT itself loads a bundle: the directory is an ordinary adapter with additional files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import BertConfig, BertModel, PreTrainedModel

from peft_adapters.registry.bundle import write_bundle

# PEFT 0.21 still asks transformers 5 by the old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TOKENS = torch.tensor([[2, 5, 7, 3]])  # [1, tokens]


def tiny_bert() -> PreTrainedModel:
    torch.manual_seed(7)
    config = BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    model: PreTrainedModel = BertModel(config)
    model.train(False)
    return model


def hidden(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(input_ids=TOKENS).last_hidden_state  # [1, tokens, hidden]
    return output


@pytest.fixture
def trained() -> PeftModel:
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["query", "dense"], layers_to_transform=[1])
    model = get_peft_model(tiny_bert(), config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    assert isinstance(model, PeftModel)
    return model


def test_peft_loads_the_directory_and_computes_the_same(trained: PeftModel, tmp_path: Path) -> None:
    config = trained.peft_config["default"]
    write_bundle(
        tmp_path,
        groups={"adapter_model": get_peft_model_state_dict(trained), "heads": {"w": np.ones(3)}},
        adapter_config=config.to_dict(),
        item_ids=["a"],
        scenario="home",
        version=1,
        kind="full",
        snapshot=1,
        base_digest="tiny",
        offsets={},
        watermark_ms=0,
        published_at_ms=0,
        events_learned=0,
    )

    loaded = PeftModel.from_pretrained(tiny_bert(), str(tmp_path)).eval()

    base = hidden(tiny_bert())
    assert not torch.allclose(hidden(loaded), base, atol=1e-3)  # the adapter changes the output
    assert torch.equal(hidden(loaded), hidden(trained))  # as the written adapter does
    with loaded.disable_adapter():
        assert torch.equal(hidden(loaded), base)  # and without it the base is untouched
