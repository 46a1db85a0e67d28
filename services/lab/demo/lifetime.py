"""Lifetime of a run: the signals that end it, and its working directory."""

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from services.lab.demo.errors import DemoError, Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `Stopped` at the first SIGINT or SIGTERM within this context; further ones are ignored during shutdown."""

    def stop(number: int, _: FrameType | None) -> None:
        for handled in SIGNALS:
            signal.signal(handled, signal.SIG_IGN)
        raise Stopped(number)

    with _handler(stop):
        yield


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Handle SIGINT and SIGTERM at the end of this context, which must be short."""
    arrived: list[int] = []
    with _handler(lambda number, _: arrived.append(number)):
        yield
    for number in arrived:
        signal.raise_signal(number)


@contextmanager
def _handler(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def work_directory(chosen: Path | None) -> Iterator[Path]:
    """Yield the directory for all files: the one chosen, or a temporary one that is removed unless the demo fails.

    Args:
        chosen: the directory chosen by the user, or None.

    Raises:
        DemoError: the directory is not empty; it may hold a broker's data and a checkpoint of an earlier run.
    """
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        if any(chosen.iterdir()):
            raise DemoError(f"`--work-dir` must be empty, {chosen} is not; choose another or remove what it holds")
        yield chosen.resolve()
        return
    directory = Path(tempfile.mkdtemp(prefix="headwater-demo-"))
    try:
        yield directory
    except DemoError as error:
        raise DemoError(f"{error}\nIts logs are in {directory / 'logs'}.") from error
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    shutil.rmtree(directory)
