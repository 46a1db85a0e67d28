"""Field types that accept exactly what their JSON Schema allows: no text for a number or a boolean."""

import re
from typing import Annotated

from pydantic import BeforeValidator, Strict

from streams.events import TIMESTAMP_PATTERN


def rfc_3339_only(value: object) -> object:
    """Refuse texts that Python parses as a time although they are not RFC 3339.

    Raises:
        ValueError: the value is such a text.
    """
    if isinstance(value, str) and re.fullmatch(TIMESTAMP_PATTERN, value) is None:
        raise ValueError(
            f"`ts` must be epoch milliseconds or an RFC 3339 time with `T` and offset, got {value[:40]!r}; "
            "write 2026-01-31T09:00:00Z"
        )
    return value


def _number_only(value: object) -> object:
    """Refuse texts and booleans, which pydantic would convert to numbers; 5.0 is as whole as 5, as in JSON Schema.

    Raises:
        ValueError: the value is a text or a boolean.
    """
    if isinstance(value, str | bool):
        raise ValueError(f"must be a whole number, got {value!r:.40}; write it without quotes")
    return value


NUMBER_ONLY = BeforeValidator(_number_only)  # list it after a field's bounds, or they are missing from its schema
Flag = Annotated[bool, Strict()]
