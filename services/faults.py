"""One line for a person out of what pydantic has to say."""

from pydantic import ValidationError

FAULTS_SHOWN = 3
VALUE_CHARS = 40


def one_line(error: Exception, *, values: bool = False) -> str:
    """Renders an error on one line: for a validation error, the first few fields and the rules they break.

    Args:
        error: Any error.
        values: Show the values, too; only to whoever gave them, since they may name a person.
    """
    if not isinstance(error, ValidationError):
        return str(error)
    faults = error.errors(include_url=False, include_input=values)
    shown = [
        f"`{'.'.join(map(str, fault['loc']))}`: {fault['msg']}{_got(fault.get('input'))}"
        for fault in faults[:FAULTS_SHOWN]
    ]
    more = [f"and {len(faults) - FAULTS_SHOWN} more"] if len(faults) > FAULTS_SHOWN else []
    return "; ".join(shown + more).replace("Value error, ", "")


def _got(value: object) -> str:
    if not isinstance(value, str | int | float):
        return ""
    text = repr(value)
    return f", got {text if len(text) <= VALUE_CHARS else text[:VALUE_CHARS] + '...'}"
