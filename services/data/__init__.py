"""Input files of events and items, read row by row, with the reason for each refused row."""
