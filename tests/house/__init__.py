"""The repository itself: its documents say what the code says."""
