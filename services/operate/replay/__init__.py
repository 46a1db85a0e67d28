"""`headwater replay`: send a data set of CSV files to the log at a chosen pace."""
