"""The configuration: one TOML file, every key also as ECHO_NODE__SECTION__KEY, checked whole at the start."""

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from dicom_node.errors import ConfigurationError, InvalidAETitle, UnknownPeer
from dicom_node.identity import parse_ae_title
from dicom_node.report.findings import PictureKind
from dicom_node.report.sr_class import SrClass

ENV_PREFIX = "ECHO_NODE__"
CONFIG_VARIABLE = "ECHO_NODE_CONFIG"
"""Environment variable with the path of the configuration file."""


def _ae_title(value: object) -> str:
    try:
        return parse_ae_title(value)
    except InvalidAETitle as error:  # pydantic turns ValueError alone into a message with the key
        raise ValueError(str(error)) from error


AE = Annotated[str, BeforeValidator(_ae_title)]


def _network(value: IPv4Network | IPv6Network | str) -> IPv4Network | IPv6Network:
    return ipaddress.ip_network(value, strict=False)


Network = Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


class Section(BaseModel):
    """One closed part of the configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


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
    require_known_peer: bool = True
    """false: anyone may send, which is allowed on a loopback address only (and is the default there)."""
    min_free_bytes: int = Field(default=2_000_000_000, ge=0)
    """Free bytes on the disk of data_dir below which instances are refused with 0xA700."""

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
    receives_reports: bool = False
    """true: every report is sent to it by C-STORE, or by STOW-RS when stow_url is set."""
    stow_url: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """Base URL of its DICOMweb service for STOW-RS."""
    storage_commitment: bool = False
    """Ask the peer to commit to each report; not in this version."""
    sr_class: SrClass = "comprehensive"
    """SOP class of the report that it gets, if it takes it: comprehensive3d (Comprehensive 3D SR), comprehensive or
    enhanced; else the first of these that it takes."""

    @field_validator("storage_commitment")
    @classmethod
    def _no_commitment_yet(cls, value: bool) -> bool:
        if value:
            raise ValueError("storage commitment is not in this version: remove the key")
        return value

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        if self.receives_reports and not (self.host or self.stow_url):
            raise ValueError("receives_reports needs host and port, or stow_url")
        return self


class Study(Section):
    """When a study counts as complete."""

    quiet_seconds: float = Field(default=30.0, gt=0, le=86400)
    """A study is reported once no new instance has arrived for this long."""

    @property
    def quiet(self) -> timedelta:
        """Return the quiet period."""
        return timedelta(seconds=self.quiet_seconds)


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
    """When images of delivered studies are removed."""

    days: int = Field(default=7, ge=0)
    """Delivered studies older than this are purged; 0: never."""


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
        return value


class EnsembleSection(Section):
    """The networks that the workers load."""

    path: str = ""
    """Folder of the ensemble; empty: the phantom ensemble that the package ships."""


class Worker(Section):
    """How a worker computes."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 where it is faster, else fp32."""
    max_batch: int = Field(default=8, ge=1, le=256)
    """Loops that one worker claims at a time."""
    loop_seconds: float = Field(default=120.0, gt=0, le=3600)
    """A loop that takes longer is given up: its lease is not renewed any more."""


class Web(Section):
    """The page and the JSON interface."""

    host: str = "127.0.0.1"
    """Address of the page."""
    port: int = Field(default=8042, ge=0, le=65535)
    """Port of the page; 0 takes a free one."""
    token: SecretStr = SecretStr("")
    """Bearer token; needed when host is not loopback."""


class Settings(BaseSettings):
    """The whole configuration; code receives its own section, never this."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
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
    ensemble: EnsembleSection = EnsembleSection()
    """The networks."""
    worker: Worker = Worker()
    """How a worker computes."""
    web: Web = Web()
    """The page."""

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
        if not _is_loopback(self.web.host) and not self.web.token.get_secret_value():
            raise ValueError("web.token: needed when web.host is not a loopback address")
        names = [peer.name for peer in self.peers]
        if len(set(names)) != len(names):
            raise ValueError("peers: two peers have the same name")
        return self

    @property
    def database_url(self) -> str:
        """Return the SQLAlchemy URL of the ledger."""
        return self.database.url.get_secret_value() or f"sqlite:///{self.node.data_dir / 'ledger.sqlite'}"

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
    if "tls" in content.get("node", {}):
        raise ConfigurationError("node.tls: DICOM TLS is not in this version; remove the section")
    try:
        return Settings(**content)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_line(item) for item in error.errors())) from error


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
