"""Events from a file or standard input, one JSON document a line, checked and sent to the log."""
