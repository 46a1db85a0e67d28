"""What lies around a run: signals that end it, and the directory that it works in."""

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from services.lab.demo.errors import DemoError, Stopped


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Makes the first SIGINT or SIGTERM raise `Stopped`; further ones change nothing while everything is stopped."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, _: FrameType | None) -> None:
        for handled in numbers:
            signal.signal(handled, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def work_directory(chosen: Path | None) -> Iterator[Path]:
    """Gives the directory for all files: the one chosen, or a temporary one that goes unless the demo fails.

    Args:
        chosen: The one chosen, if any.

    Raises:
        DemoError: The one chosen holds something already: a broker's data and a checkpoint of an earlier run.
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
