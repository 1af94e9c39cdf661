"""The configuration: one TOML file, every key also as ECHO_NODE__SECTION__KEY, checked whole at the start."""

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from dicom_node.errors import ConfigurationError, InvalidAETitle, UnknownPeer
from dicom_node.identity import parse_ae_title
from dicom_node.origins import Origins, origins_of
from dicom_node.report.findings import PictureKind
from dicom_node.report.sr_class import SrClass

ENV_PREFIX = "ECHO_NODE__"
CONFIG_VARIABLE = "ECHO_NODE_CONFIG"
"""Environment variable with the path of the configuration file."""

MIN_COMMITTED_DAYS = 7
"""What the node commits to is kept for so long at least."""


def _ae_title(value: object) -> str:
    try:
        return parse_ae_title(value)
    except InvalidAETitle as error:  # pydantic turns ValueError alone into a message with the key
        raise ValueError(str(error)) from error


AE = Annotated[str, BeforeValidator(_ae_title)]


def _network(value: IPv4Network | IPv6Network | str) -> IPv4Network | IPv6Network:
    return ipaddress.ip_network(value, strict=False)


Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]

HostName = Annotated[str, StringConstraints(to_lower=True, pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$")]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_NOT_ENCODED = "no URL: special characters of user and password must be percent-encoded"

_TOKEN = re.compile(r"[\x21-\x7e]{16,}", re.ASCII)
_TOKEN_VARIETY = 8  # different characters: fewer are a word that is repeated
_RECEIVERS = {"tls": 6514, "udp": 514}  # RFC 5425 4.1, RFC 5426 3.3


def parse_receiver(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a syslog receiver.

    Raises:
        ValueError: it is none.
    """
    parts = urlsplit(url)
    is_plain = parts.hostname and not (parts.path or parts.query or parts.fragment or parts.username)
    if parts.scheme not in _RECEIVERS or not is_plain:
        raise ValueError("use tls://HOST:6514 or udp://HOST:514, or leave it empty")
    return parts.scheme, str(parts.hostname), parts.port or _RECEIVERS[parts.scheme]


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


class Section(BaseModel):
    """One closed part of the configuration."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        hide_input_in_errors=True,  # what --debug prints of a mistake must not be the password in it
    )


def _sha256(value: object) -> str:
    text = str(value).replace(":", "").lower()  # as `openssl x509 -fingerprint -sha256` writes it, or plain
    if text and not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("not a SHA-256: 64 hexadecimal digits, as `openssl x509 -noout -fingerprint -sha256` says")
    return text


class Tls(Section):
    """DICOM TLS; without this section the node's port speaks plain TCP."""

    certificate: Annotated[Path, AfterValidator(_absolute)]
    """PEM file with the node's certificate, and after it those between it and its authority, if there are."""
    key: Annotated[Path, AfterValidator(_absolute)]
    """PEM file with its private key, without a password."""
    ca: Annotated[Path, AfterValidator(_absolute)] | None = None
    """PEM file with the authorities that sign the peers' certificates; with it every peer that calls must show one.
    Without it no peer is asked, and peers that are called are held to the authorities that the system trusts."""


class Node(Section):
    """Where the node listens and what it keeps."""

    ae_title: AE = "ECHONODE"
    """Called AE title; an association for another is rejected."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 listens beyond this machine."""
    port: int = Field(default=11112, ge=0, le=65535)
    """TCP port of the Storage SCP; 0 takes a free one."""
    data_dir: Annotated[Path, AfterValidator(_absolute)] = Path("var")
    """Folder of instances, reports and the embedded ledger."""
    acceptors: int = Field(default=2, ge=1, le=64)
    """Receiving processes on the one port."""
    max_pdu: int = Field(default=131072, ge=4096, le=16 * 1024 * 1024)
    """Bytes; a longer PDU is aborted, never buffered."""
    max_associations: int = Field(default=64, ge=1, le=4096)
    """Associations at one time, over all acceptors."""
    max_associations_per_peer: int = Field(default=16, ge=1, le=4096)
    """Of these, associations of one calling AE title."""
    max_instance_bytes: int = Field(default=1 << 30, ge=1_000_000, le=1 << 32)
    """Bytes of one instance, which is in memory until it is kept; a longer one is aborted. All associations of an
    acceptor share so much memory, 1 GiB at least: who has no room waits."""
    idle_seconds: float = Field(default=60.0, ge=1, le=86400)
    """An association that says nothing for so long is aborted."""
    require_known_peer: bool = True
    """false: anyone may send, which is allowed on a loopback address only (and is the default there)."""
    min_free_bytes: int = Field(default=2_000_000_000, ge=0)
    """Free bytes on the disk of data_dir below which associations are rejected for now (2, 3, 1) and instances refused
    with 0xA700; retention.min_free_bytes makes room before it comes to that."""
    tls: Tls | None = None
    """DICOM TLS; without this section the node's port speaks plain TCP."""
    storage_commitment: bool = False
    """true: commit to instances when a peer asks for it (Storage Commitment Push Model). A scanner may then delete its
    images, and this node is no archive: they are kept until retention.days after the last commitment, which must be at
    least 7 (or 0). false: such requests are refused, what they name is still noted as the list of the study."""

    @model_validator(mode="before")
    @classmethod
    def _open_on_loopback(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and "require_known_peer" not in content:
            return {**content, "require_known_peer": not _is_loopback(str(content.get("host", "127.0.0.1")))}
        return content

    @property
    def is_loopback(self) -> bool:
        """Return whether only this machine can connect."""
        return _is_loopback(self.host)


class Peer(Section):
    """A DICOM application that the node talks to."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_.-]+$")
    """Name in commands, logs and the ledger."""
    ae_title: AE
    """AE title of the peer."""
    host: str = ""
    """Host for our associations with it; may be empty for a peer that only sends."""
    port: int = Field(default=104, ge=1, le=65535)
    """Port for our associations with it."""
    addresses: tuple[Network, ...] = ()
    """Networks that it may call from; empty: any address."""
    tls: bool = False
    """true: our associations with it speak TLS, with the certificate of [node.tls] if there is that section. Its own
    must be signed by an authority of node.tls.ca and name its host, or, signed so, be that of certificate_sha256."""
    certificate_sha256: Annotated[str, BeforeValidator(_sha256)] = ""
    """SHA-256 of its certificate: who calls with this AE title must show it, and so must the peer when it is called."""
    receives_reports: bool = False
    """true: every report is sent to it by C-STORE, or by STOW-RS when stow_url is set."""
    stow_url: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """Base URL of its DICOMweb service for STOW-RS."""
    dicomweb_url: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """Base URL of its DICOMweb service, from which `dicom-node pull` then fetches by QIDO-RS and WADO-RS."""
    storage_commitment: bool = False
    """Ask the peer to commit to each report and its pictures, once they are delivered by C-STORE; `deliveries` of
    `dicom-node study UID` says what became of it."""
    sr_class: SrClass = "comprehensive"
    """SOP class of the report that it gets, if it takes it: comprehensive3d (Comprehensive 3D SR), comprehensive or
    enhanced; else the first of these that it takes."""

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        if self.receives_reports and not (self.host or self.stow_url):
            raise ValueError("receives_reports needs host and port, or stow_url")
        if self.tls and not self.host:
            raise ValueError("tls is for our associations with the peer: it needs host and port")
        if self.storage_commitment and self.stow_url:
            raise ValueError("storage_commitment: not with stow_url, STOW-RS knows no commitment; remove one of them")
        if self.storage_commitment and not self.receives_reports:
            raise ValueError("storage_commitment needs receives_reports: only a report that was sent can be asked for")
        return self


class Study(Section):
    """When a study counts as complete."""

    quiet_seconds: float = Field(default=30.0, gt=0, le=86400)
    """A study is reported once no new instance has arrived for this long."""

    @property
    def quiet(self) -> timedelta:
        """Return the quiet period."""
        return timedelta(seconds=self.quiet_seconds)

    @property
    def draft_after(self) -> timedelta:
        """Return after how long without a new instance a worker that has nothing else to do drafts the report."""
        return self.quiet / 2


class Report(Section):
    """What goes out beside the Structured Report."""

    saliency: bool = True
    """A moving picture of each loop that carried a number, with the networks' attention over it (Multi-frame True Color
    Secondary Capture)."""
    summary: bool = True
    """The report on one page, as a picture (Secondary Capture)."""
    summary_pdf: bool = True
    """The same page as a document (Encapsulated PDF)."""
    character_set: Literal["ISO_IR 192", "ISO_IR 100"] = "ISO_IR 192"
    """Of the report and its pictures: UTF-8, or Latin-1 for a PACS that reads no UTF-8; what Latin-1 cannot write is in
    UTF-8 all the same."""

    @property
    def pictures(self) -> frozenset[PictureKind]:
        """Return the pictures that are made."""
        wanted = {
            PictureKind.SALIENCY: self.saliency,
            PictureKind.SUMMARY: self.summary,
            PictureKind.SUMMARY_PDF: self.summary_pdf,
        }
        return frozenset(kind for kind, is_wanted in wanted.items() if is_wanted)

    @property
    def without_pictures(self) -> Self:
        """Return the same for the Structured Report alone."""
        return self.model_copy(update={"saliency": False, "summary": False, "summary_pdf": False})


class Retention(Section):
    """When images of delivered studies are removed. What was not delivered, reports and the ledger's rows stay."""

    days: int = Field(default=7, ge=0)
    """Delivered studies older than this are purged; 0: never."""
    min_free_bytes: int | None = Field(default=None, ge=0)
    """Free bytes below which delivered studies are purged before their time, the oldest first, so that the node goes on
    receiving on a disk that is too small for so many days; 0: never. Not set: twice node.min_free_bytes, or never where
    days is 0."""
    quarantine_days: int = Field(default=30, ge=0)
    """What was refused and set aside for a person is removed after so many days; 0: never."""


class Database(Section):
    """The ledger."""

    url: SecretStr = SecretStr("")
    """Empty: SQLite in data_dir; postgresql+psycopg://... for more than one machine."""

    @field_validator("url")
    @classmethod
    def _known_engine(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        if url and not url.startswith(("postgresql+psycopg://", "sqlite:///")):
            raise ValueError("use postgresql+psycopg://... (or sqlite:///PATH, or leave it empty)")
        try:
            host = make_url(url).host if url else None
        except (ArgumentError, ValueError):
            raise ValueError(_NOT_ENCODED) from None  # the parser's own words quote what may be the password
        if host is not None and "@" in host:
            raise ValueError(_NOT_ENCODED)
        return value


class Broker(Section):
    """The bell between the node and its workers."""

    url: SecretStr = SecretStr("")
    """Empty: an embedded Valkey server; redis://... for more than one machine."""

    @field_validator("url")
    @classmethod
    def _known_broker(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        if url and not url.startswith(("redis://", "rediss://", "redis+socket://")):
            raise ValueError("use redis://HOST:PORT/DB, or leave it empty for the embedded broker")
        try:
            parts = urlsplit(url)
            is_whole = not parts.fragment and (parts.port is None or parts.port > 0)  # the port is parsed here
        except ValueError:
            is_whole = False
        if not is_whole:
            raise ValueError(_NOT_ENCODED)
        return value


class Objects(Section):
    """The object store (S3, or what speaks like it) for workers on machines that share no folder with the node."""

    url: str = ""
    """s3://BUCKET or s3://BUCKET/PREFIX, of this node alone; empty: workers share node.data_dir with the node."""
    endpoint: str = ""
    """http(s)://HOST:PORT of the object store; empty: Amazon's."""
    ca: Annotated[Path, AfterValidator(_absolute)] | None = None
    """Authorities (PEM) that sign the certificate of an https endpoint; none: those of certifi."""
    key: str = ""
    """Access key; empty: the credentials that the machine has of its own."""
    secret: SecretStr = SecretStr("")
    """Secret of the access key."""
    cache_bytes: int = Field(default=20 << 30, ge=0)
    """What a worker keeps in data_dir/fetched of what it fetched; what was not used for longest goes first, never what
    is in use."""

    @field_validator("url")
    @classmethod
    def _bucket(cls, value: str) -> str:
        if value and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w.-]+)*/?", value, re.ASCII):
            raise ValueError("use s3://BUCKET or s3://BUCKET/PREFIX, or leave it empty")
        return value

    @field_validator("endpoint")
    @classmethod
    def _http(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            is_plain = bool(parts.hostname) and not (parts.query or parts.fragment or parts.username)
            is_plain = is_plain and (parts.port is None or parts.port > 0)  # the port is parsed here
        except ValueError:
            is_plain = False
        if value and not (is_plain and parts.scheme in ("http", "https")):
            raise ValueError("use http://HOST:PORT or https://HOST:PORT, or leave it empty")
        return value

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if bool(self.key) != bool(self.secret.get_secret_value()):
            raise ValueError("key and secret belong together: set both or none")
        unused = [name for name in ("endpoint", "key") if getattr(self, name)]
        if unused and not self.url:
            raise ValueError(f"{unused[0]}: has an effect only with url")
        if self.ca is not None and urlsplit(self.endpoint).scheme != "https":
            raise ValueError("ca: has an effect only with an https endpoint")
        return self


class EnsembleSection(Section):
    """The networks that the workers load."""

    path: str = ""
    """Folder of the ensemble; empty: the phantom ensemble that the package ships."""


class Worker(Section):
    """How a worker computes."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU that computes in it, else fp32. bf16 on a CPU is for one with instructions for it: others
    emulate it, many times slower."""
    max_batch: int = Field(default=8, ge=1, le=256)
    """Loops that one worker claims at a time."""
    loop_seconds: float = Field(default=120.0, gt=0, le=3600)
    """A loop that takes longer is given up: its lease is not renewed any more."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Where a worker that Celery started serves its metrics (`/metrics`); 0: nowhere. What the worker of
    `dicom-node serve` counts is on the node's page."""
    metrics_host: str = "127.0.0.1"
    """Address for it; with web.token, the token is asked for, and beyond loopback there must be one."""


class Web(Section):
    """The page and the JSON interface."""

    host: str = "127.0.0.1"
    """Address of the page."""
    port: int = Field(default=8042, ge=0, le=65535)
    """Port of the page; 0 takes a free one."""
    token: SecretStr = SecretStr("")
    """Bearer token of scripts, and what people log in with: at least 16 characters; needed when host is not loopback,
    and with names or proxies."""
    names: tuple[HostName, ...] = ()
    """Names by which browsers reach the page, such as a reverse proxy's; a request for another is refused. Empty: any,
    but on a loopback address only this machine's own."""
    proxies: tuple[Network, ...] = ()
    """Networks of reverse proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    certificate: Annotated[Path, AfterValidator(_absolute)] | None = None
    """PEM file of the certificate and those that lead to it; with key: the page is served over HTTPS alone."""
    key: Annotated[Path, AfterValidator(_absolute)] | None = None
    """PEM file of its private key, not encrypted."""

    @property
    def is_loopback(self) -> bool:
        """Return whether only this machine can connect."""
        return _is_loopback(self.host)

    def is_own_name(self, host: str) -> bool:
        """Return whether the page may be asked for under the name or address `host`."""
        return (not self.names and not self.is_loopback) or _is_loopback(host) or host.lower() in self.names

    @field_validator("token")
    @classmethod
    def _hard_to_guess(cls, value: SecretStr) -> SecretStr:
        token = value.get_secret_value()
        if token and (not _TOKEN.fullmatch(token) or len(set(token)) < _TOKEN_VARIETY):
            raise ValueError(
                "at least 16 characters of ASCII without spaces, hard to guess; "
                "python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
            )
        return value

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: set both or none")
        return self


class AuditSection(Section):
    """The audit trail (PS3.15 A.5)."""

    folder: str = ""
    """Folder of the trail, a file a day; empty: `audit` in node.data_dir. Nothing is ever removed from it."""
    patient_id: bool = True
    """Patient IDs stand in the messages, as PS3.15 A.5.3 wants it; false: a mark in their place."""
    site: str = ""
    """AuditEnterpriseSiteID: what the hospital calls the place where the node is; empty: none."""
    syslog: str = ""
    """Where the messages go as well: tls://HOST:6514 (RFC 5425) or udp://HOST:514 (RFC 5426); empty: nowhere."""
    ca: str = ""
    """PEM file of whom the certificate of a TLS receiver must come from; empty: whom this machine trusts."""
    certificate: str = ""
    """PEM file of the certificate that the node shows to a TLS receiver; empty: none."""
    key: str = ""
    """PEM file of its private key; empty: it is in the file of the certificate."""

    @field_validator("syslog")
    @classmethod
    def _known_receiver(cls, value: str) -> str:
        if value:
            parse_receiver(value)
        return value

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        unused = [name for name in ("ca", "certificate", "key") if getattr(self, name)]
        if unused and not self.syslog.startswith("tls://"):
            raise ValueError(f"{unused[0]}: has an effect only with syslog = tls://...")
        if self.key and not self.certificate:
            raise ValueError("key: needs certificate")
        return self


class Settings(BaseSettings):
    """The whole configuration; code receives its own section, never this."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )

    node: Node = Node()
    """Where the node listens and what it keeps."""
    peers: tuple[Peer, ...] = ()
    """The DICOM applications that the node talks to."""
    study: Study = Study()
    """When a study counts as complete."""
    report: Report = Report()
    """What goes out beside the report."""
    retention: Retention = Retention()
    """When images are removed."""
    database: Database = Database()
    """The ledger."""
    broker: Broker = Broker()
    """The bell."""
    objects: Objects = Objects()
    """The object store, for workers that share no folder with the node."""
    ensemble: EnsembleSection = EnsembleSection()
    """The networks."""
    worker: Worker = Worker()
    """How a worker computes."""
    web: Web = Web()
    """The page."""
    audit: AuditSection = AuditSection()
    """The audit trail (PS3.15 A.5)."""
    _origins: Origins = PrivateAttr(default=Origins())

    @property
    def origins(self) -> Origins:
        """Return where each value comes from."""
        return self._origins

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file, as the contract says."""
        return (env_settings, init_settings)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.node.require_known_peer and not self.node.is_loopback:
            raise ValueError("node.require_known_peer: may be false only when node.host is a loopback address")
        if self.node.tls is None or self.node.tls.ca is None:
            for peer in self.peers:
                if peer.certificate_sha256 and not peer.tls:
                    raise ValueError(f"peers: certificate_sha256 of {peer.name} needs node.tls.ca, or tls = true")
        if self.node.storage_commitment and 0 < self.retention.days < MIN_COMMITTED_DAYS:
            raise ValueError(
                f"node.storage_commitment: retention.days must be 0 (never) or at least {MIN_COMMITTED_DAYS}, "
                "for scanners delete what the node commits to"
            )
        is_reached = bool(self.web.names or self.web.proxies) or not self.web.is_loopback
        if is_reached and not self.web.token.get_secret_value():
            raise ValueError(
                "web.token: needed when web.host is no loopback address, and with web.names or web.proxies"
            )
        worker = self.worker
        if worker.metrics_port and not _is_loopback(worker.metrics_host) and not self.web.token.get_secret_value():
            raise ValueError("web.token: needed when worker.metrics_host is no loopback address")
        room = self.retention.min_free_bytes
        if room and room <= self.node.min_free_bytes:
            raise ValueError("retention.min_free_bytes: must be more than node.min_free_bytes, or 0")
        names = [peer.name for peer in self.peers]
        if len(set(names)) != len(names):
            raise ValueError("peers: two peers have the same name")
        return self

    @property
    def database_url(self) -> str:
        """Return the SQLAlchemy URL of the ledger."""
        return self.database.url.get_secret_value() or f"sqlite:///{self.node.data_dir / 'ledger.sqlite'}"

    @property
    def room(self) -> int:
        """Return the free bytes that retention makes; 0: none."""
        if self.retention.min_free_bytes is not None:
            return self.retention.min_free_bytes
        return 2 * self.node.min_free_bytes if self.retention.days else 0

    def peer(self, name: str) -> Peer:
        """Return the peer of this name.

        Raises:
            UnknownPeer: there is none.
        """
        for peer in self.peers:
            if peer.name == name:
                return peer
        known = ", ".join(peer.name for peer in self.peers) or "none"
        raise UnknownPeer(f"no peer named {name!r} in the configuration (known: {known})")


def load_settings(path: Path | None = None) -> Settings:
    """Return the configuration of `path` (or of ECHO_NODE_CONFIG, or the defaults), overridden by the environment.

    Raises:
        ConfigurationError: every mistake, one a line, each with its key.
    """
    if path is None and os.environ.get(CONFIG_VARIABLE):
        path = Path(os.environ[CONFIG_VARIABLE])
    return settings_from(_read(path) if path is not None else {})


def settings_from(content: Mapping[str, Any]) -> Settings:
    """Return the configuration that `content` (a parsed TOML file) and the environment make.

    Raises:
        ConfigurationError: every mistake, one a line, each with its key.
    """
    _refuse_unknown_variables()
    try:
        settings = Settings(**content)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_line(item) for item in error.errors())) from error
    except SettingsError as error:  # a whole section or list as one variable, and no JSON
        raise ConfigurationError(f"environment: {error}") from error
    settings._origins = origins_of(content, os.environ, ENV_PREFIX)
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from error


def _refuse_unknown_variables() -> None:
    # pydantic-settings ignores variables of unknown sections; a setting without effect is an error here.
    sections = set(Settings.model_fields)
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            section = name[len(ENV_PREFIX) :].split("__", 1)[0].lower()
            if section not in sections:
                raise ConfigurationError(f"{name}: no section {section!r} in the configuration")


def _line(item: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
