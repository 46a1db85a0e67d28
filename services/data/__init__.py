"""Files of events and items, read row by row with the reason for each row that is refused."""
