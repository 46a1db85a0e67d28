"""The demo's child processes: each is the real `headwater` command, with a log file and an address of its own."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
from pydantic import BaseModel, SecretStr

from services.demo.errors import DemoError
from services.settings import ENV_PREFIX, Settings

STOP_TIMEOUT_SECONDS = 15.0
POLL_SECONDS = 0.1
LAST_LINES = 5
ANNOUNCEMENT = re.compile(r"^listening (\S+) (\d+)$", re.MULTILINE)


class Child:
    """One `headwater` process. Start it from a thread that stays: it ends with that thread.

    Args:
        name: What people call it; also the name of its log file.
        arguments: Command and options.
        environment: Its whole environment.
        log_dir: Where its output goes.
    """

    def __init__(self, name: str, arguments: Sequence[str], *, environment: dict[str, str], log_dir: Path) -> None:
        self.name = name
        self.log_file = log_dir / f"{name}.log"
        self._arguments = list(arguments)
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Starts the process, in a session of its own: Ctrl-C is for the demo, which ends its children in order."""
        command = [sys.executable, "-m", "services.demo.child", str(os.getpid()), *self._arguments]
        with self.log_file.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int | None:
        """Its process id, None when it was not started."""
        return None if self._process is None else self._process.pid

    def check(self) -> None:
        """Returns when the process runs.

        Raises:
            DemoError: It has ended.
        """
        status = None if self._process is None else self._process.poll()
        if status is not None:
            lines = self.log_file.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]
            raise DemoError("\n  ".join([f"the {self.name} ended with status {status}; its last words:", *lines]))

    def url(self, *, timeout_seconds: float) -> str:
        """Waits for the line that says where the process listens.

        Raises:
            DemoError: It ended, or said nothing in time.
        """
        for _ in self._until(timeout_seconds, "did not say where it listens"):
            announced = ANNOUNCEMENT.search(self.log_file.read_text(errors="replace"))
            if announced:
                return f"http://{announced[1]}:{announced[2]}"
        raise AssertionError("the loop ends by return or error")

    def wait_ready(self, url: str, *, timeout_seconds: float) -> None:
        """Waits until the process answers ``/readyz`` with success.

        Raises:
            DemoError: It ended, or was not ready in time.
        """
        with httpx.Client(timeout=2.0) as client:
            for _ in self._until(timeout_seconds, "was not ready"):
                try:
                    if client.get(f"{url}/readyz").is_success:
                        return
                except httpx.HTTPError:
                    continue

    def terminate(self) -> None:
        """Asks the process to end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> None:
        """Waits for its end, and ends it by force when it takes too long."""
        if self._process is None:
            return
        try:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _until(self, timeout_seconds: float, problem: str) -> Iterator[None]:
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            self.check()
            yield
            time.sleep(POLL_SECONDS)
        raise DemoError(f"the {self.name} {problem} within {timeout_seconds:.0f} s; see {self.log_file}")


def stop_all(children: Sequence[Child]) -> None:
    """Ends children, the last started first, and waits for all of them."""
    for child in reversed(children):
        child.terminate()
    for child in reversed(children):
        child.wait()


def environment(settings: Settings) -> dict[str, str]:
    """The environment under which a child has these very settings, whatever flags or files they came from."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    given = {ENV_PREFIX + "__".join(path).upper(): value for path, value in _given(settings)}
    return inherited | {"PYTHONUNBUFFERED": "1"} | given


def _given(model: BaseModel, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """What was set and is not the default, by path; None cannot be said in an environment, and is always a default."""
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
