"""The log: events, topics, consumer, micro-batches, dead letters, embedded broker, producer SDK."""
