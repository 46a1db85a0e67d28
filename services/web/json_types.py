"""Fields that take what JSON Schema calls right, and no text for a number or a truth: what is stated holds."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Strict

from streams.events import TIMESTAMP_PATTERN


def rfc_3339_only(value: object) -> object:
    """Refuses texts that Python would take for a time and the standard does not.

    Raises:
        ValueError: It is such a text.
    """
    if isinstance(value, str) and re.fullmatch(TIMESTAMP_PATTERN, value) is None:
        raise ValueError(
            f"`ts` must be epoch milliseconds or an RFC 3339 time with `T` and offset, got {value[:40]!r}; "
            "write 2026-01-31T09:00:00Z"
        )
    return value


def _number_only(value: object) -> object:
    """Refuses texts and truth values, which pydantic would take for numbers; 5.0 is as whole as 5, as in JSON Schema.

    Raises:
        ValueError: It is such a value.
    """
    if isinstance(value, str | bool):
        raise ValueError(f"must be a whole number, got {value!r:.40}; write it without quotes")
    return value


NUMBER_ONLY = BeforeValidator(_number_only)  # after the bounds of a field: they are told in its schema only so
Flag = Annotated[bool, Strict()]
