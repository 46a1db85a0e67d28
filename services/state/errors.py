"""Errors of shoppers' states in Redis.

StateError
├── StateUnavailableError    no Redis answers
├── StateRefusedError        Redis refuses a command
├── StateMismatchError       the states were written in another format, or under another secret
└── StateConflictError       another writer has written in the meantime
"""

from services.errors import HeadwaterServiceError


class StateError(HeadwaterServiceError):
    """Root of all errors that `services.state` raises on purpose."""


class StateUnavailableError(StateError):
    """No Redis answers."""


class StateRefusedError(StateError):
    """Redis refuses a command."""


class StateMismatchError(StateError):
    """The states were written in another format, or under another secret."""


class StateConflictError(StateError):
    """Another writer has written in the meantime."""
