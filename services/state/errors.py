"""Errors of shoppers' states in Redis.

StateError
├── StateAwayError       Redis does not answer
├── StateRefusedError    Redis answers, and does not do as it is told
├── StateForeignError    what is there was written in another format, or under another secret
└── StateTakenError      another writer has written meanwhile
"""

from services.errors import HeadwaterServiceError


class StateError(HeadwaterServiceError):
    """Base of every error that `services.state` raises on purpose."""


class StateAwayError(StateError):
    """Redis does not answer."""


class StateRefusedError(StateError):
    """Redis answers, and does not do as it is told."""


class StateForeignError(StateError):
    """What is there was written in another format, or under another secret."""


class StateTakenError(StateError):
    """Another writer has written meanwhile."""
