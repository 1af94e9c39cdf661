"""[node.tls] is looked at before the node starts: each mistake is one line with its key and what to do."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from dicom_node import tls
from dicom_node.errors import ConfigurationError
from dicom_node.serve import serve
from dicom_node.settings import Settings, settings_from
from tests.binaries import require_binary
from tests.doubles.certificates import RSA_1024, Authority, Credentials, authority


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The hospital's authority."""
    return authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def node(ours: Authority) -> Credentials:
    """A certificate that is good for some years."""
    return ours.issue("node", days=900)


def test_a_good_certificate_is_no_news(node: Credentials) -> None:
    """Nothing is said."""
    with capture_logs() as logs:
        tls.check(_settings(node.settings()), datetime.now(UTC))

    assert logs == []


def test_a_certificate_that_ends_soon_is_said(node: Credentials) -> None:
    """A month before."""
    with capture_logs() as logs:
        tls.check(_settings(node.settings()), datetime.now(UTC) + timedelta(days=880))

    assert [one["event"] for one in logs] == ["certificate_ends_soon"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("certificate gone", ("node.tls.certificate: ", "gone.crt", "cannot be read")),
        ("key gone", ("node.tls.key: ", "gone.key", "cannot be read")),
        ("ca gone", ("node.tls.ca: ", "gone.pem", "cannot be read")),
        ("certificate is none", ("node.tls.certificate: ", "no certificate in PEM form")),
        ("ca is none", ("node.tls.ca: ", "no certificate in PEM form")),
        ("key of another", ("node.tls.key: ", "is not the key of")),
        ("key with a password", ("node.tls.key: ", "without a password")),
        ("expired", ("node.tls.certificate: ", "certificate has expired", "get a new one")),
        ("weak", ("node.tls.certificate: ", "key too small", "make a new one")),
        ("for clients only", ("node.tls.certificate: ", "unsuitable certificate purpose")),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, ours: Authority, node: Credentials, kind: str, words: tuple[str, ...]
) -> None:
    """Whoever starts the node mends it; the node does not start."""
    settings = _settings(_mistake(kind, tmp_path, ours, node), data_dir=str(tmp_path / "var"))

    with pytest.raises(ConfigurationError) as caught:
        serve(settings, None)

    assert "\n" not in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        ({"certificate_sha256": "12"}, "peers.0.certificate_sha256: not a SHA-256"),
        ({"certificate_sha256": "0" * 64}, "certificate_sha256 of pacs needs node.tls.ca, or tls = true"),
        ({"tls": True}, "tls is for our associations with the peer: it needs host and port"),
    ],
)
def test_a_peer_s_key_that_could_have_no_effect_is_a_mistake(peer: dict[str, Any], words: str) -> None:
    """Whoever believes that a peer is held to its certificate must be right."""
    with pytest.raises(ConfigurationError, match=words):
        settings_from({"peers": [{"name": "pacs", "ae_title": "PACS", **peer}]})


def test_a_fingerprint_is_taken_as_openssl_writes_it(node: Credentials) -> None:
    """In capitals, with colons."""
    peer = {"name": "pacs", "ae_title": "PACS", "certificate_sha256": node.sha256, "tls": True, "host": "pacs"}

    assert ":" in node.sha256
    assert settings_from({"peers": [peer]}).peer("pacs").certificate_sha256 == node.sha256.replace(":", "").lower()


def _settings(section: dict[str, str], **node: str) -> Settings:
    return settings_from({"node": {"tls": section, **node}})


def _mistake(kind: str, folder: Path, ours: Authority, node: Credentials) -> dict[str, str]:
    section = node.settings()
    none = folder / "none.pem"
    none.write_text("no certificate")
    match kind:
        case "certificate gone":
            return {**section, "certificate": str(folder / "gone.crt")}
        case "key gone":
            return {**section, "key": str(folder / "gone.key")}
        case "ca gone":
            return {**section, "ca": str(folder / "gone.pem")}
        case "certificate is none":
            return {**section, "certificate": str(none)}
        case "ca is none":
            return {**section, "ca": str(none)}
        case "key of another":
            return {**section, "key": str(ours.issue("other").key)}
        case "key with a password":
            locked = folder / "locked.key"
            openssl = require_binary("openssl")
            command = [openssl, "ec", "-in", node.key, "-aes128", "-passout", "pass:secret", "-out", locked]
            subprocess.run(command, check=True, capture_output=True)
            return {**section, "key": str(locked)}
        case "expired":
            return ours.issue("old", days=-1).settings()
        case "weak":
            return ours.issue("weak", key=RSA_1024).settings()
    return ours.issue("client", usage="clientAuth").settings()
