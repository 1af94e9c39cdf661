"""Small phantom data sets in every layout, written once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.phantom.case import Plan
from trainer.phantom.write import write

CASES = {"mimic": 3, "mimic-0.1": 1, "echonet": 12, "camus": 10, "camus-challenge": 10, "tmed": 10}

Layouts = Callable[[str], Path]


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Layouts:
    """A function that returns the root of a layout; tests that change files copy it."""
    roots: dict[str, Path] = {}

    def root(layout: str) -> Path:
        if layout not in roots:
            roots[layout] = tmp_path_factory.mktemp("phantoms") / layout
            write(layout, roots[layout], cases=CASES[layout], plan=Plan(seed=11), jobs=1)
        return roots[layout]

    return root
