"""docs/settings.md, written from the docstrings of the settings: `make docs`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dicom_node.settings import ENV_PREFIX, Section, Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"

_HEAD = f"""# Settings

Written by `make docs` from `dicom_node/settings.py`; do not edit.

One TOML file, named by `--config` or by `ECHO_NODE_CONFIG`. Every key outside `[[peers]]` is also an environment
variable, `{ENV_PREFIX}SECTION__KEY`, which wins over the file; `{ENV_PREFIX}PEERS` is the whole list as JSON. An
unknown key or section, in the file or in the environment, stops the start and is named;
`dicom-node check-config` says every mistake.
"""


def render() -> str:
    """Return the page."""
    return "\n".join([_HEAD, *_sections()])


def _sections() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        is_list = get_origin(field.annotation) is tuple
        section = get_args(field.annotation)[0] if is_list else field.annotation
        assert isinstance(section, type)
        assert issubclass(section, Section)
        yield from _section(f"[[{name}]]" if is_list else f"[{name}]", field.description or "", section)


def _section(name: str, description: str, section: type[Section]) -> Iterator[str]:
    """Yield a section, and after it those inside it, which may be absent."""
    inner = {key: _inner(field) for key, field in section.model_fields.items()}
    yield f"## {name}"
    yield f"{description}\n"
    yield "| key | default | meaning |\n|---|---|---|"
    yield from (_row(key, field) for key, field in section.model_fields.items() if inner[key] is None)
    yield ""
    for key, one in inner.items():
        if one is not None:
            yield from _section(f"{name[:-1]}.{key}]", section.model_fields[key].description or "", one)


def _inner(field: FieldInfo) -> type[Section] | None:
    sections = [one for one in get_args(field.annotation) if isinstance(one, type) and issubclass(one, Section)]
    return sections[0] if sections else None


def _row(key: str, field: FieldInfo) -> str:
    limits = _limits(field)
    words = " ".join((field.description or "").split())  # a row is one line
    meaning = f"{words}{f' {limits}' if limits else ''}".replace("|", "\\|")
    return f"| `{key}` | {_default(field.default)} | {meaning} |"


def _default(value: Any) -> str:
    if value is None:
        return "not set"
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    assert not isinstance(value, BaseModel)
    return f'`"{value}"`' if isinstance(value, str | Path) else f"`{value}`"


def _limits(field: FieldInfo) -> str:
    """Return the bounds of a number in words."""
    found = {name: getattr(one, name) for one in field.metadata for name in ("ge", "gt", "le") if hasattr(one, name)}
    words = {"ge": "at least", "gt": "more than", "le": "at most"}
    text = ", ".join(f"{words[name]} {value}" for name, value in found.items())
    return f"({text})" if text else ""


if __name__ == "__main__":
    PAGE.write_text(render())
