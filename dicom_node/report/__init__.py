"""The report: from findings to a TID 1500 Structured Report."""
