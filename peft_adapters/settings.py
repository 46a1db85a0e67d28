"""Settings of the model side. Free of torch, so that a command that never learns starts at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_MODEL = "default"

COUNTER_FEATURES = (
    "popularity_fast",
    "popularity_slow",
    "transition",
    "skip_transition",
    "session_cooccurrence",
    "history_cooccurrence",
    "repeat",
    "last_basket",
    "in_session",
    "click_through",
)
AFFINITIES = ("session_affinity", "history_affinity", "last_item_affinity", "passed_over_affinity")
PASSED_OVER = ("passed_over_affinity", "passed_over_affinity_squared")
AFFINITY_FEATURES = (*AFFINITIES, *(f"{name}_squared" for name in AFFINITIES), "taste")
FEATURES = COUNTER_FEATURES + AFFINITY_FEATURES


class EncoderSettings(BaseModel):
    """Which encoder is frozen, and where its adapter sits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        default=DEFAULT_MODEL, description="Hugging Face id or path; 'default' is the packaged all-MiniLM-L6-v2"
    )
    max_tokens: int = Field(default=64, ge=4, le=512, description="texts are cut after this many tokens")
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        default="auto",
        description="how tokens become one vector; auto: as the model's sentence-transformers files say, else last for "
        "decoder-only models and mean for the others",
    )
    lora_layers: int = Field(default=1, ge=1, description="how many of the last layers carry LoRA")
    lora_rank: int = Field(default=8, ge=1)
    lora_alpha: int = Field(default=16, ge=1)
    lora_seed: int = Field(default=0, ge=0, description="seed of the random half of LoRA")
    cache_dir: Path | None = Field(
        default=Path(".headwater/cache"), description="where frozen activations of texts are kept between runs"
    )
    cache_max_bytes: int = Field(default=4 * 2**30, ge=2**20)
    activations: Literal["float16", "float32"] = Field(
        default="float16", description="precision of the frozen activations that are kept; float32 takes twice the room"
    )


class LearnerSettings(BaseModel):
    """How the learner learns. Where the defaults come from: docs/decisions.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0)
    negatives: int = Field(default=1_024, ge=1, description="sampled a batch; a smaller catalogue is used whole")
    judged_items: int = Field(
        default=5_000, ge=1, description="a larger catalogue is judged on the batch's sampled candidates only"
    )
    heads_learning_rate: float = Field(default=0.1, ge=0)
    taste_learning_rate: float = Field(default=0.003, ge=0, description="of what all shoppers like, learnt from lists")
    residual_learning_rate: float = Field(default=0.003, ge=0)
    list_residual_learning_rate: float = Field(default=3e-4, ge=0, description="of residuals where lists are learnt")
    lora_learning_rate: float = Field(default=1e-3, ge=0)
    lora_weight_decay: float = Field(default=0.01, ge=0)
    lora_every_batches: int = Field(default=1, ge=1, description="LoRA takes a step on one batch in so many")
    lora_items: int = Field(default=512, ge=1, description="distinct texts that a step of LoRA gets gradients from")
    lora_refresh_batches: int = Field(
        default=4, ge=1, description="item vectors, and what is published, follow LoRA once in so many batches"
    )
    features: tuple[str, ...] = Field(default=FEATURES, description="features the head may use, for ablations")
    residuals: bool = Field(default=True, description="off: item vectors are text alone")
    lora: bool = Field(default=True, description="off: the adapter stays at its start")
