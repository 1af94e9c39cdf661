"""Certificate authorities that live as long as a test: keys and certificates made by openssl, never committed."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.binaries import require_binary

ELLIPTIC = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
RSA_2048 = ("rsa:2048",)
RSA_1024 = ("rsa:1024",)

LOCAL = "IP:127.0.0.1,DNS:localhost"


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """A certificate and its key, in files."""

    certificate: Path
    key: Path
    ca: Path
    """The authority that signed it."""

    @property
    def sha256(self) -> str:
        """Return the fingerprint as openssl prints it."""
        said = _openssl("x509", "-in", self.certificate, "-noout", "-fingerprint", "-sha256")
        return said.partition("=")[2].strip()

    def settings(self, *, asks: bool = True) -> dict[str, str]:
        """Return [node.tls] of a node that has this certificate, and asks its peers for theirs or not."""
        tls = {"certificate": str(self.certificate), "key": str(self.key)}
        return {**tls, "ca": str(self.ca)} if asks else tls

    def client(self, *, trusted: Path | None = None) -> ssl.SSLContext:
        """Return the context of a peer that shows this certificate."""
        return self._shown(anonymous_client(trusted or self.ca))

    def server(self, *, asks: bool = True) -> ssl.SSLContext:
        """Return the context of a server with this certificate, which asks its clients for theirs or not."""
        context = self._shown(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        context.load_verify_locations(self.ca)
        context.verify_mode = ssl.CERT_REQUIRED if asks else ssl.CERT_NONE
        return context

    def _shown(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.set_ciphers("DEFAULT:@SECLEVEL=0")  # whatever is refused, the node refuses it
        context.load_cert_chain(self.certificate, self.key)
        return context


@dataclass(frozen=True, kw_only=True, slots=True)
class Authority:
    """Signs certificates."""

    folder: Path
    name: str

    @property
    def certificate(self) -> Path:
        """Return the file that others trust."""
        return self.folder / f"{self.name}.pem"

    def issue(
        self, name: str, *, names: str = LOCAL, days: int = 2, key: tuple[str, ...] = ELLIPTIC, usage: str = ""
    ) -> Credentials:
        """Return a certificate for these names, valid for so many days from now (negative: it has ended)."""
        file, request, extensions = (self.folder / f"{name}{suffix}" for suffix in (".key", ".csr", ".ext"))
        extensions.write_text(f"subjectAltName={names}\n" + (f"extendedKeyUsage={usage}\n" if usage else ""))
        _openssl("req", "-newkey", *key, "-nodes", "-keyout", file, "-out", request, "-subj", f"/CN={name}")
        certificate = self.folder / f"{name}.crt"
        signer = ("-CA", self.certificate, "-CAkey", self.folder / f"{self.name}.key", "-CAcreateserial")
        _openssl("x509", "-req", "-in", request, *signer, "-days", days, "-extfile", extensions, "-out", certificate)
        return Credentials(certificate=certificate, key=file, ca=self.certificate)


def authority(folder: Path, name: str = "authority") -> Authority:
    """Return a new authority with its files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Authority(folder=folder, name=name)
    key = ("-newkey", *ELLIPTIC, "-nodes", "-keyout", folder / f"{name}.key")
    _openssl("req", "-x509", *key, "-out", made.certificate, "-subj", f"/CN={name}", "-days", 2)
    return made


def anonymous_client(trusted: Path) -> ssl.SSLContext:
    """Return the context of a peer that shows no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(trusted)
    return context


def _openssl(*arguments: object) -> str:
    run = subprocess.run(
        [require_binary("openssl"), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
