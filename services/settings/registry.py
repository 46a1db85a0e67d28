"""Settings of the registry process."""

from pydantic import BaseModel, ConfigDict, Field, SecretStr

# Default of updater, registry process and scorer: relative to the directory in which all of them are started.
DEFAULT_REGISTRY_URL = ".headwater/registry"


class RegistrySettings(BaseModel):
    """Storage and address of the registry process, and access to it.

    Attributes:
        url: root of the registry: a path or any fsspec address, such as `s3://bucket/adapters`.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        announce_rollouts: whether rollout changes are also announced on the adapters topic; turn it off without Kafka.
        api_key: key that workers and commands send to a registry process that requires one: with scope `read` for
            workers, with `read` and `admin` for commands that change the rollout.
        read_seconds: deadline of one read from a registry process, for workers and commands; a file that arrives at
            100 kB/s or faster gets the time that its bytes take at that rate in addition.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(default=DEFAULT_REGISTRY_URL, min_length=1)
    host: str = "127.0.0.1"
    port: int = Field(default=8084, ge=0, le=65535)
    announce_rollouts: bool = True
    api_key: SecretStr | None = None
    read_seconds: float = Field(default=20.0, gt=0, le=600)

    def plain_key(self) -> str | None:
        """Return the API key as plain text."""
        return None if self.api_key is None else self.api_key.get_secret_value()
