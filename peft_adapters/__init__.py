"""The model: encoder, ranking, learning, registry of adapters, serving, and the lifecycle of a version."""
