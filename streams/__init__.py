"""The log: events, topics, consumer, micro-batches, dead letters, embedded broker, producer SDK."""

from streams.connection import KafkaConnection
from streams.delivery import Delivery
from streams.events import Click, Impression, Item, Purchase
from streams.producer import EventProducer
from streams.topics import Topics

__all__ = ["Click", "Delivery", "EventProducer", "Impression", "Item", "KafkaConnection", "Purchase", "Topics"]
