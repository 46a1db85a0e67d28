"""Errors of shoppers' states in Redis.

StateError
├── StateUnavailableError       Redis does not answer
├── StateRefusedError    Redis answers, and does not do as it is told
├── StateMismatchError    what is there was written in another format, or under another secret
└── StateConflictError      another writer has written meanwhile
"""

from services.errors import HeadwaterServiceError


class StateError(HeadwaterServiceError):
    """Base of every error that `services.state` raises on purpose."""


class StateUnavailableError(StateError):
    """Redis does not answer."""


class StateRefusedError(StateError):
    """Redis answers, and does not do as it is told."""


class StateMismatchError(StateError):
    """What is there was written in another format, or under another secret."""


class StateConflictError(StateError):
    """Another writer has written meanwhile."""
