"""Checks of arguments, so that a mistake is named before any work begins."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def checked_ids(name: str, value: Any) -> list[str]:
    """Return ids as a list.

    Args:
        name: name of the argument, for the message.
        value: the argument itself.

    Raises:
        TypeError: the argument is one string, or has an id that is not a string.

    >>> checked_ids("candidates", "22423")
    Traceback (most recent call last):
      ...
    TypeError: `candidates` must be a list of ids, got the string '22423'; write ['22423']
    """
    if isinstance(value, str):
        raise TypeError(f"`{name}` must be a list of ids, got the string {value!r}; write [{value!r}]")
    if not isinstance(value, Iterable):
        raise TypeError(f"`{name}` must be a list of ids, got {type(value).__name__}; give a list of strings")
    ids = list(value)
    for item_id in ids:
        if not isinstance(item_id, str):
            raise TypeError(f"`{name}` must have strings as ids, got {item_id!r}; convert ids with str()")
    return ids


def require_count(name: str, value: Any, *, remedy: str) -> None:
    """Check that an argument is a whole number of at least 1.

    Args:
        name: name of the argument, for the message.
        value: the argument itself.
        remedy: what the caller can do, for the message.

    Raises:
        TypeError: the argument is not a whole number.
        ValueError: the argument is below 1.
    """
    if not hasattr(value, "__index__"):  # integers of numpy are welcome
        raise TypeError(f"`{name}` must be a whole number, got {value!r}; {remedy}")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}; {remedy}")


def require_type(name: str, value: Any, kind: type, *, remedy: str) -> None:
    """Check that an argument is an instance of a class.

    Args:
        name: name of the argument, for the message.
        value: the argument itself.
        kind: class that the argument must be of.
        remedy: what the caller can do, for the message.

    Raises:
        TypeError: the argument is of another class.
    """
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be a headwater.{kind.__name__}, got {type(value).__name__}; {remedy}")


def require_seconds(name: str, value: Any, *, remedy: str) -> None:
    """Check that an argument is a finite number of seconds above 0.

    Args:
        name: name of the argument, for the message.
        value: the argument itself.
        remedy: what the caller can do, for the message.

    Raises:
        TypeError: the argument is not a number.
        ValueError: the argument is not finite, or not above 0.
    """
    if not isinstance(value, int | float):
        raise TypeError(f"`{name}` must be a number of seconds, got {value!r}; {remedy}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"`{name}` must be above 0, got {value}; {remedy}")
