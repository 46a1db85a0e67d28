"""A connection to Redis or Valkey, whose errors are ours."""

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
    """A client; nothing is asked yet. It waits no longer than told, and tries a lost connection once anew.

    Args:
        settings: Which Redis.
        timeout_seconds: For each answer, and for each connection.

    Raises:
        StateError: The client library is not installed, or the address is none.
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
    except ValueError:  # its text would repeat the address, and with it the password
        raise StateError(
            "`state.redis_url` must be redis://HOST:PORT/DB, rediss:// or unix://, got something else"
        ) from None


def display_url(settings: StateSettings) -> str:
    """Where Redis is, without user and password."""
    parts = urlsplit(settings.redis_url.get_secret_value())
    host = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else ""
    return f"{parts.scheme}://{host}{parts.path}"


@contextmanager
def redis_errors(settings: StateSettings) -> Iterator[None]:
    """Translate errors of Redis: `StateRefusedError` if it refuses a command, else `StateUnavailableError`."""
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
