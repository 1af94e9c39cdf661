"""An ensemble that is asked nothing: what is known of it, for tests of what is made of its answers."""

from model.prediction import EnsembleInfo
from model.tasks import CATALOGUE

INFO = EnsembleInfo(
    name="test",
    version="1",
    statement="for a test",
    digest="ab" * 32,
    views={task: info.views for task, info in CATALOGUE.items()},
    view_threshold=0.5,
    view_floor=0.4,
)
"""Every task, each spoken for by all the views that the catalogue allows."""
