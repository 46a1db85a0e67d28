"""The scorer: answers ranking requests over HTTP from the newest adapter, and swaps adapters without a pause."""
