"""Logging of all processes: structlog on standard error, readable on a terminal and JSON elsewhere."""

import logging
import sys

import structlog


def configure_logging(*, json: bool | None = None, level: str = "info") -> None:
    """Configure logging of the whole process, including the standard library's.

    Args:
        json: whether to log one JSON object per line; None chooses JSON if standard error is not a terminal.
        level: the lowest level that is logged: ``debug``, ``info``, ``warning`` or ``error``.

    Raises:
        ValueError: the level is not one of these.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"`level` must be debug, info, warning or error, got {level!r}")
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    logging.raiseExceptions = False  # on a full disk, a line is lost without a traceback
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(number)  # some libraries give their own loggers a lower level when they are imported
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=_renderers(json=json))
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for name in ("httpx", "uvicorn.error", "fsspec.local"):  # a line per request, four per start, one per file
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


def _renderers(*, json: bool | None) -> list[structlog.typing.Processor]:
    """Return the processors that render a line. Tracebacks omit local variables, which may hold ids and passwords."""
    drop_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    to_terminal = sys.stderr.isatty()
    if json is None:
        json = not to_terminal
    if json:
        return [drop_meta, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    return [
        drop_meta,
        structlog.dev.ConsoleRenderer(colors=to_terminal, exception_formatter=structlog.dev.plain_traceback),
    ]
