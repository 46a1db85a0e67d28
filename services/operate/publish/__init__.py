"""`headwater publish`: validate events of a file or standard input, and send them to the log."""
