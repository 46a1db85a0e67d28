"""How to reach Kafka, and how to wait for it: one clear line when it is away, one when it is back."""

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

# The client logs every attempt to reconnect, at ERROR. What a person needs of it, this package says once; what the
# client says can be had with `logging.getLogger("kafka").propagate = True`.
_client_log = logging.getLogger("kafka")
_client_log.addHandler(logging.NullHandler())
_client_log.propagate = False

BOOTSTRAP_TIMEOUT_MS = 5_000
PROBE_TIMEOUT_MS = 2_000
FIRST_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 5.0

Client = TypeVar("Client")

_OBJECT = re.compile(r"<.*>: ")  # the client's objects at the head of its messages


class KafkaConnection(BaseModel):
    """Where the brokers are and how to prove who we are. The same for producers, consumers and administration."""

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
    def _names_host_and_port(cls, value: str) -> str:
        servers = [server.strip() for server in value.split(",") if server.strip()]
        if not servers or not all(_is_host_and_port(server) for server in servers):
            raise ValueError(
                f"`bootstrap_servers` must be host:port, several separated by commas, got {value!r}; "
                "for example 127.0.0.1:9092"
            )
        return ",".join(servers)

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> Self:
        given = [self.sasl_mechanism, self.sasl_username, self.sasl_password]
        if self.security_protocol.startswith("SASL_") and not all(given):
            raise ValueError(
                f"`sasl_mechanism`, `sasl_username` and `sasl_password` must be set with {self.security_protocol}; "
                "set all three, or choose `security_protocol` PLAINTEXT or SSL"
            )
        if any(given) and not self.security_protocol.startswith("SASL_"):
            raise ValueError(
                f"`security_protocol` must be SASL_SSL or SASL_PLAINTEXT when a SASL setting is given, "
                f"got {self.security_protocol}; set it, or leave the SASL settings out"
            )
        return self

    def servers(self) -> list[str]:
        """The bootstrap servers, one by one."""
        return self.bootstrap_servers.split(",")

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments that kafka-python's consumer, producer and admin client all take."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.servers(),
            "client_id": self.client_id,
            "security_protocol": self.security_protocol,
            "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
            "reconnect_backoff_max_ms": 1_000,  # the client's own 30 s would be the time it takes to notice a restart
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
    """Builds a kafka-python client, with its reason when it cannot be.

    A client's constructor starts a thread and leaves it running when it fails; here it is stopped.

    Raises:
        BrokerUnreachableError: If no broker answers within `bootstrap_timeout_ms`, or it turns us away, or no broker
            can be reached at the address that it advertises.
    """
    refused = bootstrap_problem(connection)
    if refused is not None:
        raise BrokerUnreachableError(connection.bootstrap_servers, refused)
    started: list[KafkaNetClient] = []

    def start(**settings: Any) -> KafkaNetClient:
        net = NetworkSelector(**settings)
        started.append(KafkaNetClient(net=net, manager=_ConnectionManager(net, **settings)))
        return started[0]

    with _complaints() as complaints:
        try:
            return build(**connection.client_options() | options, kafka_client=start)
        except (KafkaError, OSError) as error:
            for client in started:
                client.close()
            raise BrokerUnreachableError(
                connection.bootstrap_servers, _client_reason(error, complaints, connection)
            ) from error


def _client_reason(error: Exception, complaints: Sequence[str], connection: KafkaConnection) -> str:
    """Return why a client could not be built."""
    if isinstance(error, _AdvertisedListenerError):
        return str(error.args[0])
    reason = complaints[0] if complaints else str(error)
    if connection.sasl_mechanism is not None:
        reason += " (a wrong `sasl_username` or `sasl_password` may end so)"
    return reason


def bootstrap_problem(connection: KafkaConnection) -> str | None:
    """Why no server takes a connection: quicker than a client, and it leaves nothing open."""
    reasons = []
    for server in connection.servers():
        reason = connect_problem(*_address(server))
        if reason is None:
            return None
        reasons.append(reason)
    return reasons[0]


def connect_problem(host: str, port: int) -> str | None:
    """Return why an address takes no connection, or None if it does."""
    try:
        socket.create_connection((host, port), timeout=PROBE_TIMEOUT_MS / 1000).close()
    except (OSError, UnicodeError, OverflowError) as error:  # the last two: no host name, no port number
        return getattr(error, "strerror", None) or str(error)
    return None


class _AdvertisedListenerError(KafkaError):  # type: ignore[misc]  # kafka-python has no types
    """A bootstrap server answers, but no broker can be reached at the address that it advertises."""


class _ConnectionManager(KafkaConnectionManager):  # type: ignore[misc]  # kafka-python has no types
    """The client's own connections; bootstrapping includes a connection to an advertised address.

    A client learns the brokers' own addresses from a bootstrap server and then uses only these. The connection that is
    made here is the one that the client goes on with.
    """

    def bootstrap(self, timeout_ms: int, refresh: bool = True) -> None:
        super().bootstrap(timeout_ms, refresh)
        reasons: list[str] = []
        for broker in self.cluster.brokers():
            try:
                self.run(self._connect_to, broker.node_id, timeout_ms)
            except Exception as error:  # besides KafkaError whatever the resolver and the TLS library raise
                cause = connect_problem(broker.host, broker.port) or str(error.args[0] if error.args else error)
                reasons.append(f"it advertises {broker.host}:{broker.port}, which cannot be connected to ({cause})")
            else:
                return
        raise _AdvertisedListenerError(reasons[0] if reasons else "it names no brokers")

    async def _connect_to(self, node_id: int, timeout_ms: int) -> None:
        connection = self.get_connection(node_id, timeout_ms=timeout_ms)
        await self.wait_for(connection.init_future, timeout_ms)


def unreachable_reason(connection: KafkaConnection) -> str | None:
    """Why no broker answers, or None if one does."""
    try:
        probe = open_client(KafkaAdminClient, connection, bootstrap_timeout_ms=PROBE_TIMEOUT_MS)
    except BrokerUnreachableError as error:
        return error.reason
    probe.close()
    return None


def backoff_seconds() -> Iterator[float]:
    """Pauses between attempts: 0.2 s, doubled each time, at most 5 s, without end."""
    pause_seconds = FIRST_BACKOFF_SECONDS
    while True:
        yield pause_seconds
        pause_seconds = min(pause_seconds * 2, MAX_BACKOFF_SECONDS)


def wait_for_broker(
    connection: KafkaConnection, *, timeout_seconds: float | None = None, stop: threading.Event | None = None
) -> bool:
    """Waits until a broker answers: one warning when it does not, one line when it does again.

    Args:
        connection: Which broker.
        timeout_seconds: How long to go on trying; None is for ever.
        stop: Ends the wait when set.

    Returns:
        True once a broker has answered, False if `stop` was set first.

    Raises:
        BrokerUnreachableError: If none answered within `timeout_seconds`.
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
def _complaints() -> Iterator[list[str]]:
    """Collects what clients started meanwhile complain of: a wrong password is told only there.

    Clients log from threads of their own; what comes from older threads is about other connections.
    """
    heard: list[str] = []
    older = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread not in older:
                heard.append(_OBJECT.sub("", record.getMessage()))

    ear = Ear(level=logging.ERROR)
    _client_log.addHandler(ear)
    try:
        yield heard
    finally:
        _client_log.removeHandler(ear)
