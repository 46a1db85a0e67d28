"""The registry process: published adapters and their rollout over HTTP."""
