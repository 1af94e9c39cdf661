"""What every answer says to the browser: run and show nothing but our own, frame nothing, keep nothing, tell nobody."""

_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with it a form sends `Origin: null`, and its own page could not be told from another (Fetch 3.2).
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_HTTPS_ALONE = {"Strict-Transport-Security": "max-age=31536000"}  # RFC 6797


def security_headers(scheme: str) -> dict[str, str]:
    """Return the headers of an answer over `scheme`: http or https."""
    return _SECURITY | (_HTTPS_ALONE if scheme == "https" else {})
