"""Celery workers: the only translator between the node and the model."""
