"""HTTP plumbing that all processes share: request bodies, limits, problem documents, the server itself."""
