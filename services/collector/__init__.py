"""The collector process: events over HTTP, for producers without Kafka."""
