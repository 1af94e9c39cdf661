"""Where each value of the configuration comes from, by the names that were written: no value is kept here."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Origin(StrEnum):
    """Who gave a value."""

    DEFAULT = "default"
    """Nobody."""
    FILE = "file"
    """The configuration file."""
    ENVIRONMENT = "environment"
    """A variable, which wins over the file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origins:
    """The keys that somebody wrote, such as `node.port`; of the peers, which are a list, `peers` alone."""

    file: frozenset[str] = frozenset()
    environment: frozenset[str] = frozenset()

    def of(self, key: str) -> Origin:
        """Return where the value of a key comes from."""
        if key in self.environment:
            return Origin.ENVIRONMENT
        return Origin.FILE if key in self.file else Origin.DEFAULT


def origins_of(content: Mapping[str, Any], environment: Mapping[str, str], prefix: str) -> Origins:
    """Return the origins of a configuration.

    Args:
        content: the parsed file.
        environment: the variables of this process.
        prefix: of those that are meant.
    """
    written: set[str] = set()
    for name, value in environment.items():
        if name.upper().startswith(prefix):
            key = name[len(prefix) :].lower().replace("__", ".")
            written.update(_keys(key, _whole_section(value)))
    return Origins(
        file=frozenset(key for name, value in content.items() for key in _keys(name, value)),
        environment=frozenset(written),
    )


def _whole_section(value: str) -> object:
    """Return a variable that gives a whole section as JSON; None of any other."""
    try:
        parsed: object = json.loads(value)
    except ValueError:
        return None
    return parsed if isinstance(parsed, Mapping) else None


def _keys(name: str, value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _keys(f"{name}.{key}", inner)
    else:
        yield name
