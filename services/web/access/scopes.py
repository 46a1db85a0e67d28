"""Scopes of API keys. The module imports nothing heavy, since the command line needs it."""

from enum import StrEnum


class Scope(StrEnum):
    """A kind of call that a key allows; no scope includes another."""

    read = "read"  # rankings, searches, manifests, bundles, metrics
    events = "events"  # events sent to the collector
    admin = "admin"  # calls that change what is served
