"""constraints.txt holds exactly what is installed and tested."""

import re
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FOLLOWS_TORCH = re.compile(r"nvidia-.*|cuda-.*|triton")
OWN = "echo-ai-node"
WITH_EVERY_VENV = {"pip", "setuptools", "wheel"}


def test_every_requirement_of_the_package_has_an_exact_version_that_it_allows() -> None:
    """A pin outside its range would stop the installation."""
    pins = _pins()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    requirements = [Requirement(text) for text in (*project["dependencies"], *extras)]
    others = [one for one in requirements if canonicalize_name(one.name) != OWN]

    assert [str(one) for one in others if canonicalize_name(one.name) not in pins] == []
    assert [str(one) for one in others if pins[canonicalize_name(one.name)] not in one.specifier] == []


def test_the_build_backend_has_an_exact_version() -> None:
    """It is installed before the package, without build isolation."""
    (backend,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]

    assert _pins()["hatchling"] in Requirement(backend).specifier


def test_what_is_installed_is_what_the_constraints_say() -> None:
    """Otherwise another machine would test other versions than this one."""
    installed = {canonicalize_name(one.name): one.version for one in distributions()}
    ours = {name: version for name, version in installed.items() if name != OWN and name not in WITH_EVERY_VENV}
    pins = _pins()

    different = {
        name: (version, pins.get(name))
        for name, version in ours.items()
        if pins.get(name) != version and not FOLLOWS_TORCH.fullmatch(name)
    }

    assert different == {}


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}
