"""The registry process: published adapters over HTTP, and which of them is served."""
