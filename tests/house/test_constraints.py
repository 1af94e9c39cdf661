"""constraints.txt holds exactly what is installed and tested."""

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FOLLOWS_TORCH = re.compile(r"nvidia-(?!ml-py).*|cuda-.*|triton")
OWN = "echo-ai-node"


def test_every_requirement_of_the_package_has_an_exact_version_that_it_allows() -> None:
    """A pin outside its range would stop the installation."""
    pins = _pins()

    assert [str(one) for one in _requirements() if canonicalize_name(one.name) not in pins] == []
    assert [str(one) for one in _requirements() if pins[canonicalize_name(one.name)] not in one.specifier] == []


def test_the_build_backend_has_an_exact_version() -> None:
    """It is installed before the package, without build isolation."""
    (backend,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]

    assert _pins()["hatchling"] in Requirement(backend).specifier


def test_what_is_tested_is_what_the_constraints_say() -> None:
    """Everything that the package needs, directly or not; otherwise another machine would test other versions."""
    found = _installed([*_requirements(), *map(Requirement, ("hatchling", "editables"))])

    assert found == _pins()


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def _requirements() -> list[Requirement]:
    """Return what the package and all of its extras ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [one for one in map(Requirement, texts) if canonicalize_name(one.name) != OWN]


def _installed(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Return the versions of what meets the requirements, and of what that needs itself."""
    found: dict[str, str] = {}
    waiting = [(one.name, frozenset(one.extras)) for one in requirements]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        if FOLLOWS_TORCH.fullmatch(name):
            continue
        package = distribution(name)
        found[canonicalize_name(name)] = package.version
        needed = map(Requirement, package.requires or [])
        wanted = {
            (one.name, frozenset(one.extras))
            for one in needed
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        }
        waiting += wanted - seen
        seen |= wanted
    return found
