"""The scorer: answers rankings over HTTP from the newest adapter, and never stops to take the next one."""
