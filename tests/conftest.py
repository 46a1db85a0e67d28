"""Brokers for the tests: the embedded one always, Apache Kafka where HEADWATER_TEST_KAFKA names it.

HEADWATER_TEST_KAFKA is a launcher (`LAUNCHER DATA_DIR PORT CONTROLLER_PORT EXTRA.properties`, becomes the broker) or
the home of an unpacked Apache Kafka release.
"""

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from redis_server import RedisServer, redis_program, valkey_program

from streams.connection import KafkaConnection, unreachable_reason
from streams.embedded_broker import EmbeddedBroker
from streams.topic_creation import ensure_topics
from streams.topics import Topics

START_TIMEOUT_SECONDS = 60.0
PASSWORD = "only-for-tests"  # noqa: S105 - guards a broker that lives as long as the tests


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=4, help="how often the crash tests kill (`make crash`: 100)")
    parser.addoption("--faults", type=int, default=16, help="random faults of one updater (`make crash`: 200)")
    parser.addoption("--fuzzed", type=int, default=4_000, help="how many payloads are fuzzed (`make crash`: 200,000)")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name gzip data alike in all workers: it holds the time at which each of them made it."""
    return "gzip" if isinstance(val, bytes) and val.startswith(b"\x1f\x8b") else None


@pytest.fixture
def fuzzed(request: pytest.FixtureRequest) -> int:
    """How many payloads to fuzz."""
    return int(request.config.getoption("--fuzzed"))


@pytest.fixture
def faults(request: pytest.FixtureRequest) -> int:
    """How many random faults one run goes through."""
    return int(request.config.getoption("--faults"))


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How often to kill."""
    return int(request.config.getoption("--kills"))


_given_ports: set[int] = set()  # what is free stays free until its server begins, and would be given out again


