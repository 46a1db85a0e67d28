"""What a key may be good for. Free of anything heavy, for the command line."""

from enum import StrEnum


class Scope(StrEnum):
    """One kind of call; none includes another."""

    read = "read"  # rankings, searches, manifests, bundles, metrics
    events = "events"  # to the collector
    admin = "admin"  # whatever changes what is served
