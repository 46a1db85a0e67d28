"""Settings of the model: encoder, learner, gate, drift detection and signing.

Free of torch, so that commands which do not learn start fast.
"""

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
    *QUERY_FEATURES,  # last, because they are left out where there is no search query
)
FEATURES = COUNTER_FEATURES + AFFINITY_FEATURES
SECOND_STAGE_GROUPS = {  # further inputs of the second stage, by what they are computed from
    "pairs": (
        "cooccurrence_max",
        "cosine_max",
        "pair_support",
        "pair_share",
        "cosine_mean",
        "cosine_last",
        "cooccurrence_last",
        "transition_max",
        "transition_last",
        "transition_count",
        "transition_second",
        "pair_count_last",
        "transition_back",
    ),
    "order": ("order_last", "order_mean", "order_pooled", "order_min"),
    "item": ("evidence", "repeat_rate", "popularity_now", "events_since", "age"),
    "shopper_item": (
        "gap_time",
        "gap_sessions",
        "bought_before",
        "repeat_share",
        "followed_last_time",
        "times_in_session",
    ),
    "price": ("price_difference", "price_distance"),
    "context": (
        "session_length",
        "history_length",
        "sessions",
        "no_history",
        "shopper_repeat_rate",
        "pause",
        "last_evidence",
    ),
    "similarity": (
        "similarity_max",
        "similarity_max_near",
        "similarity_attention",
        "similarity_second",
        "similarity_mean",
        "text_last",
        "text_max",
        "text_max_near",
    ),
    "words": ("words_last", "words_max_near", "words_max", "words_mean"),
    "neighbours": (
        "neighbours",
        "neighbours_after",
        "neighbours_any_position",
        "neighbours_total",
        "neighbours_count",
    ),
}
SECOND_STAGE_FEATURES = tuple(name for names in SECOND_STAGE_GROUPS.values() for name in names)


class EncoderSettings(BaseModel):
    """The frozen encoder, and the position and size of its LoRA adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        default=DEFAULT_MODEL, description="Hugging Face id or path; 'default' is the packaged all-MiniLM-L6-v2"
    )
    max_tokens: int = Field(default=64, ge=4, le=512, description="texts are truncated to this many tokens")
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        default="auto",
        description="pooling of token vectors into one; auto: as the model's sentence-transformers files say, else "
        "last for decoder-only models and mean for others",
    )
    lora_layers: int = Field(default=1, ge=1, description="number of last layers with LoRA")
    lora_rank: int = Field(default=8, ge=1)
    lora_alpha: int = Field(default=16, ge=1)
    lora_seed: int = Field(default=0, ge=0, description="seed of LoRA's A matrices; the B matrices start at zero")
    cache_dir: Path | None = Field(
        default=Path(".headwater/cache"), description="directory that keeps frozen activations of texts between runs"
    )
    cache_max_bytes: int = Field(default=4 * 2**30, ge=2**20)
    activations: Literal["float16", "float32"] = Field(
        default="float16", description="precision of the stored frozen activations; float32 takes twice the space"
    )


class LearnerSettings(BaseModel):
    """Learning rates, schedules and loss of the learner. For the origin of the defaults see docs/decisions/."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0)
    negatives: int = Field(
        default=1_024, ge=1, description="negatives sampled per micro-batch; a smaller catalogue is used completely"
    )
    judged_items: int = Field(
        default=5_000,
        ge=1,
        description="largest catalogue that is evaluated completely; a larger one is evaluated on the micro-batch's "
        "sampled candidates",
    )
    heads_learning_rate: float = Field(default=0.1, ge=0)
    global_preference_learning_rate: float = Field(
        default=0.03, ge=0, description="learning rate of the preference vector shared by all shoppers"
    )
    list_global_preference_learning_rate: float = Field(
        default=0.003, ge=0, description="learning rate of the shared preference vector from lists"
    )
    residual_learning_rate: float = Field(default=0.003, ge=0)
    list_residual_learning_rate: float = Field(default=3e-4, ge=0, description="learning rate of residuals from lists")
    loss_focus: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="q of the generalised cross-entropy: 0 is cross-entropy; a higher q gives less weight to items "
        "ranked very low",
    )
    lora_optimiser: LoraOptimiserKind = Field(
        default="adamw", description="sgd has no momentum and needs a learning rate 300 to 1,000 times as high"
    )
    lora_learning_rate: float = Field(default=2e-3, ge=0)
    lora_warmup_steps: int = Field(
        default=0, ge=0, description="steps over which LoRA's learning rate rises to its full value"
    )
    lora_weight_decay: float = Field(default=0.01, ge=0)
    lora_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout rate of the inputs of LoRA's matrices in a training step"
    )
    lora_accumulate: int = Field(
        default=1, ge=1, description="number of micro-batches whose mean gradient makes one LoRA step"
    )
    lora_every_events: int = Field(
        default=96, ge=1, description="events per LoRA step, each weighted by the share of text in its item's vector"
    )
    lora_slowdown_steps: float = Field(
        default=100.0,
        gt=0,
        description="after n LoRA steps, a step needs exp(n / this) times as many events",
    )
    lora_items: int = Field(default=512, ge=1, description="number of distinct texts with gradients in a LoRA step")
    lora_replay_batches: int = Field(
        default=0,
        ge=0,
        description="size of a uniform sample of earlier micro-batches; a LoRA step adds the gradient of one of them "
        "and takes twice as long; 0 turns replay off",
    )
    lora_refresh_steps: int = Field(
        default=4,
        ge=1,
        description="LoRA steps between two refreshes of item vectors and published LoRA weights",
    )
    lora_ahead_batches: int = Field(
        default=8,
        ge=1,
        description="micro-batches over which the vectors of the next adapter are encoded, by updater and workers",
    )
    projection_learning_rate: float = Field(
        default=0.1,
        ge=0,
        description="learning rate of the projections of other modalities; divided by the square root of their length",
    )
    projection_weight_decay: float = Field(
        default=0.5,
        ge=0,
        description="decoupled weight decay: each step subtracts this times the learning rate times the weight",
    )
    projection_refresh_batches: int = Field(
        default=4, ge=1, description="micro-batches between two refreshes of item vectors and published projections"
    )
    features: tuple[str, ...] = Field(
        default=FEATURES + SECOND_STAGE_FEATURES,
        description="features that the head and the second stage use, for ablations",
    )
    second_stage: bool = Field(
        default=True,
        description="learn small networks that re-rank the best candidates of the linear score; they are served as far "
        "as they pay",
    )
    residuals: bool = Field(
        default=True, description="learn item residuals; without them an item vector is its text vector"
    )
    lora: bool = Field(default=True, description="train LoRA; without it the adapter keeps its initial weights")
    lora_trial: bool = Field(
        default=True,
        description="apply the adapter only while it pays on events not yet learnt, and train it rarely while it does "
        "not; otherwise it is always applied",
    )


