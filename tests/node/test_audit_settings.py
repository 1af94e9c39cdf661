"""What the audit trail may be told by the configuration."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from dicom_node.errors import ConfigurationError
from dicom_node.settings import parse_receiver, settings_from
from dicom_node.syslog import check


@pytest.mark.parametrize(
    ("url", "receiver"),
    [
        ("tls://arr.example:6515", ("tls", "arr.example", 6515)),
        ("tls://arr.example", ("tls", "arr.example", 6514)),
        ("udp://10.0.0.1", ("udp", "10.0.0.1", 514)),
        ("udp://[::1]:1514", ("udp", "::1", 1514)),
    ],
)
def test_a_receiver_is_a_scheme_a_host_and_a_port(url: str, receiver: tuple[str, str, int]) -> None:
    """The ports of RFC 5425 and RFC 5426 where it names none."""
    assert parse_receiver(url) == receiver


@pytest.mark.parametrize(
    ("audit", "says"),
    [
        ({"syslog": "tcp://arr.example:601"}, "audit.syslog: use tls://HOST:6514 or udp://HOST:514"),
        ({"syslog": "tls://arr.example/path"}, "audit.syslog: use tls://HOST:6514 or udp://HOST:514"),
        ({"syslog": "arr.example"}, "audit.syslog: use tls://HOST:6514 or udp://HOST:514"),
        ({"syslog": "tls://arr.example:99999"}, "audit.syslog: "),
        ({"syslog": "udp://arr.example", "ca": __file__}, "audit: ca: has an effect only with syslog = tls://"),
        ({"certificate": __file__}, "audit: certificate: has an effect only with syslog = tls://"),
        ({"syslog": "tls://arr.example", "key": __file__}, "audit: key: needs certificate"),
    ],
)
def test_what_makes_no_sense_stops_the_start_and_is_named(audit: Mapping[str, str], says: str) -> None:
    """A setting without effect is a mistake too."""
    with pytest.raises(ConfigurationError, match=r"^audit") as caught:
        settings_from({"audit": audit})

    assert str(caught.value).startswith(says)


@pytest.mark.parametrize(
    ("audit", "says"),
    [
        ({"ca": "/nowhere.pem"}, "audit.ca: no file /nowhere.pem"),
        ({"ca": __file__}, "audit: ca, certificate and key must be PEM files"),
        ({"certificate": __file__}, "audit: ca, certificate and key must be PEM files"),
    ],
)
def test_a_file_that_cannot_be_used_stops_the_node_and_no_worker(audit: Mapping[str, str], says: str) -> None:
    """A worker has the same configuration, and mostly not the files."""
    settings = settings_from({"audit": {"syslog": "tls://arr.example", **audit}})

    with pytest.raises(ConfigurationError, match=says):
        check(settings.audit)


def test_the_trail_needs_no_configuration(tmp_path: Path) -> None:
    """It is on, in data_dir, with Patient IDs."""
    settings = settings_from({"node": {"data_dir": str(tmp_path)}})

    assert (settings.audit.folder, settings.audit.patient_id, settings.audit.syslog) == ("", True, "")
