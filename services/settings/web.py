"""Settings of who may call, over what, how many at once and how long. Free of anything heavy."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator


class SecuritySettings(BaseModel):
    """Keys, TLS and the audit log of a process that answers HTTP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys_file: Path | None = Field(
        default=None, description="of `headwater keys`; without it every caller is served, on loopback alone"
    )
    open_to_all: bool = Field(
        default=False, description="listen beyond loopback without keys; for when something in front checks callers"
    )
    tls_certificate: Path | None = Field(default=None, description="PEM, the chain included; with it, TLS alone")
    tls_key: Path | None = Field(default=None, description="PEM, of that certificate")
    tls_key_password: SecretStr | None = Field(default=None, description="of that key, if it has one")
    audit_log: Path | None = Field(
        default=None, description="where admin calls are told; without it, in the process's log alone"
    )

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, lacking = ("tls_certificate", "tls_key") if self.tls_key is None else ("tls_key", "tls_certificate")
            raise ValueError(f"`{given}` must come with `{lacking}`, got it alone; give both or neither")
        return self


class LimitSettings(BaseModel):
    """How many are served at once, and how long one may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_requests: int = Field(default=64, ge=1, description="answered at once; more get 503 and Retry-After")
    max_connections: int = Field(default=2_048, ge=1, description="open at once; more are closed with 503")
    request_seconds: float = Field(default=10.0, gt=0, description="from a request's head to its answer, else 503")
    head_seconds: float = Field(default=5.0, gt=0, description="a client may take over the head of a request")
    body_seconds: float = Field(default=5.0, gt=0, description="a client may take over its body, else 408")
    unfinished_body_bytes: int = Field(
        default=64 * 2**20,
        ge=1,
        description="of bodies that are being received at once; beyond it the largest is refused with 503",
    )
    answer_seconds: float = Field(default=30.0, gt=0, description="a client may leave an answer unread")
    idle_seconds: int = Field(default=5, ge=1, description="a connection is kept without a request")

    @model_validator(mode="after")
    def _body_within_request(self) -> Self:
        if self.body_seconds > self.request_seconds:
            raise ValueError(
                f"`body_seconds` must be at most `request_seconds`, {self.request_seconds:g}, got "
                f"{self.body_seconds:g}; lower it, or raise the other"
            )
        return self
