"""The registry process: published adapters over HTTP, read-only."""
