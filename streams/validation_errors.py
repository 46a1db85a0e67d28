"""Validation errors as text: the field, the rule and the value, short enough for one line."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from streams.events import TIME_ERROR, time_problem

VALUE_CHARS = 60
MAX_ERRORS = 5


def summarize(value: Any) -> str:
    """Return a short text for a rejected value; objects and lists are not shown.

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
    """Return the rule that a value breaks and, unless the value is missing, the value.

    Args:
        detail: an entry of `ValidationError.errors`.
    """
    if detail["type"] == TIME_ERROR and (problem := time_problem(detail["input"])):
        return problem
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("missing", "json_invalid", "value_error"):  # the last kind is our own and names the value
        return message
    return f"{message.split(', got ')[0]}, got {summarize(detail['input'])}"


def describe_error(detail: ErrorDetails, *, path: Sequence[int | str] | None = None) -> str:
    """Return one validation error as text: path, rule and value.

    Args:
        detail: an entry of `ValidationError.errors`.
        path: the path to the value, if it differs from pydantic's.
    """
    location = ".".join(filter(None, map(str, detail["loc"] if path is None else path)))
    return f"{location}: {describe_rule(detail)}" if location else describe_rule(detail)


def describe_errors(error: ValidationError) -> str:
    """Return the first few errors on one line."""
    details = error.errors(include_url=False)
    return "; ".join(describe_error(detail) for detail in details[:MAX_ERRORS])
