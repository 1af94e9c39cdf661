"""Tiny networks, whole bundles and ensembles on disk."""

from collections.abc import Callable
from pathlib import Path

import pytest

from model.bundle import Bundle
from tests.doubles import tiny
from tests.doubles.tiny import ALL_VIEWS, Views, tiny_net, tiny_network

__all__ = ["ALL_VIEWS", "MakeBundle", "MakeEnsemble", "Views", "tiny_net", "tiny_network"]

MakeBundle = Callable[..., Bundle]
MakeEnsemble = Callable[..., Path]


@pytest.fixture
def make_bundle() -> MakeBundle:
    """A function that writes a tiny bundle and returns it as loaded."""
    return tiny.make_bundle


@pytest.fixture
def make_ensemble() -> MakeEnsemble:
    """A function that writes a tiny ensemble into a folder: a bundle for each of `views`."""
    return tiny.make_ensemble
