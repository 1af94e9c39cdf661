"""The configuration for the eyes of a person: each key, its value, who gave it; of a secret, whether there is one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pydantic import SecretStr

from dicom_node.broker import without_secrets
from dicom_node.origins import Origin
from dicom_node.settings import Section, Settings

_NOT_SET = "not set"
_URLS = ("stow_url", "dicomweb_url")  # which may hold a password


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key of the configuration."""

    name: str
    value: str
    origin: Origin
    meaning: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """A section of the configuration."""

    title: str
    """As the file has it, such as [node]."""
    meaning: str
    keys: Sequence[Key]


def sections(settings: Settings) -> list[Keys]:
    """Return every section with its keys, those of each peer after the sections."""
    found: list[Keys] = []
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, Section):
            found += _section(settings, name, field.description or "", value)
    origin = settings.origins.of("peers")
    for peer in settings.peers:
        keys = [
            Key(
                name=key,
                value=_shown(key, getattr(peer, key), origin),
                origin=origin if key in peer.model_fields_set else Origin.DEFAULT,
                meaning=_words(type(peer).model_fields[key].description),
            )
            for key in type(peer).model_fields
        ]
        found.append(Keys(title=f"[[peers]] {peer.name}", meaning=_words(type(peer).__doc__), keys=keys))
    return found


def _section(settings: Settings, name: str, meaning: str, section: Section) -> Iterator[Keys]:
    """Yield a section, and after it those inside it."""
    fields = type(section).model_fields
    values: Mapping[str, Any] = {key: getattr(section, key) for key in fields}
    inner = {key: value for key, value in values.items() if isinstance(value, Section)}
    keys = [
        Key(
            name=key,
            value=_shown(key, value, settings.origins.of(f"{name}.{key}")),
            origin=settings.origins.of(f"{name}.{key}"),
            meaning=_words(fields[key].description),
        )
        for key, value in values.items()
        if key not in inner
    ]
    yield Keys(title=f"[{name}]", meaning=_words(meaning), keys=keys)
    for key, value in inner.items():
        yield from _section(settings, f"{name}.{key}", fields[key].description or "", value)


def _shown(key: str, value: object, origin: Origin) -> str:
    if isinstance(value, SecretStr):
        # What nobody wrote may have been made for this run: the embedded broker's password.
        return "set" if value.get_secret_value() and origin is not Origin.DEFAULT else _NOT_SET
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value in ("", ()):
        return _NOT_SET
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, Enum):
        return str(value.value)
    return without_secrets(str(value)) if key in _URLS else str(value)


def _words(text: str | None) -> str:
    return " ".join((text or "").split())
