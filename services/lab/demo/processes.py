"""Processes of the demo: each is the real `headwater` command, with a log file and an address of its own."""

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Self

import httpx
from pydantic import BaseModel, SecretStr

from peft_adapters.registry import internal_http
from services.lab.demo.child import fork_context, run_child
from services.lab.demo.errors import DemoError
from services.lab.demo.lifetime import signals_deferred
from services.settings import ENV_PREFIX, Settings

STOP_TIMEOUT_SECONDS = 15.0
POLL_SECONDS = 0.1
PROBE_TIMEOUT_SECONDS = 2.0
LAST_LINES = 5
ANNOUNCEMENT = re.compile(r"^listening (\S+) (\d+)$", re.MULTILINE)


class Child:
    """A `headwater` process that ends when the process that started it ends.

    Args:
        name: name of the process, and of its log file.
        arguments: the command and its options.
        environment: the whole environment of the process.
        log_dir: directory for its log file.
    """

    def __init__(self, name: str, arguments: Sequence[str], *, environment: dict[str, str], log_dir: Path) -> None:
        self.name = name
        self.log_file = log_dir / f"{name}.log"
        self._arguments = list(arguments)
        self._environment = environment
        self._process: ForkServerProcess | None = None

    def start(self) -> Self:
        """Start the process in a session of its own: Ctrl-C reaches the demo, which ends its children in order."""
        self.log_file.write_bytes(b"")
        given = (os.getpid(), self._arguments, self._environment, str(self.log_file))
        self._process = fork_context().Process(target=run_child, args=given)
        with signals_deferred():  # a process that runs but is not known yet could not be ended
            self._process.start()
        return self

    @property
    def pid(self) -> int | None:
        """Return the process id, or None if it was not started."""
        return None if self._process is None else self._process.pid

    def check(self) -> None:
        """Check that the process runs.

        Raises:
            DemoError: the process has ended.
        """
        status = None if self._process is None else self._process.exitcode
        if status is not None:
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_LINES:]
            raise DemoError("\n  ".join([f"the {self.name} ended with status {status}; its last words:", *lines]))

    def url(self, *, timeout_seconds: float) -> str:
        """Wait for the line that announces where the process listens, and return its URL.

        Raises:
            DemoError: the process ended, or announced nothing in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            self.check()
            announced = ANNOUNCEMENT.search(self.log_file.read_text(encoding="utf-8", errors="replace"))
            if announced:
                return f"http://{announced[1]}:{announced[2]}"
            time.sleep(POLL_SECONDS)
        raise DemoError(
            f"the {self.name} did not say where it listens within {timeout_seconds:.0f} s; see {self.log_file}"
        )

    def terminate(self) -> None:
        """Send the process a SIGTERM."""
        if self._process is not None and self._process.exitcode is None:
            self._process.terminate()

    def wait(self, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """Wait for the process to end, and kill it if that takes longer."""
        if self._process is None:
            return
        self._process.join(timeout_seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()


def wait_ready(urls: Sequence[str], *, children: Sequence[Child], timeout_seconds: float) -> None:
    """Wait until each process answers ``/readyz`` with success.

    Args:
        urls: URLs of the processes.
        children: all processes that must run meanwhile, because one may wait for another.
        timeout_seconds: time after which to give up.

    Raises:
        DemoError: a child ended, or a process was not ready in time.
    """
    deadline = time.monotonic() + timeout_seconds
    waiting = list(urls)
    while waiting:
        for child in children:
            child.check()
        if time.monotonic() > deadline:
            raise DemoError(f"{waiting[0]} was not ready within {timeout_seconds:.0f} s; see its log")
        waiting = [url for url in waiting if not _is_ready(url)]
        time.sleep(POLL_SECONDS)


def _is_ready(url: str) -> bool:
    try:
        return internal_http.get(f"{url}/readyz", timeout=PROBE_TIMEOUT_SECONDS).is_success
    except httpx.HTTPError:
        return False


def stop_all(children: Sequence[Child]) -> None:
    """End children, the last started first, and wait for all of them; those that take more than 15 s are killed."""
    for child in reversed(children):
        child.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    for child in reversed(children):
        child.wait(max(0.0, deadline - time.monotonic()))


def environment(settings: Settings) -> dict[str, str]:
    """Return the environment that gives a child exactly these settings, whatever flags or files they came from."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    given = {ENV_PREFIX + "__".join(path).upper(): value for path, value in _given(settings)}
    return inherited | {"PYTHONUNBUFFERED": "1"} | given


def _given(model: BaseModel, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the settings that were set, by path; None cannot be written in an environment, and is always a default."""
    for name in sorted(model.model_fields_set):
        value: Any = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _given(value, (*prefix, name))
        elif value is not None:
            yield (*prefix, name), _text(value)


def _text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return json.dumps(value) if isinstance(value, list | tuple | dict | bool) else str(value)
