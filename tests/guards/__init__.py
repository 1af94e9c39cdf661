"""The fault table, tried: each of its tests fails when the guard that it is about is taken out.

`python -m tests.guards` takes out one guard after the other in a copy of the repository, runs its test there and says
which tests noticed. Words after it choose among the guards: files of this folder, or parts of a test's name.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What one test of the fault table stands on."""

    test: str
    """As pytest names it, from the repository's root."""
    file: str
    """Where the guard stands."""
    old: str
    """The guard: once in its file."""
    new: str
    """What is there without it."""
    place: str
    """The file of this folder that says so."""


def guards() -> list[Guard]:
    """Return the guards of every file of this folder."""
    return [
        Guard(**entry, place=path.stem)
        for path in sorted(FOLDER.glob("*.toml"))
        for entry in tomllib.loads(path.read_text())["guard"]
    ]


def chosen(words: Sequence[str]) -> list[Guard]:
    """Return the guards that any of these words names; all of them without a word."""
    return [one for one in guards() if not words or any(word == one.place or word in one.test for word in words)]
