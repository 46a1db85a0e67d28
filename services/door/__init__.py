"""The door of a process that answers HTTP: who may call, how many at once, and for how long."""