class GateSettings(BaseModel):
    """Limits that a candidate must keep to; docs/explanation/gate-and-drift.md has the origin of the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_head_weight: float = Field(default=100.0, gt=0, description="largest absolute weight of a head or network")
    max_residual_norm: float = Field(
        default=20.0, gt=0, description="largest norm of an item's residual; text vectors have norm 1"
    )
    max_lora_norm: float = Field(default=100.0, gt=0, description="largest norm of one LoRA matrix")
    max_projection_norm: float = Field(
        default=20.0, gt=0, description="largest norm of a projected vector, averaged over all vectors"
    )
    max_norm_ratio: float = Field(
        default=3.0, gt=1, description="largest ratio of a tensor group's norm to that of the live adapter"
    )
    window_events: int = Field(default=512, ge=1, description="number of newest events over which losses are compared")
    min_events: int = Field(default=128, ge=2, description="number of events below which losses are not compared")
    loss_tolerance: float = Field(
        default=0.05,
        ge=0,
        description="allowed excess of a candidate's loss per event over live's (nats, if `loss_focus` is 0)",
    )
    standard_errors: float = Field(
        default=3.0, ge=0, description="further allowed excess, in standard errors of the mean"
    )
    max_calibration_error: float = Field(
        default=0.2,
        gt=0,
        description="allowed excess, over live's, of the distance of mean predicted over observed from 1",
    )
    refusals_before_rollback: int = Field(
        default=3, ge=1, description="consecutive refusals after which the learner is rolled back"
    )


class DriftSettings(BaseModel):
    """Detection of drift and the response; docs/explanation/gate-and-drift.md has the origin of the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="detect drift and respond to it")
    adwin_delta: float = Field(default=0.002, gt=0, lt=1, description="chance of a false alarm that ADWIN allows")
    page_hinkley_delta: float = Field(default=0.3, ge=0, description="rise of the mean loss (nats) that is tolerated")
    page_hinkley_threshold: float = Field(
        default=6.0,
        gt=0,
        description="alarm threshold: nats beyond the tolerated rise, summed over blocks of 64 events",
    )
    rate_factor: float = Field(default=3.0, ge=1, description="factor by which learning rates rise with it")
    raised_batches: int = Field(default=40, ge=1, description="micro-batches for which learning rates stay raised")
    forget_halvings: int = Field(
        default=3,
        ge=1,
        le=10,
        description="number of times that counts are halved, on trial after an alarm, for good if they rank better",
    )
    recovered_nats: float = Field(
        default=0.1,
        ge=0,
        description="distance of the mean loss from that before the alarm (nats) that counts as recovery",
    )


class SigningSettings(BaseModel):
    """The key that signs manifests, and the keys whose signatures are accepted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    private_key: Path | None = Field(
        default=None, description="PEM file of the updater's signing key; None: manifests are not signed"
    )
    public_keys: tuple[Path, ...] = Field(
        default=(), description="PEM files of the keys whose signatures readers accept"
    )
    require_signature: bool = Field(default=False, description="refuse bundles that none of `public_keys` signed")

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if self.require_signature and not self.public_keys:
            raise ValueError(
                "`require_signature` must come with at least one of `public_keys`, got none; name the updater's public "
                "key, or leave it off"
            )
        return self
