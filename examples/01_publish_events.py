"""Publish an item and a click to Kafka.

HEADWATER_BOOTSTRAP_SERVERS=127.0.0.1:9092 python examples/01_publish_events.py
"""

import os
import time
import uuid

from headwater import Click, EventProducer, Item, KafkaConnection

connection = KafkaConnection(bootstrap_servers=os.environ.get("HEADWATER_BOOTSTRAP_SERVERS", "127.0.0.1:9092"))
now_ms = time.time_ns() // 1_000_000

with EventProducer(connection) as producer:  # leaving the block waits until the broker has confirmed every event
    producer.send(
        Item(event_id=str(uuid.uuid4()), ts=now_ms, item_id="mug-1", kind="product", title="Blue stoneware mug")
    )
    producer.send(Click(event_id=str(uuid.uuid4()), ts=now_ms, user_id="ann", session_id="s-1", item_id="mug-1"))

print(f"published {producer.delivered} events")
