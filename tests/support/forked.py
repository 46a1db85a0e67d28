"""Start `headwater` commands as forks of one process that has imported the libraries.

Importing torch, transformers and peft takes several seconds of processor time, and the tests start some 150 processes.
A fork of a process that has imported them starts at once. The code that runs is the same as `headwater COMMAND`; only
the start of Python itself is not, so tests of locales and of import times start interpreters of their own.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import IO, Any, Protocol, Self

import services.lab.demo.child


def fork_context() -> ForkServerContext:
    """Return the context whose children are forks of the process with the libraries."""
    return services.lab.demo.child.fork_context("crash_replay", "forked")


class Fault(Protocol):
    """Something that is to go wrong in a command."""

    def arm(self) -> None:
        """Prepare it, in the process of the command, before that begins."""


class ForkedCommand:
    """A running `headwater` command, with the part of `subprocess.Popen` that the tests use.

    Args:
        arguments: the command and its options, without the program.
        env: the whole environment; by default this process's own.
        cwd: the directory it runs in; by default this process's own.
        stdin: a file to read from; by default there is nothing to read.
        stdout: a file to write to, `subprocess.PIPE`, or None for this process's own.
        stderr: likewise.
        text: whether pipes are read as text.
        fault: what is to go wrong in it.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | str | None = None,
        stdin: IO[Any] | None = None,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
        text: bool = False,
        fault: Fault | None = None,
    ) -> None:
        self.args = ["headwater", *arguments]
        ours: list[int] = []  # descriptors that only the child needs
        if stdin is None:
            ours.append(os.open(os.devnull, os.O_RDONLY))
        given = ours[0] if stdin is None else stdin.fileno()
        self.stdout, out = _output(stdout, 1, ours, text=text)
        self.stderr, err = _output(stderr, 2, ours, text=text)
        streams = _Streams([given, out, err])
        environment = dict(os.environ if env is None else env)
        command: Any = fork_context().Process(
            target=_run, args=(os.getpid(), list(arguments), environment, str(cwd or Path.cwd()), streams, fault)
        )
        self._process: ForkServerProcess = command
        try:
            self._process.start()
        finally:
            for descriptor in ours:
                os.close(descriptor)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()


def run_command(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | str | None = None,
    stdin: str | bytes = "",
    timeout: float = 60.0,
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, like `subprocess.run(..., capture_output=True, text=True)`.

    Raises:
        TimeoutExpired: it did not end in time; it is killed.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin.encode() if isinstance(stdin, str) else stdin)
        given.seek(0)
        with ForkedCommand(arguments, env=env, cwd=cwd, stdin=given, stdout=out, stderr=err) as command:
            try:
                status = command.wait(timeout)
            except subprocess.TimeoutExpired:
                command.kill()
                raise
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    return subprocess.CompletedProcess(command.args, status, *texts)


def _output(target: IO[Any] | int | None, own: int, ours: list[int], *, text: bool) -> tuple[IO[Any] | None, int]:
    """Return the end of a pipe to read from, where one is wanted, and the descriptor for the child to write to."""
    if target == subprocess.PIPE:
        read_end, write_end = os.pipe()
        ours.append(write_end)
        return open(read_end, "r" if text else "rb"), write_end  # noqa: PTH123 - `__exit__` closes it
    return None, own if target is None or isinstance(target, int) else target.fileno()


class _Streams:
    """Standard input, output and error of a child, duplicated into it when its arguments are pickled."""

    def __init__(self, descriptors: list[int]) -> None:
        self.descriptors = descriptors

    def __getstate__(self) -> list[Any]:
        return [reduction.DupFd(descriptor) for descriptor in self.descriptors]

    def __setstate__(self, duplicates: list[Any]) -> None:
        self.descriptors = [duplicate.detach() for duplicate in duplicates]


def _run(
    parent_pid: int,
    arguments: list[str],
    environment: dict[str, str],
    directory: str,
    streams: _Streams,
    fault: Fault | None,
) -> None:
    services.lab.demo.child.end_with(parent_pid)
    if fault is not None:
        fault.arm()
    os.chdir(directory)
    services.lab.demo.child.run_command(arguments, environment, streams.descriptors)
