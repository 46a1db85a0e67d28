"""One line for a person out of what pydantic has to say."""

from pydantic import ValidationError

from streams.validation_errors import describe_rule

FAULTS_SHOWN = 3


def one_line(error: Exception, *, with_values: bool = False) -> str:
    """Renders an error on one line: for a validation error, the first few fields and the rules they break.

    Args:
        error: Any error.
        with_values: Whether to name the values too; not where they may be secrets.
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
