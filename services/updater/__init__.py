"""The updater: events in, adapters out. `loop.py` shows all of it."""
