"""Child processes that run `headwater` commands, forked from one process that has imported the libraries.

Importing torch, transformers and peft takes several seconds of processor time; a fork of a process that has them
starts at once and shares their memory.
"""

import atexit
import contextlib
import multiprocessing
import os
import select
import signal
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pkgutil import resolve_name

ENTRY_POINT = "services.cli:main"  # by name, because the command line imports the demo
PRELOADED = (
    "services.cli",
    "services.collector.command",
    "services.operate.control.command",
    "services.operate.dead_letters.command",
    "services.lab.demo.child",
    "services.operate.publish.command",
    "services.registry.command",
    "services.operate.replay.command",
    "services.scorer.command",
    "services.state.command",
    "services.updater.command",
)


def fork_context(*more: str) -> ForkServerContext:
    """Return the context whose children are forks of the process with the libraries.

    Args:
        more: further modules to import in that process, before its first child starts.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *more])
    return context


def run_child(parent_pid: int, arguments: Sequence[str], environment: Mapping[str, str], log_file: str) -> None:
    """Run a command in this process, in a session of its own, until it ends or its parent does.

    Args:
        parent_pid: process that the child ends with; not the one that forked it.
        arguments: the command and its options.
        environment: the whole environment of the child.
        log_file: file for the output of the child.
    """
    end_with(parent_pid)
    os.setsid()
    output = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    run_command(arguments, environment, [os.open(os.devnull, os.O_RDONLY), output, output])


def end_with(parent_pid: int) -> None:
    """Send this process a SIGTERM when another process ends, for whatever reason (Linux only).

    Raises:
        SystemExit: the other process has ended already.
    """
    if not hasattr(os, "pidfd_open"):
        return
    try:
        parent = os.pidfd_open(parent_pid)
    except ProcessLookupError:
        raise SystemExit(f"the parent process {parent_pid} has ended") from None

    def wait() -> None:
        select.select([parent], [], [])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def run_command(arguments: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int]) -> None:
    """Run a command in this process, which is a fresh fork.

    Args:
        arguments: the command and its options.
        environment: the whole environment of the process.
        descriptors: file descriptors for standard input, output and error; they are closed.
    """
    atexit._clear()  # those of the process that was forked are not this one's to run
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    for descriptor in set(descriptors) - {0, 1, 2}:
        os.close(descriptor)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - the process's own
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # read again from the environment
    sys.argv = ["headwater", *arguments]
    try:
        resolve_name(ENTRY_POINT)()
    finally:
        atexit._run_exitfuncs()  # multiprocessing children skip them
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
