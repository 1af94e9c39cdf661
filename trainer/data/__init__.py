"""Data sets: from their layouts on disk to clip stores, and from clip stores to batches."""
