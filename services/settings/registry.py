"""Settings of the registry process."""

from pydantic import BaseModel, ConfigDict, Field, SecretStr

# Updater, registry process and scorer meet here by default: in the directory that all of them are started in.
DEFAULT_REGISTRY_URL = ".headwater/registry"


class RegistrySettings(BaseModel):
    """Where the adapters are kept and where they are served.

    Attributes:
        url: Root of the registry: a path or any fsspec address, such as `s3://bucket/adapters`.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        announce_rollouts: Whether a change of what is served is told on the adapters topic, too; off where there is no
            Kafka.
        api_key: What workers and commands show a registry process that asks for a key: of scope `read` for workers,
            `read` and `admin` for commands that change what is served.
        read_seconds: Deadline of one read from a registry process as a whole, for workers and commands; a file that
            arrives at 100 kB/s or faster gets the time that its bytes take at that rate on top.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(default=DEFAULT_REGISTRY_URL, min_length=1)
    host: str = "127.0.0.1"
    port: int = Field(default=8084, ge=0, le=65535)
    announce_rollouts: bool = True
    api_key: SecretStr | None = None
    read_seconds: float = Field(default=20.0, gt=0, le=600)

    def plain_key(self) -> str | None:
        """The key in the clear."""
        return None if self.api_key is None else self.api_key.get_secret_value()
