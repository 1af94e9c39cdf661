"""Phantom data sets: synthetic echo with known truth, in the layouts of the real data sets on disk."""
