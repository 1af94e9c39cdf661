"""Small classes that stand in for a part of the system."""
