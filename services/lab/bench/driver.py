"""Starts the process that makes the load, and brings back what it saw."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from services.lab.bench.errors import BenchError
from services.lab.bench.plan import Load, Plan

ENDS_WITHIN_SECONDS = 60.0


class LoadProcess:
    """A load under way in another process. A context manager: it ends with the context.

    Args:
        plan: What it does.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.lab.bench.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "LoadProcess":
        """Begins the load."""
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        self._process.stdin.write(self._plan.model_dump_json())
        self._process.stdin.close()
        self._process.stdin = None
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it, if it still goes on."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def result(self) -> Load:
        """Waits for its end.

        Raises:
            BenchError: It failed itself.
        """
        try:
            told, _ = self._process.communicate(timeout=self._plan.seconds + ENDS_WITHIN_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"the load on {self._plan.url} did not end; is the machine much too busy?") from error
        if self._process.returncode:
            raise BenchError(f"the load on {self._plan.url}{self._plan.path} failed; is the server up? See above")
        return Load.model_validate_json(told)


class Server:
    """A server under load.

    Args:
        url: Of the scorer, without a path.
        headers: Of every request.
        connections: At most so many requests are under way.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, connections: int = 8) -> None:
        self.url, self.headers, self._connections = url.rstrip("/"), dict(headers or {}), connections

    def load(self, path: str, bodies: Sequence[str], *, seconds: float, **more: Any) -> LoadProcess:
        """A load on one route; further fields of its `Plan` as keywords."""
        own = {"url": self.url, "headers": self.headers, "connections": self._connections}
        return LoadProcess(Plan(path=path, bodies=list(bodies), seconds=seconds, **(own | more)))

    def measure(self, path: str, bodies: Sequence[str], *, seconds: float, **more: Any) -> Load:
        """The same, to its end."""
        with self.load(path, bodies, seconds=seconds, **more) as load:
            return load.result()
