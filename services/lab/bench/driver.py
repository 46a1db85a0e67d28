"""Driver of the load process: starts it, and returns its result."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from services.lab.bench.errors import BenchError
from services.lab.bench.plan import LoadPlan, LoadResult

ENDS_WITHIN_SECONDS = 60.0


class LoadProcess:
    """A load under way in another process. As a context manager it ends with the context.

    Args:
        plan: the load to generate.
    """

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.lab.bench.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "LoadProcess":
        """Start the load."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        self._process.stdin.write(self._plan.model_dump_json())
        self._process.stdin.close()
        self._process.stdin = None
        return self

    def __exit__(self, *_: object) -> None:
        """End the load if it is still under way."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def result(self) -> LoadResult:
        """Wait for the load to end, and return its result.

        Raises:
            BenchError: the load process failed or did not end.
        """
        try:
            output, _ = self._process.communicate(timeout=self._plan.seconds + ENDS_WITHIN_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"the load on {self._plan.url} did not end; is the machine much too busy?") from error
        if self._process.returncode:
            raise BenchError(f"the load on {self._plan.url}{self._plan.path} failed; is the server up? See above")
        return LoadResult.model_validate_json(output)


class Server:
    """A server to send load to.

    Args:
        url: URL of the scorer, without a path.
        headers: headers of every request.
        connections: requests under way at most.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, connections: int = 8) -> None:
        self.url, self.headers, self._connections = url.rstrip("/"), dict(headers or {}), connections

    def load(self, path: str, bodies: Sequence[str], *, seconds: float, **more: Any) -> LoadProcess:
        """Return a load on one route; keywords are further fields of its `LoadPlan`."""
        defaults = {"url": self.url, "headers": self.headers, "connections": self._connections}
        return LoadProcess(LoadPlan(path=path, bodies=list(bodies), seconds=seconds, **(defaults | more)))

    def measure(self, path: str, bodies: Sequence[str], *, seconds: float, **more: Any) -> LoadResult:
        """Run a load to its end, and return its result."""
        with self.load(path, bodies, seconds=seconds, **more) as load:
            return load.result()
