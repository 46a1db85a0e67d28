"""Validation errors of pydantic on one line."""

from pydantic import ValidationError

from streams.validation_errors import describe_rule

FAULTS_SHOWN = 3


def one_line(error: Exception, *, with_values: bool = False) -> str:
    """Render an error on one line: for a validation error, the first few fields and the rules they break.

    Args:
        error: the error to render, of any type.
        with_values: whether to include the values; leave it out if they may be secrets.
    """
    if not isinstance(error, ValidationError):
        return str(error)
    faults = error.errors(include_url=False)
    shown = [
        f"`{'.'.join(map(str, fault['loc']))}`: {describe_rule(fault) if with_values else fault['msg']}"
        for fault in faults[:FAULTS_SHOWN]
    ]
    more = [f"and {len(faults) - FAULTS_SHOWN} more"] if len(faults) > FAULTS_SHOWN else []
    return "; ".join(shown + more).replace("Value error, ", "")
