"""What tests of every package share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

# No test asserts on time: a busy machine is no error.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real files, which lies beside the repository on the machines that have it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder of real files beside the repository")
    return folder


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Leave to the next test the log as it was: a command sets it for its whole process."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
