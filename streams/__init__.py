"""Kafka side of Headwater: events, topics, consumer, micro-batches, dead letters, embedded broker, producer SDK.

The public names are imported on first use, so that `import streams` stays fast and does not load the Kafka client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streams.connection import KafkaConnection
    from streams.delivery import Delivery
    from streams.errors import HeadwaterStreamError
    from streams.events import Click, Impression, Item, Purchase
    from streams.producer import EventProducer
    from streams.topics import Topics

__all__ = [
    "Click",
    "Delivery",
    "EventProducer",
    "HeadwaterStreamError",
    "Impression",
    "Item",
    "KafkaConnection",
    "Purchase",
    "Topics",
]

_MODULES = {
    "Click": "events",
    "Delivery": "delivery",
    "EventProducer": "producer",
    "HeadwaterStreamError": "errors",
    "Impression": "events",
    "Item": "events",
    "KafkaConnection": "connection",
    "Purchase": "events",
    "Topics": "topics",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names beside those that are loaded."""
    return sorted({*globals(), *__all__})
