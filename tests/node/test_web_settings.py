"""What the section [web] takes and what it refuses."""

from typing import Any

import pytest

from dicom_node.errors import ConfigurationError
from dicom_node.settings import settings_from
from tests.node.sites import TOKEN


@pytest.mark.parametrize(
    "token", ["short-token-123", "changemechangeme", "a" * 64, "with a space in it", "täglich-wechselnd-123"]
)
def test_a_token_that_can_be_guessed_or_not_be_sent_is_refused_with_a_remedy(token: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^web\.token: at least 16 characters .*token_urlsafe") as refused:
        settings_from({"web": {"token": token}})
    assert token not in str(refused.value)


@pytest.mark.parametrize(
    "web", [{"host": "0.0.0.0"}, {"host": "10.0.0.1"}, {"names": ["echo.example"]}, {"proxies": ["127.0.0.1"]}]
)
def test_a_page_that_others_reach_needs_a_token(web: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"^web\.token: needed"):
        settings_from({"web": web})
    assert settings_from({"web": {**web, "token": TOKEN}}).web.token


@pytest.mark.parametrize(
    ("web", "key"),
    [
        ({"names": ["http://echo.example"]}, "web.names"),
        ({"names": ["echo.example:443"]}, "web.names"),
        ({"proxies": ["a proxy"]}, "web.proxies"),
        ({"certificate": "web.pem"}, "web: certificate and key"),
        ({"key": "web.key"}, "web: certificate and key"),
    ],
)
def test_what_would_have_no_effect_is_refused_with_its_key(web: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{key}"):
        settings_from({"web": {"token": TOKEN, **web}})
