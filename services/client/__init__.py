"""The HTTP clients of the scorer, for applications. They need neither torch nor FastAPI."""
