"""Settings of the model side. Free of torch, so that a command that never learns starts at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DEFAULT_MODEL = "default"
LoraOptimiserKind = Literal["adamw", "sgd"]

COUNTER_FEATURES = (
    "popularity_fast",
    "popularity_slow",
    "transition",
    "skip_transition",
    "session_cooccurrence",
    "history_cooccurrence",
    "neighbour_cooccurrence",
    "repeat",
    "session_lift",
    "last_basket",
    "in_session",
    "click_through",
    "never_sold",
)
AFFINITIES = ("session_affinity", "history_affinity", "last_item_affinity", "passed_over_affinity")
PASSED_OVER = ("passed_over_affinity", "passed_over_affinity_squared")
NEW_AFFINITIES = AFFINITIES[:3]
NEW_FEATURES = (*(f"{name}_new" for name in NEW_AFFINITIES), "session_attention_new")
QUERY_FEATURES = ("query_affinity", "query_affinity_squared")
AFFINITY_FEATURES = (
    *AFFINITIES,
    *(f"{name}_squared" for name in AFFINITIES),
    *NEW_FEATURES,
    "global_preference",
    *QUERY_FEATURES,  # last: where nobody searches in words they are left out
)
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
    """How the learner learns. Where the defaults come from: docs/decisions/."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0)
    negatives: int = Field(default=1_024, ge=1, description="sampled a batch; a smaller catalogue is used whole")
    judged_items: int = Field(
        default=5_000, ge=1, description="a larger catalogue is judged on the batch's sampled candidates only"
    )
    heads_learning_rate: float = Field(default=0.1, ge=0)
    global_preference_learning_rate: float = Field(default=0.03, ge=0, description="of what all shoppers like")
    list_global_preference_learning_rate: float = Field(
        default=0.003, ge=0, description="of the same where lists are learnt"
    )
    residual_learning_rate: float = Field(default=0.003, ge=0)
    list_residual_learning_rate: float = Field(default=3e-4, ge=0, description="of residuals where lists are learnt")
    loss_focus: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="q of the generalised cross-entropy: 0 is cross-entropy, more lets what is ranked hopelessly low "
        "weigh less",
    )
    lora_optimiser: LoraOptimiserKind = Field(
        default="adamw", description="sgd is plain, without momentum, and needs a rate some 300 to 1,000 times as high"
    )
    lora_learning_rate: float = Field(default=2e-3, ge=0)
    lora_warmup_steps: int = Field(default=0, ge=0, description="steps over which LoRA's rate rises to the full one")
    lora_weight_decay: float = Field(default=0.01, ge=0)
    lora_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of what LoRA's matrices see that a training step leaves out"
    )
    lora_accumulate: int = Field(
        default=1, ge=1, description="a step of LoRA goes along the mean gradient of so many batches"
    )
    lora_every_events: int = Field(
        default=96, ge=1, description="LoRA takes a step once so much text counted, each event by its item's text share"
    )
    lora_slowdown_steps: float = Field(
        default=100.0,
        gt=0,
        description="after so many steps of LoRA twice as much text must count for the next, and so on",
    )
    lora_items: int = Field(default=512, ge=1, description="distinct texts that a step of LoRA gets gradients from")
    lora_replay_batches: int = Field(
        default=0,
        ge=0,
        description="earlier batches kept, a uniform sample; a step of LoRA adds the gradient of one, and takes twice "
        "as long. 0 keeps none",
    )
    lora_refresh_steps: int = Field(
        default=4,
        ge=1,
        description="item vectors, and what is published, follow LoRA once in so many of its steps at most",
    )
    lora_ahead_batches: int = Field(
        default=8, ge=1, description="over so many batches these vectors are made, here and by whoever serves"
    )
    projection_learning_rate: float = Field(
        default=0.1,
        ge=0,
        description="of the projections that add vectors of other modalities to texts, over the root of their length",
    )
    projection_weight_decay: float = Field(
        default=0.5, ge=0, description="a step takes this times the rate off; what is not learnt again fades"
    )
    projection_refresh_batches: int = Field(
        default=4, ge=1, description="item vectors, and what is published, follow projections once in so many batches"
    )
    features: tuple[str, ...] = Field(default=FEATURES, description="features the head may use, for ablations")
    residuals: bool = Field(default=True, description="off: item vectors are text alone")
    lora: bool = Field(default=True, description="off: the adapter stays at its start")


class GateSettings(BaseModel):
    """What a candidate must keep to. The rules, and where the defaults come from: docs/gate-and-drift.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_head_weight: float = Field(default=100.0, gt=0, description="largest absolute weight of a head")
    max_residual_norm: float = Field(default=20.0, gt=0, description="largest norm of an item's residual; texts have 1")
    max_lora_norm: float = Field(default=100.0, gt=0, description="largest norm of one LoRA matrix")
    max_projection_norm: float = Field(
        default=20.0, gt=0, description="largest norm of what a projection adds to a text, on average over all vectors"
    )
    max_norm_ratio: float = Field(
        default=3.0, gt=1, description="largest norm of a group over that of the live adapter"
    )
    window_events: int = Field(default=512, ge=1, description="newest events over which losses are compared")
    min_events: int = Field(default=128, ge=2, description="with fewer, losses are not compared")
    loss_tolerance: float = Field(
        default=0.05,
        ge=0,
        description="what a candidate's loss an event may be above live's (nats, where `loss_focus` is 0)",
    )
    standard_errors: float = Field(default=3.0, ge=0, description="and this many standard errors of the mean more")
    max_calibration_error: float = Field(
        default=0.2, gt=0, description="how much further than live's mean predicted over observed may be from 1"
    )
    refusals_before_rollback: int = Field(
        default=3, ge=1, description="after so many refusals in a row the learner goes back"
    )


class DriftSettings(BaseModel):
    """What counts as drift, and what follows. Where the defaults come from: docs/gate-and-drift.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="off: nothing is watched for and nothing follows")
    adwin_delta: float = Field(default=0.002, gt=0, lt=1, description="chance of a false alarm that ADWIN allows")
    page_hinkley_delta: float = Field(default=0.3, ge=0, description="rise of the mean loss (nats) not worth an alarm")
    page_hinkley_threshold: float = Field(
        default=6.0, gt=0, description="nats over that, added up over blocks of 64 events, make an alarm"
    )
    rate_factor: float = Field(default=3.0, ge=1, description="learning rates then rise by this")
    raised_batches: int = Field(default=40, ge=1, description="micro-batches for which they stay there")
    confirm_share: float = Field(
        default=0.4,
        gt=0,
        description="learning hurries where so much of what was known over chance (nats) is lost since an alarm",
    )
    forget_halvings: int = Field(
        default=3, ge=0, le=10, description="how often all counts are then halved; 0 forgets nothing"
    )
    recovered_nats: float = Field(default=0.1, ge=0, description="mean loss this near to the one before is recovery")


class SigningSettings(BaseModel):
    """With which key manifests are signed, and whose signatures count."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    private_key: Path | None = Field(
        default=None, description="PEM file of the key that the updater signs with; None: it does not sign"
    )
    public_keys: tuple[Path, ...] = Field(
        default=(), description="PEM files of the keys whose signatures count where bundles are read"
    )
    require_signature: bool = Field(default=False, description="whether bundles not signed by one of them are refused")

    @model_validator(mode="after")
    def _requires_what_can_be(self) -> Self:
        if self.require_signature and not self.public_keys:
            raise ValueError(
                "`require_signature` must come with at least one of `public_keys`, got none; name the updater's public "
                "key, or leave it off"
            )
        return self
