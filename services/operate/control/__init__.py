"""Commands to a running deployment through its control topic: forget, quarantine, guard and secret."""
