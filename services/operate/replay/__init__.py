"""Data sets as events: read from CSV files, and sent to the log at a chosen pace."""
