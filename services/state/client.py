"""Connections to Redis or Valkey, with errors of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from services.settings.state import StateSettings
from services.state.errors import StateError, StateRefusedError, StateUnavailableError

if TYPE_CHECKING:
    from redis import Redis


def connect(settings: StateSettings, *, timeout_seconds: float) -> Redis:
    """Return a client that connects at its first command, and reconnects once after a lost connection.

    Args:
        settings: the settings with the address of Redis.
        timeout_seconds: the longest wait for each answer and for each connection.

    Raises:
        StateError: the client library is not installed, or the address is invalid.
    """
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as ConnectionLostError
        from redis.retry import Retry
    except ImportError as error:
        raise StateError("`state.source` redis needs the client library; pip install 'headwater[redis]'") from error
    try:
        return Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionLostError,)),
            protocol=2,
            decode_responses=True,
            encoding_errors="replace",
        )
    except ValueError:  # its text would repeat the address, password included
        raise StateError(
            "`state.redis_url` must be redis://HOST:PORT/DB, rediss:// or unix://, got something else"
        ) from None


def display_url(settings: StateSettings) -> str:
    """Return the address of Redis without user and password."""
    parts = urlsplit(settings.redis_url.get_secret_value())
    host = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else ""
    return f"{parts.scheme}://{host}{parts.path}"


@contextmanager
def redis_errors(settings: StateSettings) -> Iterator[None]:
    """Turn errors of Redis into `StateRefusedError` if it refuses a command, else into `StateUnavailableError`."""
    from redis.exceptions import RedisError, ResponseError

    try:
        yield
    except ResponseError as error:
        raise StateRefusedError(
            f"Redis at {display_url(settings)} refuses a command: {error}; "
            "check its rights, its memory, and `state.prefix`"
        ) from error
    except (RedisError, OSError) as error:
        raise StateUnavailableError(
            f"no Redis answers at {display_url(settings)}: {type(error).__name__}: {error}; "
            "check `state.redis_url`, and that the server runs"
        ) from error
