"""Passwords and tokens of the configuration: in no message, in no representation, in no traceback."""

import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr

from dicom_node.broker import without_secrets
from dicom_node.errors import ConfigurationError, LedgerUnavailable
from dicom_node.ledger.engine import open_ledger
from dicom_node.settings import Settings, settings_from

SECRET = "Xyzzy-Plugh-2718281828"
SAMPLES: Mapping[str, str] = {
    "database.url": f"postgresql+psycopg://echo:{SECRET}@127.0.0.1:1/echo",
    "broker.url": f"redis://:{SECRET}@127.0.0.1:1/0",
}
"""Of the secrets that have a form; any other is the secret itself."""


def secret_keys() -> Iterator[tuple[str, str]]:
    """Yield section and name of each setting that is a secret."""
    for section, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for name, one in field.annotation.model_fields.items():
                if one.annotation is SecretStr:
                    yield section, name


@pytest.fixture
def content() -> dict[str, dict[str, str]]:
    """A configuration in which each secret is set."""
    made: dict[str, dict[str, str]] = {"objects": {"url": "s3://echo", "key": "echo"}}  # or it would have no effect
    for section, name in secret_keys():
        made.setdefault(section, {})[name] = SAMPLES.get(f"{section}.{name}", SECRET)
    return made


def test_the_secrets_are_known() -> None:
    """Whatever else is one is found by its type."""
    assert {("database", "url"), ("broker", "url"), ("web", "token"), ("objects", "secret")} <= {*secret_keys()}


def test_no_representation_of_the_settings_shows_one(content: dict[str, dict[str, str]]) -> None:
    settings = settings_from(content)
    shown = [repr(settings), str(settings), f"{settings.web}", settings.model_dump_json(), str(settings.model_dump())]

    assert settings.web.token.get_secret_value() == SECRET
    assert not [text for text in shown if SECRET in text]


WRONG: tuple[dict[str, Any], ...] = (
    {"database": {"url": f"mysql://echo:{SECRET}@127.0.0.1/echo"}},
    {"database": {"url": f"postgresql+psycopg://echo:x@{SECRET}@127.0.0.1/echo"}},
    {"database": {"url": f"postgresql+psycopg://echo:{SECRET}"}},
    {"database": {"url": f"postgresql+psycopg://echo:x@127.0.0.1:{SECRET}/echo"}},
    {"database": {"url": [SECRET]}},
    {"database": SECRET},
    {"broker": {"url": f"amqp://:{SECRET}@127.0.0.1/0"}},
    {"broker": {"url": f"redis://:x#{SECRET}@127.0.0.1/0"}},
    {"broker": {"url": f"redis://:x/{SECRET}@127.0.0.1/0"}},
    {"broker": {"url": f"redis://[{SECRET}/0"}},
    {"web": {"token": f"{SECRET} "}},
    {"web": {"token": {"is": SECRET}}},
    {"web": {"token": SECRET, "port": -1}},
    {"web": {"tokken": SECRET}},
    {"web": {"token": SECRET, "certificate": "web.pem"}},
    {"web": {"token": SECRET}, "node": {"host": "0.0.0.0", "require_known_peer": False}},
    {"web": {"host": "0.0.0.0"}, "database": {"url": f"postgresql+psycopg://echo:{SECRET}@127.0.0.1/echo"}},
)


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_no_mistake_of_the_configuration_shows_one_even_with_its_traceback(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        settings_from(wrong)
    whole = "".join(traceback.format_exception(refused.value))  # what --debug prints

    assert SECRET not in str(refused.value)
    assert SECRET not in whole


@pytest.mark.parametrize("value", [SECRET, f'{{"token": "{SECRET}', f'{{"tokken": "{SECRET}"}}', f'["{SECRET}"]'])
def test_a_wrong_section_in_the_environment_shows_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("ECHO_NODE__WEB", value)
    with pytest.raises(ConfigurationError, match="web") as refused:
        settings_from({})

    assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_a_database_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(LedgerUnavailable) as refused:
        open_ledger(SAMPLES["database.url"])

    assert "127.0.0.1" in str(refused.value)
    assert SECRET not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("url", [SAMPLES["broker.url"], f"redis://127.0.0.1/0?password={SECRET}"])
def test_a_url_that_is_shown_has_lost_its_password(url: str) -> None:
    assert without_secrets(url).startswith("redis://127.0.0.1")
    assert SECRET not in without_secrets(url)


@pytest.mark.parametrize("arguments", [("check-config",), ("studies",), ("serve",), ("retry", "1.2.3")])
def test_no_command_shows_one_when_nobody_answers(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    config = tmp_path / "node.toml"
    lines = [f'[{name}]\nurl = "{SAMPLES[f"{name}.url"]}"\n' for name in ("database", "broker")]
    config.write_text("".join(lines) + f'[web]\nport = 0\ntoken = "{SECRET}"\n[node]\nport = 0\ndata_dir = "var"\n')
    ended = subprocess.run(
        [sys.executable, "-m", "dicom_node", "--debug", *arguments, "--config", config],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("ECHO_NODE")},
        cwd=tmp_path,
        timeout=120,
        check=False,
    )

    assert (ended.returncode == 0) == (arguments == ("check-config",))
    assert ("Traceback" in ended.stderr) == (arguments != ("check-config",))
    assert SECRET not in ended.stdout + ended.stderr
