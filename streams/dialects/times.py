"""Times in the dialects: numbers that count in another unit than they should are refused by name."""

from streams.events import parse_number

# The instant 2001-09-09T01:46:40Z in each unit; no shop sends events from before it. Each floor is 1,000 times the one
# before, so a number between two floors counts in the lower one's unit, for times up to the year 33658.
FLOORS = {"seconds": 10**9, "milliseconds": 10**12, "microseconds": 10**15, "nanoseconds": 10**18}
FIRST_MS = FLOORS["milliseconds"]


def looks_like(number: float) -> str | None:
    """The unit in which a number would be a time of this age; None where there is no such unit.

    >>> [looks_like(number) for number in (1764500000, 1764500000000, 1764500000000000, 1764500000000000000, 7)]
    ['seconds', 'milliseconds', 'microseconds', 'nanoseconds', None]
    """
    return next((unit for unit, floor in reversed(FLOORS.items()) if number >= floor), None)


def epoch_milliseconds(value: object) -> object:
    """Refuses a number that does not count milliseconds; leaves other forms of time as they are.

    Args:
        value: A number, its digits, or another form of time.

    Raises:
        ValueError: If it counts in another unit, or is a time before September 2001.
    """
    return _epoch(value, "milliseconds")


def epoch_microseconds(value: object) -> object:
    """Refuses a number that does not count microseconds.

    Args:
        value: A number or its digits.

    Raises:
        ValueError: If it counts in another unit, is a time before September 2001, or is true or false.
    """
    if isinstance(value, bool):  # to pydantic 1 or 0
        raise ValueError(f"must be epoch microseconds, got {value}")
    return _epoch(value, "microseconds")


def _epoch(value: object, unit: str) -> object:
    if isinstance(value, str):
        number = parse_number(value)
        value = value if number is None else number
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    found = looks_like(value)
    if found != unit:
        seems = f"looks like {found}" if found else "is before September 2001"
        raise ValueError(f"must be epoch {unit}, got {value}, which {seems}")
    return value
