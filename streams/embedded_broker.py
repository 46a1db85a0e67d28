"""An embedded Kafka broker for the demo and quick tests: noida-db, a single binary, on a free loopback port.

It is not durable. It writes its state about once a second and on `stop`: records that were confirmed in the last second
before it was killed are lost, and so are records that were being sent while it stopped. Stop producers first.
"""

import fcntl
import os
import re
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from streams.connection import KafkaConnection, wait_for_broker
from streams.errors import BrokerUnreachableError, EmbeddedBrokerError

log = structlog.get_logger(__name__)

START_TIMEOUT_SECONDS = 10.0
STOP_TIMEOUT_SECONDS = 10.0
ANNOUNCEMENT = re.compile(r"^\s*kafka\s+127\.0\.0\.1:(\d+)\s*$", re.MULTILINE)

# Runs in the child before the broker replaces it: the kernel then ends the broker when its parent dies for any reason.
# A `preexec_fn` could do the same, but is not safe in a process with threads.
_END_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedBroker:
    """A broker process that ends with this object, or with the process that started it.

    Start it from a thread that stays alive: the broker ends with the thread that started it.

    Args:
        data_dir: the directory that keeps its data between runs, for one broker at a time.
        port: the port to listen on; 0 chooses a free one and keeps it over restarts.
    """

    def __init__(self, data_dir: Path, *, port: int = 0) -> None:
        self._data_dir = data_dir
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None  # file descriptor

    @property
    def bootstrap_servers(self) -> str:
        """The address of the broker, once it is started."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        """The process id of the broker; None while it is not running."""
        return None if self._process is None else self._process.pid

    def start(self) -> Self:
        """Start the broker and wait until it answers.

        Raises:
            EmbeddedBrokerError: if it does not start, or another broker uses the data directory.
        """
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._lock_data_dir()
        try:
            self._port = self._launch()
            connection = KafkaConnection(bootstrap_servers=self.bootstrap_servers)
            wait_for_broker(connection, timeout_seconds=START_TIMEOUT_SECONDS)
        except (OSError, BrokerUnreachableError) as error:
            self.stop()
            raise EmbeddedBrokerError(f"the embedded broker did not start: {error}; see {self._log_file}") from error
        except BaseException:
            self.stop()
            raise
        log.info("embedded_broker_started", bootstrap_servers=self.bootstrap_servers, pid=self.pid)
        return self

    def stop(self) -> None:
        """Stop the broker, which writes its state as it ends; stopping it twice is allowed."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        """Start the broker."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the broker."""
        self.stop()

    @property
    def _log_file(self) -> Path:
        return self._data_dir / "broker.log"

    def _lock_data_dir(self) -> None:
        """Lock the directory: two brokers would overwrite each other's state. The lock ends with the process."""
        if self._lock is not None:
            raise EmbeddedBrokerError("the embedded broker is already running; stop it before starting it again")
        lock = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise EmbeddedBrokerError(
                f"`data_dir` must be in use by one broker only, {self._data_dir} is taken; choose another"
            ) from error
        self._lock = lock

    def _launch(self) -> int:
        """Start the process and return the port that it announces."""
        binary = str(files("noida_db").joinpath("noida-db"))
        options = ["--only", "kafka", "--host", "127.0.0.1", "--kafka-port", str(self._port)]
        command = [binary, "start", *options, "--data-dir", str(self._data_dir)]
        trampoline = [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid())]
        with self._log_file.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the package's own binary, no shell
                trampoline + command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C must not reach it before the producers have stopped
            )
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            announced = ANNOUNCEMENT.search(self._log_file.read_text(encoding="utf-8", errors="replace"))
            if announced:
                return int(announced[1])
            time.sleep(0.01)
        raise EmbeddedBrokerError(f"the embedded broker did not start: {self._last_output()}; see {self._log_file}")

    def _last_output(self) -> str:
        lines = self._log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) or "it printed nothing"
