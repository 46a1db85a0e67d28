"""Why a value is refused: the field, the rule and the value, short enough for one line."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from streams.events import TIME_ERROR, time_problem

VALUE_CHARS = 60
MAX_ERRORS = 5


def summarize(value: Any) -> str:
    """Shows a value that was refused; of an object or a list only that it is one.

    >>> [summarize(value) for value in (-1, "(not set)", {"a": 1}, [1])]
    ['-1', "'(not set)'", 'an object', 'a list']
    """
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return repr(value if len(value) <= VALUE_CHARS else f"{value[:VALUE_CHARS]}…")
    text = repr(value)
    return text if len(text) <= VALUE_CHARS else f"{text[:VALUE_CHARS]}…"


def describe_rule(detail: ErrorDetails) -> str:
    """Renders the rule that a value breaks and, unless it is missing, the value.

    Args:
        detail: Of `ValidationError.errors`.
    """
    if detail["type"] == TIME_ERROR and (problem := time_problem(detail["input"])):
        return problem
    said = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("missing", "json_invalid", "value_error"):  # the last is our own, which says the value
        return said
    return f"{said.split(', got ')[0]}, got {summarize(detail['input'])}"


def describe_error(detail: ErrorDetails, *, path: Sequence[int | str] | None = None) -> str:
    """Renders one fault that pydantic found: path, rule and value.

    Args:
        detail: Of `ValidationError.errors`.
        path: Where the value stands, if not where pydantic says.
    """
    where = ".".join(filter(None, map(str, detail["loc"] if path is None else path)))
    return f"{where}: {describe_rule(detail)}" if where else describe_rule(detail)


def describe_errors(error: ValidationError) -> str:
    """Renders the first few faults of an error on one line."""
    details = error.errors(include_url=False)
    return "; ".join(describe_error(detail) for detail in details[:MAX_ERRORS])
