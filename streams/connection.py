"""Connections to Kafka: settings, clients with clear errors, and waiting for a broker."""

import contextlib
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self, TypeVar

import structlog
from kafka import KafkaAdminClient
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from pydantic import BaseModel, ConfigDict, FilePath, SecretStr, field_validator, model_validator

from streams.errors import BrokerUnreachableError

log = structlog.get_logger(__name__)

# The client logs every attempt to reconnect at level ERROR. This package logs an outage once instead; to see the
# client's own lines, set `logging.getLogger("kafka").propagate = True`.
_client_log = logging.getLogger("kafka")
_client_log.addHandler(logging.NullHandler())
_client_log.propagate = False

BOOTSTRAP_TIMEOUT_MS = 5_000
PROBE_TIMEOUT_MS = 2_000
FIRST_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 5.0

Client = TypeVar("Client")

_OBJECT = re.compile(r"<.*>: ")  # the repr of the client's object at the start of its messages


class KafkaConnection(BaseModel):
    """Addresses and credentials of the brokers, the same for producers, consumers and administration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: FilePath | None = None
    ssl_certfile: FilePath | None = None
    ssl_keyfile: FilePath | None = None
    client_id: str = "headwater"

    @field_validator("bootstrap_servers")
    @classmethod
    def _check_servers(cls, value: str) -> str:
        servers = [server.strip() for server in value.split(",") if server.strip()]
        if not servers or not all(_is_host_and_port(server) for server in servers):
            raise ValueError(
                f"`bootstrap_servers` must be host:port, several separated by commas, got {value!r}; "
                "for example 127.0.0.1:9092"
            )
        return ",".join(servers)

    @model_validator(mode="after")
    def _check_sasl(self) -> Self:
        sasl = [self.sasl_mechanism, self.sasl_username, self.sasl_password]
        if self.security_protocol.startswith("SASL_") and not all(sasl):
            raise ValueError(
                f"`sasl_mechanism`, `sasl_username` and `sasl_password` must be set with {self.security_protocol}; "
                "set all three, or choose `security_protocol` PLAINTEXT or SSL"
            )
        if any(sasl) and not self.security_protocol.startswith("SASL_"):
            raise ValueError(
                f"`security_protocol` must be SASL_SSL or SASL_PLAINTEXT when a SASL setting is given, "
                f"got {self.security_protocol}; set it, or leave the SASL settings out"
            )
        return self

    def servers(self) -> list[str]:
        """Return the bootstrap servers as a list."""
        return self.bootstrap_servers.split(",")

    def client_options(self) -> dict[str, Any]:
        """Return keyword arguments for any kafka-python client: consumer, producer or admin."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.servers(),
            "client_id": self.client_id,
            "security_protocol": self.security_protocol,
            "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
            "reconnect_backoff_max_ms": 1_000,  # the client's default of 30 s would delay the notice of a restart
        }
        if self.sasl_password is not None:
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.sasl_password.get_secret_value(),
            }
        files = {name: getattr(self, name) for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile")}
        return options | {name: str(path) for name, path in files.items() if path is not None}


def open_client(build: Callable[..., Client], connection: KafkaConnection, **options: Any) -> Client:
    """Build a kafka-python client; the error of a failed attempt names the reason.

    The constructor of a client starts a thread and leaves it running when it fails; here it is stopped.

    Args:
        build: the class of the client.
        connection: the brokers to connect to.
        **options: further options of the client.

    Raises:
        BrokerUnreachableError: if no broker answers within `bootstrap_timeout_ms`, or refuses the connection, or no
            broker can be reached at its advertised address.
    """
    problem = bootstrap_problem(connection)
    if problem is not None:
        raise BrokerUnreachableError(connection.bootstrap_servers, problem)
    started: list[KafkaNetClient] = []

    def start(**settings: Any) -> KafkaNetClient:
        net = NetworkSelector(**settings)
        started.append(KafkaNetClient(net=net, manager=_ConnectionManager(net, **settings)))
        return started[0]

    with _client_errors() as errors:
        try:
            return build(**connection.client_options() | options, kafka_client=start)
        except (KafkaError, OSError) as error:
            for client in started:
                client.close()
            raise BrokerUnreachableError(
                connection.bootstrap_servers, _client_reason(error, errors, connection)
            ) from error


def _client_reason(error: Exception, logged: Sequence[str], connection: KafkaConnection) -> str:
    """Return why a client could not be built."""
    if isinstance(error, _AdvertisedListenerError):
        return str(error.args[0])
    reason = logged[0] if logged else str(error)
    if connection.sasl_mechanism is not None:
        reason += " (a wrong `sasl_username` or `sasl_password` can cause this)"
    return reason


def bootstrap_problem(connection: KafkaConnection) -> str | None:
    """Return why no bootstrap server accepts a connection, or None if one does; faster than building a client."""
    reasons = []
    for server in connection.servers():
        reason = connect_problem(*_address(server))
        if reason is None:
            return None
        reasons.append(reason)
    return reasons[0]


def connect_problem(host: str, port: int) -> str | None:
    """Return why an address accepts no connection, or None if it does."""
    try:
        socket.create_connection((host, port), timeout=PROBE_TIMEOUT_MS / 1000).close()
    except (OSError, UnicodeError, OverflowError) as error:  # the last two: invalid host name, invalid port
        return getattr(error, "strerror", None) or str(error)
    return None


class _AdvertisedListenerError(KafkaError):  # type: ignore[misc]  # kafka-python has no types
    """A bootstrap server answers, but no broker can be reached at its advertised address."""


class _ConnectionManager(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python has no types
    """The client's connection manager; bootstrapping includes a connection to an advertised address.

    A client learns the brokers' addresses from a bootstrap server and then uses only these. The client continues with
    the connection that is made here.
    """

    def bootstrap(self, timeout_ms: int, refresh: bool = True) -> None:
        super().bootstrap(timeout_ms, refresh)
        reasons: list[str] = []
        for broker in self.cluster.brokers():
            try:
                self.run(self._connect_to, broker.node_id, timeout_ms)
            except Exception as error:  # KafkaError, and errors of the resolver and the TLS library
                cause = connect_problem(broker.host, broker.port) or str(error.args[0] if error.args else error)
                reasons.append(f"it advertises {broker.host}:{broker.port}, which cannot be connected to ({cause})")
            else:
                return
        raise _AdvertisedListenerError(reasons[0] if reasons else "it lists no brokers")

    async def _connect_to(self, node_id: int, timeout_ms: int) -> None:
        connection = self.get_connection(node_id, timeout_ms=timeout_ms)
        await self.wait_for(connection.init_future, timeout_ms)


def unreachable_reason(connection: KafkaConnection) -> str | None:
    """Return why no broker answers, or None if one does."""
    try:
        probe = open_client(KafkaAdminClient, connection, bootstrap_timeout_ms=PROBE_TIMEOUT_MS)
    except BrokerUnreachableError as error:
        return error.reason
    probe.close()
    return None


def backoff_seconds() -> Iterator[float]:
    """Yield pauses between attempts without end: 0.2 s, doubled each time, at most 5 s."""
    pause_seconds = FIRST_BACKOFF_SECONDS
    while True:
        yield pause_seconds
        pause_seconds = min(pause_seconds * 2, MAX_BACKOFF_SECONDS)


def wait_for_broker(
    connection: KafkaConnection, *, timeout_seconds: float | None = None, stop: threading.Event | None = None
) -> bool:
    """Wait until a broker answers; log one warning if none does, and one line when one answers again.

    Args:
        connection: the brokers to wait for.
        timeout_seconds: the longest time to wait; None waits for ever.
        stop: an event that ends the wait when it is set.

    Returns:
        True once a broker has answered, False if `stop` was set first.

    Raises:
        BrokerUnreachableError: if no broker answered within `timeout_seconds`.
    """
    began = time.monotonic()
    stop = stop or threading.Event()
    pauses = backoff_seconds()
    warned = False
    while (reason := unreachable_reason(connection)) is not None:
        error = BrokerUnreachableError(connection.bootstrap_servers, reason)
        pause_seconds = next(pauses)
        if timeout_seconds is not None and time.monotonic() + pause_seconds > began + timeout_seconds:
            raise error
        if not warned:
            retry = "until it answers" if timeout_seconds is None else f"for {timeout_seconds:g} s"
            log.warning("kafka_unreachable", problem=str(error), retry=retry)
            warned = True
        if stop.wait(pause_seconds):
            return False
    if warned:
        waited_seconds = round(time.monotonic() - began, 1)
        log.info("kafka_reachable", bootstrap_servers=connection.bootstrap_servers, after_seconds=waited_seconds)
    return True


def _address(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


def _is_host_and_port(server: str) -> bool:
    try:
        host, port = _address(server)
    except ValueError:
        return False
    return bool(host) and 0 < port < 65536


@contextlib.contextmanager
def _client_errors() -> Iterator[list[str]]:
    """Collect the errors that clients started in this context log: only the log shows that a password is wrong.

    Clients log from threads of their own; lines of threads that existed before concern other connections.
    """
    messages: list[str] = []
    older = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread not in older:
                messages.append(_OBJECT.sub("", record.getMessage()))

    collector = Collector(level=logging.ERROR)
    _client_log.addHandler(collector)
    try:
        yield messages
    finally:
        _client_log.removeHandler(collector)
