"""The processes: updater, scorer, registry, demo and command line; one place for settings and metrics."""
