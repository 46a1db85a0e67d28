"""Commands to a running deployment, written to its control topic: whom to forget, what to let out of quarantine."""
