"""The HTTP server of a process: address, TLS, start and graceful end."""

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
from services.web.slow_clients import OnDrop, timeout_protocol

GRACE_SECONDS = 10


class ServeError(HeadwaterServiceError, OSError):
    """An address cannot be listened on, or an application does not start."""


class ExposedError(ServeError):
    """A process without keys was to listen on an address beyond loopback."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """Options of the HTTP server of a process.

    Attributes:
        limits: the time that a client may take.
        security: the keys file and the TLS certificate.
        metrics: the metrics that count slow clients; None counts none.
    """

    limits: LimitSettings = field(default_factory=LimitSettings)
    security: SecuritySettings = field(default_factory=SecuritySettings)
    metrics: AccessMetrics | None = None


class _Server(uvicorn.Server):
    """A server that prints its address once it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            print_address(*sockets[0].getsockname()[:2])


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serve `app` until SIGTERM or SIGINT, then finish the requests in flight and return.

    Prints ``listening HOST PORT`` on standard output once connections are accepted.

    Args:
        app: the application, whose lifespan encloses the serving.
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one, which the printed line names.

    Raises:
        ServeError: the address cannot be listened on or needs keys, or the certificate cannot be read.
    """
    options = _server_options(app)
    require_keys_beyond_loopback(host, options.security)
    with _bind(host, port) as listener, _ignored_signals():
        _Server(_config(app, options)).run(sockets=[listener])


def _server_options(app: FastAPI) -> ServerOptions:
    """Return the options that `install_access_control` has set, or the defaults."""
    options: ServerOptions = getattr(app.state, "server_options", None) or ServerOptions()
    return options


def require_keys_beyond_loopback(host: str, security: SecuritySettings) -> None:
    """Refuse to listen beyond loopback without keys.

    Args:
        host: the address to listen on.
        security: the section of the settings that names the keys file.

    Raises:
        ExposedError: the address is not loopback's, no keys file is set, and `security.open_to_all` is not set.
    """
    if security.keys_file is None and not security.open_to_all and not _is_loopback(host):
        raise ExposedError(
            f"`host` must be loopback's while `security.keys_file` is not set, got {host!r}; make keys with `headwater "
            "keys new` and set it, or set `security.open_to_all` where something in front checks who calls"
        )


def _is_loopback(host: str) -> bool:
    """Return whether all addresses of a host name are loopback's; the empty name means any address."""
    try:
        addresses = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in addresses)


@contextlib.contextmanager
def running(app: FastAPI, *, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """Serve `app` from a thread while the context lasts, and yield its base URL.

    Args:
        app: the FastAPI application.
        host: the address to listen on.
        port: the port to listen on; 0 takes a free one.

    Raises:
        ServeError: the address cannot be listened on, or the application did not start.
    """
    options = _server_options(app)
    require_keys_beyond_loopback(host, options.security)
    with _bind(host, port) as listener:
        server = uvicorn.Server(_config(app, options))
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),), daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise ServeError(f"the application at {host} did not start; see the log above")
                time.sleep(0.005)
            scheme = "http" if options.security.tls_certificate is None else "https"
            yield f"{scheme}://{host}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def _config(app: FastAPI, options: ServerOptions) -> uvicorn.Config:
    security = options.security
    password = security.tls_key_password.get_secret_value() if security.tls_key_password else None
    config = uvicorn.Config(
        app,
        http=timeout_protocol(options.limits, _slow_client_counter(options.metrics)),
        timeout_keep_alive=options.limits.idle_seconds,
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
            f"`security.tls_key` its key, got: {error}; fix the files or the password"
        ) from error
    return config


def _slow_client_counter(metrics: AccessMetrics | None) -> OnDrop:
    """Return a function that counts dropped clients."""
    return lambda slow_over: None if metrics is None else metrics.slow_client_dropped(slow_over)


def _bind(host: str, port: int) -> socket.socket:
    """Open the listening socket, so that a free port is known before the server runs."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    # Connections inherit the option. asyncio sets it only on sockets that it has made itself, and without it an answer
    # waits some 40 ms for the client's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _cannot_listen(host: str, port: int, error: OSError) -> ServeError:
    return ServeError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another address or port 0")


def print_address(host: str, port: int) -> None:
    """Print the address for the parent process; nothing else is written to standard output."""
    sys.stdout.write(f"listening {host} {port}\n")
    sys.stdout.flush()


@contextlib.contextmanager
def _ignored_signals() -> Iterator[None]:
    """Let `serve` return after a signal: uvicorn raises the signal again once it has shut down."""
    handled = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: None) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
