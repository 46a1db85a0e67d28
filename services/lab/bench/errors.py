"""What can end a measurement early."""


class BenchError(Exception):
    """Nothing can be measured; the message says why, and what to do."""
