"""Times in the dialects; an error names the unit of a number that is in the wrong one."""

from streams.events import parse_number

# The instant 2001-09-09T01:46:40Z in each unit; no shop sends earlier events. Each floor is 1,000 times the one before,
# so a number between two floors is in the unit of the lower one, for times up to the year 33658.
FLOORS = {"seconds": 10**9, "milliseconds": 10**12, "microseconds": 10**15, "nanoseconds": 10**18}
FIRST_MS = FLOORS["milliseconds"]


def unit_of(number: float) -> str | None:
    """Return the unit in which a number is a plausible time; None if there is no such unit.

    >>> [unit_of(number) for number in (1764500000, 1764500000000, 1764500000000000, 1764500000000000000, 7)]
    ['seconds', 'milliseconds', 'microseconds', 'nanoseconds', None]
    """
    return next((unit for unit, floor in reversed(FLOORS.items()) if number >= floor), None)


def epoch_milliseconds(value: object) -> object:
    """Check that a number is in milliseconds; return other forms of time unchanged.

    Args:
        value: a number, its digits, or another form of time.

    Raises:
        ValueError: if it is in another unit, or is a time before September 2001.
    """
    return _epoch(value, "milliseconds")


def epoch_microseconds(value: object) -> object:
    """Check that a number is in microseconds.

    Args:
        value: a number or its digits.

    Raises:
        ValueError: if it is in another unit, is a time before September 2001, or is true or false.
    """
    if isinstance(value, bool):  # pydantic would read 1 or 0
        raise ValueError(f"must be epoch microseconds, got {value}")
    return _epoch(value, "microseconds")


def _epoch(value: object, unit: str) -> object:
    if isinstance(value, str):
        number = parse_number(value)
        value = value if number is None else number
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    actual = unit_of(value)
    if actual != unit:
        seems = f"looks like {actual}" if actual else "is before September 2001"
        raise ValueError(f"must be epoch {unit}, got {value}, which {seems}")
    return value
