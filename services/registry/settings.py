"""Settings of the registry process."""

from pydantic import BaseModel, ConfigDict, Field


class RegistrySettings(BaseModel):
    """Where the adapters are kept and where they are served.

    Attributes:
        url: Root of the registry: a path or any fsspec address, such as `s3://bucket/adapters`.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(default="registry", min_length=1)
    host: str = "127.0.0.1"
    port: int = Field(default=8084, ge=0, le=65535)