def _free_port() -> int:
    """Nobody else's: of workers that run tests side by side, each has its own share of all ports."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given_ports and port // 2 % workers == worker:
            _given_ports.add(port)
            return port


class ApacheKafka:
    """One Apache Kafka broker on loopback; the same directory and ports when it is started again."""

    def __init__(self, directory: Path, *, properties: str = "", format_args: str = "", **security: object) -> None:
        self.directory = directory
        self.controller_port = _free_port()
        self._format_args = format_args
        self.port = _free_port()
        directory.mkdir(parents=True, exist_ok=True)
        self._properties = directory / "extra.properties"
        self.configure(properties)
        self.connection = KafkaConnection.model_validate({"bootstrap_servers": f"127.0.0.1:{self.port}", **security})
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, properties: str) -> None:
        """What it is to start with, beside ports and directories."""
        own = properties.replace("@PORT@", str(self.port)).replace("@C@", str(self.controller_port))
        self._properties.write_text(own)

    def properties(self) -> str:
        """What it starts with, beside ports and directories."""
        return self._properties.read_text()

    def start(self, *, wait: bool = True) -> Self:
        with (self.directory / "kafka.log").open("ab") as output:
            self._process = subprocess.Popen(
                [*_ends_with_parent(), *self._command()],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"KAFKA_FORMAT_ARGS": self._format_args},
            )
        if wait:
            self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while reason := unreachable_reason(self.connection):
            assert time.monotonic() < deadline, f"Apache Kafka did not start: {reason}; see {self.directory}/kafka.log"
            time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_TIMEOUT_SECONDS)

    def _command(self) -> list[str]:
        kafka = Path(os.environ["HEADWATER_TEST_KAFKA"]).resolve()
        if not kafka.is_dir():
            return [str(kafka), str(self.directory), str(self.port), str(self.controller_port), str(self._properties)]
        settings = self.directory / "server.properties"
        settings.write_text(self._base_properties() + self._properties.read_text())
        if not (self.directory / "log" / "meta.properties").exists():
            tool = [str(kafka / "bin" / "kafka-storage.sh"), "format", "--cluster-id", "4L6g3nShT-eMCtK--X86sw"]
            tool += ["--config", str(settings), *self._format_args.split()]
            subprocess.run(tool, check=True, capture_output=True)
        return [str(kafka / "bin" / "kafka-server-start.sh"), str(settings)]

    def _base_properties(self) -> str:
        return f"""
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{self.controller_port}
listeners=PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{self.port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL
log.dirs={self.directory}/log
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""


def _ends_with_parent() -> list[str]:
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def _certificates(directory: Path) -> tuple[Path, Path]:
    """A certificate authority (ca.pem) and a broker's key and certificate in one file, for 127.0.0.1."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    directory.mkdir(parents=True)
    (directory / "san.ext").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
    new_key = ["-newkey", "rsa:2048", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=tests",
            "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    openssl("req", *new_key, "-keyout", "broker.key", "-out", "broker.csr", "-subj", "/CN=127.0.0.1")
    openssl("x509", "-req", "-in", "broker.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", "broker.pem", "-days", "2", "-extfile", "san.ext")  # fmt: skip
    both = directory / "broker-key-and-certificate.pem"
    both.write_text((directory / "broker.key").read_text() + (directory / "broker.pem").read_text())
    return directory / "ca.pem", both


def _sasl_ssl_properties(ca: Path, key_and_certificate: Path) -> str:
    login = f'org.apache.kafka.common.security.scram.ScramLoginModule required username="admin" password="{PASSWORD}";'
    return f"""
listeners=SASL_SSL://127.0.0.1:@PORT@,CONTROLLER://127.0.0.1:@C@
advertised.listeners=SASL_SSL://127.0.0.1:@PORT@
inter.broker.listener.name=SASL_SSL
sasl.enabled.mechanisms=SCRAM-SHA-512
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={login}
ssl.keystore.type=PEM
ssl.keystore.location={key_and_certificate}
ssl.truststore.type=PEM
ssl.truststore.location={ca}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:ANONYMOUS
"""


@pytest.fixture
def free_port() -> int:
    return _free_port()


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(tmp_path_factory.mktemp("embedded")) as broker:
        yield broker


@pytest.fixture(scope="session")
def apache_kafka_home() -> str:
    kafka = os.environ.get("HEADWATER_TEST_KAFKA", "")
    if not kafka:
        pytest.skip("HEADWATER_TEST_KAFKA names no Apache Kafka (a launcher, or the home of an unpacked release)")
    assert Path(kafka).exists(), f"HEADWATER_TEST_KAFKA must exist, got {kafka}"
    return kafka


@pytest.fixture(scope="session")
def apache_kafka(apache_kafka_home: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    broker = ApacheKafka(tmp_path_factory.mktemp("kafka"))
    try:
        yield broker.start()
    finally:
        broker.stop()


@pytest.fixture(scope="session")
def apache_kafka_sasl_ssl(apache_kafka_home: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    directory = tmp_path_factory.mktemp("kafka-sasl-ssl")
    ca, key_and_certificate = _certificates(directory / "certificates")
    users = " ".join(f"--add-scram SCRAM-SHA-512=[name={user},password={PASSWORD}]" for user in ("admin", "nobody"))
    broker = ApacheKafka(
        directory / "data",
        properties=_sasl_ssl_properties(ca, key_and_certificate),
        format_args=users,
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="admin",
        sasl_password=PASSWORD,
        ssl_cafile=ca,
    )
    try:
        yield broker.start()
    finally:
        broker.stop()


@pytest.fixture
def mortal_apache_kafka(apache_kafka_home: str, tmp_path: Path) -> Iterator[ApacheKafka]:
    """A broker of the test's own, to be killed: the controller forgets it soon, so that it may come back soon."""
    properties = "broker.session.timeout.ms=2000\nbroker.heartbeat.interval.ms=500\n"
    broker = ApacheKafka(tmp_path / "kafka", properties=properties)
    try:
        yield broker.start()
    finally:
        broker.stop()


@pytest.fixture
def apache_kafka_cluster(apache_kafka_home: str, tmp_path: Path) -> Iterator[list[ApacheKafka]]:
    """Three brokers, to be killed one at a time: each record is on two of them before it is confirmed."""
    brokers = [ApacheKafka(tmp_path / f"kafka-{node}") for node in (1, 2, 3)]
    voters = ",".join(f"{node}@127.0.0.1:{broker.controller_port}" for node, broker in enumerate(brokers, 1))
    try:
        for node, broker in enumerate(brokers, 1):
            broker.configure(
                f"node.id={node}\ncontroller.quorum.voters={voters}\n"
                "default.replication.factor=3\nmin.insync.replicas=2\noffsets.topic.replication.factor=3\n"
                "broker.session.timeout.ms=3000\nbroker.heartbeat.interval.ms=500\n"
            )
            broker.start(wait=False)
        for broker in brokers:
            broker.wait_until_ready()
        yield brokers
    finally:
        for broker in brokers:
            broker.kill()  # asked to stop, the last ones would wait for those that are gone


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("apache", marks=pytest.mark.kafka),
        pytest.param("apache-sasl-ssl", marks=pytest.mark.kafka),
    ]
)
def kafka_connection(request: pytest.FixtureRequest) -> KafkaConnection:
    """The same test on each broker."""
    if request.param == "embedded":
        broker: EmbeddedBroker = request.getfixturevalue("embedded_broker")
        return KafkaConnection(bootstrap_servers=broker.bootstrap_servers)
    apache: ApacheKafka = request.getfixturevalue(request.param.replace("-", "_").replace("apache", "apache_kafka"))
    return apache.connection


@pytest.fixture(scope="session")
def make_topics() -> Callable[..., Topics]:
    """Creates topics that no other test has, small enough for the embedded broker."""

    def make(connection: KafkaConnection, *, partitions: int = 4, replication_factor: int = 1) -> Topics:
        prefix = f"t{uuid.uuid4().hex[:12]}"
        topics = Topics.under(prefix)
        ensure_topics(connection, topics, partitions=partitions, replication_factor=replication_factor, bounded=True)
        return topics

    return make


@pytest.fixture
def topics(kafka_connection: KafkaConnection, make_topics: Callable[..., Topics]) -> Topics:
    """Fresh topics on the broker of `kafka_connection`."""
    return make_topics(kafka_connection)


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(valkey_program(), tmp_path_factory.mktemp("valkey"), port=_free_port())
    with server.running():
        yield server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(redis_program(), tmp_path_factory.mktemp("redis"), port=_free_port())
    with server.running():
        yield server


@pytest.fixture
def mortal_valkey(tmp_path: Path, free_port: int) -> Iterator[RedisServer]:
    """A server of the test's own, to be stopped, killed or emptied; it keeps nothing on disk."""
    server = RedisServer(valkey_program(), tmp_path / "valkey", port=free_port)
    with server.running():
        yield server
