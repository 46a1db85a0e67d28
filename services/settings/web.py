"""Settings of HTTP servers: keys, TLS, audit log and limits. Imports nothing heavy."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator


class SecuritySettings(BaseModel):
    """Keys, TLS and audit log of an HTTP server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys_file: Path | None = Field(
        default=None, description="keys file of `headwater keys`; without it, every caller is served, on loopback alone"
    )
    open_to_all: bool = Field(
        default=False, description="listen beyond loopback without keys; for servers behind a proxy that checks callers"
    )
    tls_certificate: Path | None = Field(
        default=None, description="TLS certificate with its chain, PEM; with it, only TLS is served"
    )
    tls_key: Path | None = Field(default=None, description="private key of the certificate, PEM")
    tls_key_password: SecretStr | None = Field(default=None, description="password of the private key, if it has one")
    audit_log: Path | None = Field(
        default=None, description="file that records admin calls; without it, only the process's log does"
    )

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, lacking = ("tls_certificate", "tls_key") if self.tls_key is None else ("tls_key", "tls_certificate")
            raise ValueError(f"`{given}` must come with `{lacking}`, got it alone; give both or neither")
        return self


class LimitSettings(BaseModel):
    """Concurrency and time limits of an HTTP server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_requests: int = Field(
        default=64, ge=1, description="requests answered at once; further ones get 503 and Retry-After"
    )
    max_connections: int = Field(default=2_048, ge=1, description="open connections; further ones are closed with 503")
    request_seconds: float = Field(
        default=10.0, gt=0, description="time from the head of a request to its answer; after it, 503"
    )
    head_seconds: float = Field(default=5.0, gt=0, description="time for a client to send the head of a request")
    body_seconds: float = Field(
        default=5.0, gt=0, description="time for a client to send the body of a request; after it, 408"
    )
    unfinished_body_bytes: int = Field(
        default=64 * 2**20,
        ge=1,
        description="bytes of bodies being received at once; beyond it, the largest body is refused with 503",
    )
    answer_seconds: float = Field(default=30.0, gt=0, description="time that a client may leave an answer unread")
    idle_seconds: int = Field(default=5, ge=1, description="time that a connection is kept open without a request")

    @model_validator(mode="after")
    def _body_within_request(self) -> Self:
        if self.body_seconds > self.request_seconds:
            raise ValueError(
                f"`body_seconds` must be at most `request_seconds`, {self.request_seconds:g}, got "
                f"{self.body_seconds:g}; lower it, or raise the other"
            )
        return self
