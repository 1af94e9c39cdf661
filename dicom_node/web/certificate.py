"""The page's certificate."""

import ssl

from dicom_node.errors import ConfigurationError
from dicom_node.settings import Web


def check_certificate(web: Web) -> None:
    """Return if the page can be served over HTTPS with the files of the settings, or if there are none.

    Raises:
        ConfigurationError: they cannot be used.
    """
    if web.certificate is None or web.key is None:
        return
    for key, path in (("web.certificate", web.certificate), ("web.key", web.key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{key}: {path} cannot be read: {error.strerror}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(web.certificate, web.key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigurationError(
            f"web.certificate, web.key: {web.certificate} and {web.key} are no certificate and its unencrypted key, "
            f"both PEM ({reason})"
        ) from error


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # instead of asking for it on the terminal
