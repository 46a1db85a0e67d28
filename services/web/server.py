"""Serving: where a process listens, how it says so, and how it ends."""

import asyncio
import contextlib
import ipaddress
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI

from services.errors import HeadwaterServiceError
from services.metrics.access import AccessMetrics
from services.settings.web import LimitSettings, SecuritySettings
from services.web.slow_clients import GiveUp, bounded_protocol

GRACE_SECONDS = 10


class ServeError(HeadwaterServiceError, OSError):
    """An address cannot be listened on."""


class ExposedError(ServeError):
    """An address beyond loopback, and nobody asked for keys."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listening:
    """How a process listens.

    Attributes:
        limits: How long a client may take.
        security: Whether keys are asked for, and the certificate.
        metrics: Where slow clients are counted.
    """

    limits: LimitSettings = field(default_factory=LimitSettings)
    security: SecuritySettings = field(default_factory=SecuritySettings)
    metrics: AccessMetrics | None = None


class _Server(uvicorn.Server):
    """A server that says where it listens once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            announce(*sockets[0].getsockname()[:2])


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serves `app` until SIGTERM or SIGINT, then lets the requests in flight finish and returns.

    Prints ``listening HOST PORT`` on standard output once connections are accepted.

    Args:
        app: The application; its lifespan runs around the serving.
        host: The address to listen on.
        port: The port; 0 takes a free one, named by the line printed.

    Raises:
        ServeError: The address cannot be listened on, or must not be without keys, or its certificate cannot be read.
    """
    how = _listening(app)
    refuse_exposure(host, how.security)
    with _bind(host, port) as listener, _signals_kept_from_killing():
        _Server(_config(app, how)).run(sockets=[listener])


def _listening(app: FastAPI) -> Listening:
    """Return how an application listens: as its access rules say, where it has any."""
    how: Listening = getattr(app.state, "listening", None) or Listening()
    return how


def refuse_exposure(host: str, security: SecuritySettings) -> None:
    """Lets nobody listen beyond loopback who asks for no keys.

    Args:
        host: The address to listen on.
        security: Whether keys are asked for.

    Raises:
        ExposedError: The address is not loopback's, no keys are asked for, and nobody said that this is meant.
    """
    if security.keys_file is None and not security.open_to_all and not _is_loopback(host):
        raise ExposedError(
            f"`host` must be loopback's while `security.keys_file` is not set, got {host!r}; make keys with `headwater "
            "keys new` and set it, or set `security.open_to_all` where something in front checks who calls"
        )


def _is_loopback(host: str) -> bool:
    """Whether all addresses of a name are; the empty name means any address."""
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


@contextlib.contextmanager
def running(app: FastAPI, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serves `app` from a thread for as long as the context lasts, and gives its base URL.

    Args:
        app: The application.
        host: The address to listen on.
        port: The port; 0 takes a free one.

    Raises:
        ServeError: The address cannot be listened on, or the application did not start.
    """
    how = _listening(app)
    refuse_exposure(host, how.security)
    with _bind(host, port) as listener:
        server = uvicorn.Server(_config(app, how))
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),), daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise ServeError(f"the application at {host} did not start; see the log above")
                time.sleep(0.005)
            scheme = "http" if how.security.tls_certificate is None else "https"
            yield f"{scheme}://{host}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def _config(app: FastAPI, listening: Listening) -> uvicorn.Config:
    security = listening.security
    password = security.tls_key_password.get_secret_value() if security.tls_key_password else None
    config = uvicorn.Config(
        app,
        http=bounded_protocol(listening.limits, _counted(listening.metrics)),
        timeout_keep_alive=listening.limits.idle_seconds,
        ssl_certfile=security.tls_certificate,
        ssl_keyfile=security.tls_key,
        ssl_keyfile_password=password,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise ServeError(
            f"`security.tls_certificate` {security.tls_certificate} must be a certificate in PEM, and "
            f"`security.tls_key` its key, got: {error}; mend the files or the password"
        ) from error
    return config


def _counted(metrics: AccessMetrics | None) -> GiveUp:
    """Counts clients that were given up."""
    return lambda slow_over: None if metrics is None else metrics.slow_client_dropped(slow_over)


def _bind(host: str, port: int) -> socket.socket:
    """Opens the listening socket ourselves, so that a free port is known before the server runs."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    # Connections inherit it. asyncio sets it only on sockets it made itself, and without it an answer waits some 40 ms
    # for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> ServeError:
    return ServeError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another address or port 0")


def announce(host: str, port: int) -> None:
    """Tells whoever started the process where it listens; standard output carries nothing else."""
    sys.stdout.write(f"listening {host} {port}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _signals_kept_from_killing() -> Iterator[None]:
    """Lets `serve` return after a signal: uvicorn raises the signal again once it has shut down."""
    handled = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: None) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
