"""The tables of the ledger and the closed sets of their states."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_IS_CURRENT = text("is_current")
_HAS_IMAGES = text("purged_at IS NULL")
_IS_UNSHARED = text("shared_at IS NULL")


class StudyState(StrEnum):
    """Where a study stands (the contract's words)."""

    RECEIVING = "receiving"
    """Instances arrive; loops are analysed as they come."""
    ANALYSING = "analysing"
    """Complete by the quiet period; the rest of its loops is being analysed."""
    REPORTING = "reporting"
    """One worker holds the lease to write the report."""
    DELIVERING = "delivering"
    """The report is safe; its deliveries are in the outbox."""
    DELIVERED = "delivered"
    """Every destination has the newest report, or there is none."""
    FAILED = "failed"
    """A person must look; `error` says why; `dicom-node retry` takes it up."""


class InstanceState(StrEnum):
    """What the workers did with an instance."""

    PENDING = "pending"
    """Kept; not yet looked at."""
    LEASED = "leased"
    """A worker holds it until `lease_until`."""
    ANALYSED = "analysed"
    """It has a result of at least one ensemble."""
    NOT_ANALYSED = "not_analysed"
    """It is no loop that can carry a number; `reason` says why."""
    FAILED = "failed"
    """Its attempts ended without an answer; `reason` says so, the rest of the study goes on."""


class DeliveryState(StrEnum):
    """Where a report's way to one peer stands."""

    WAITING = "waiting"
    """Due at `next_attempt_at`."""
    SENDING = "sending"
    """Leased to the delivery of this peer until `lease_until`."""
    DELIVERED = "delivered"
    """The peer answered Success or Warning."""
    DEAD = "dead"
    """Refused for good or out of attempts: a dead letter."""
    SUPERSEDED = "superseded"
    """A newer report of the study took its place before it could be sent."""


OWED = (DeliveryState.WAITING, DeliveryState.SENDING)
"""A peer waits for these."""


class CommitmentState(StrEnum):
    """Where the answer to a peer that asked us to commit stands."""

    WAITING = "waiting"
    """To be reported at `next_attempt_at`."""
    REPORTING = "reporting"
    """Leased to whoever reports it, until `lease_until`."""
    REPORTED = "reported"
    """The peer has heard which instances are committed to, and which are not."""
    GIVEN_UP = "given_up"
    """It could not be told for too long: it keeps its images."""


class PledgeState(StrEnum):
    """Whether a peer has committed to a report of ours (the words of `deliveries[].commitment`)."""

    WANTED = "wanted"
    """To be asked for at `next_at`."""
    REQUESTED = "requested"
    """Asked for; asked again at `next_at` if the peer does not answer."""
    COMMITTED = "committed"
    """The peer has it for good."""
    FAILED = "failed"
    """The peer says that it has not got the report."""
    UNANSWERED = "unanswered"
    """It did not answer for too long, or does not commit to anything."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime on every engine (SQLite forgets time zones)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return UTC; a naive datetime is our own mistake."""
        if value is None:
            return None
        assert value.tzinfo is not None, "naive datetime in the ledger"
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return an aware UTC datetime."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(DeclarativeBase):
    """Base of the ledger's tables."""

    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012


class Study(Table):
    """One study by its Study Instance UID."""

    __tablename__ = "study"
    __table_args__ = (
        Index("study_by_state", "state", "last_received_at"),
        # In the long run nearly all studies are delivered and purged: retention looks for those that are not.
        Index(
            "study_by_delivery",
            "state",
            "delivered_at",
            sqlite_where=_HAS_IMAGES,
            postgresql_where=_HAS_IMAGES,
        ),
        Index("study_by_arrival", "last_received_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    state: Mapped[str] = mapped_column(String(16))
    revision: Mapped[int] = mapped_column(default=1)
    """Grows when an instance arrives after a report was begun, or a person lets it be analysed again; the report's UID
    depends on it."""
    received_at: Mapped[datetime]
    last_received_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]
    """When the quiet period ended; None while instances arrive."""
    delivered_at: Mapped[datetime | None]
    """When the state became delivered; retention counts from here."""
    rung_at: Mapped[datetime | None]
    """When a worker was last called for it."""
    lease_token: Mapped[str | None] = mapped_column(String(64))
    """Fence of the worker that writes the report."""
    lease_until: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    """Report attempts of this revision, counted at the claim."""
    error: Mapped[str | None] = mapped_column(Text)
    purged_at: Mapped[datetime | None]
    """When retention removed its images, or began to; None again once one arrives."""
    manifest_at: Mapped[datetime | None]
    """When a peer named exactly the instances that are here; void once another instance comes."""
    committed_at: Mapped[datetime | None]
    """When a peer was last promised to keep an instance of it; retention counts from here too."""


class Instance(Table):
    """One version of one SOP instance, as sent; one version of each is current."""

    __tablename__ = "instance"
    __table_args__ = (
        UniqueConstraint("sop_instance_uid", "sha256"),
        Index("instance_work", "study_id", "state"),
        Index("instance_leases", "state", "lease_until"),
        Index("instance_tokens", "lease_token"),
        Index(
            "instance_current",
            "sop_instance_uid",
            unique=True,
            sqlite_where=_IS_CURRENT,
            postgresql_where=_IS_CURRENT,
        ),
        # Looked for ten times a second where there is an object store; in the long run nearly all are in it.
        Index("instance_unshared", "state", "id", sqlite_where=_IS_UNSHARED, postgresql_where=_IS_UNSHARED),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"))
    sop_instance_uid: Mapped[str] = mapped_column(String(64), index=True)
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(String(300))
    """Relative to data_dir; empty: retention removed the file, and later the study went on."""
    sha256: Mapped[str] = mapped_column(String(64))
    """Of the data set's bytes as sent, without group 2."""
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    num_frames: Mapped[int | None]
    """Number of Frames of the header, None where it has none."""
    calling_ae: Mapped[str] = mapped_column(String(16))
    received_at: Mapped[datetime]
    is_current: Mapped[bool] = mapped_column(default=True)
    """False once another version of the same SOP Instance UID took its place."""
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=0)
    lease_token: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None]
    is_loop: Mapped[bool] = mapped_column(default=False)
    """More than one frame by its header."""
    reason_code: Mapped[str | None] = mapped_column(String(40))
    reason: Mapped[str | None] = mapped_column(Text)
    """Why it was not analysed, in words a cardiologist understands."""
    shared_at: Mapped[datetime | None]
    """When its file was in the object store, or had been removed before it came there; None: it is to be put there, if
    there is an object store."""


class Result(Table):
    """What one ensemble said of one loop; kept for ever, changed when a person lets the study be analysed again."""

    __tablename__ = "result"
    __table_args__ = (UniqueConstraint("instance_id", "ensemble_digest"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    instance_id: Mapped[int] = mapped_column(ForeignKey("instance.id", ondelete="CASCADE"))
    ensemble_digest: Mapped[str] = mapped_column(String(64))
    outputs: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Report(Table):
    """One SR that was written for one revision of one study."""

    __tablename__ = "report"
    __table_args__ = (UniqueConstraint("study_id", "revision", "ensemble_digest"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"), index=True)
    revision: Mapped[int]
    ensemble_digest: Mapped[str] = mapped_column(String(64))
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(String(300))
    supersedes: Mapped[str | None] = mapped_column(String(64))
    """SOP Instance UID of the predecessor."""
    findings: Mapped[dict[str, Any]]
    """What the report says, as JSON: the results of `dicom-node study --json`."""
    created_at: Mapped[datetime]


class Draft(Table):
    """A report that was made, or begun, while its study was still receiving; gone once there is the report."""

    __tablename__ = "draft"

    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"), primary_key=True)
    token: Mapped[str] = mapped_column(String(64))
    """Fence of who drafts."""
    substance: Mapped[str] = mapped_column(String(64))
    """SHA-256 of all that it is made of."""
    report: Mapped[dict[str, Any] | None]
    """Its files; None: it is being made, or its worker was lost with it."""
    findings: Mapped[dict[str, Any] | None]
    """What it says, as JSON."""


class Picture(Table):
    """One picture that goes out before its report; retention removes the file, the row stays."""

    __tablename__ = "picture"

    id: Mapped[int] = mapped_column(primary_key=True)
    """Ascending in the order in which the pictures of a report go out."""
    report_id: Mapped[int] = mapped_column(ForeignKey("report.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    sop_instance_uid: Mapped[str] = mapped_column(String(64), unique=True)
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    path: Mapped[str] = mapped_column(String(300))
    """Relative to data_dir; empty: retention removed the file, and later the study went on."""


class Delivery(Table):
    """The outbox: one row a report and destination."""

    __tablename__ = "delivery"
    __table_args__ = (
        UniqueConstraint("report_id", "peer"),
        Index("delivery_due", "peer", "state", "next_attempt_at"),
        Index("delivery_by_state", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    report_id: Mapped[int] = mapped_column(ForeignKey("report.id", ondelete="CASCADE"), index=True)
    peer: Mapped[str] = mapped_column(String(64))
    """Name of the peer in the configuration."""
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime]
    lease_token: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    delivered_at: Mapped[datetime | None]


class Commitment(Table):
    """A peer's request that the node commit to instances (PS3.4 J.3.2), and its answer."""

    __tablename__ = "commitment"
    __table_args__ = (
        UniqueConstraint("calling_ae", "transaction_uid"),
        Index("commitment_due", "calling_ae", "state", "next_attempt_at"),
        Index("commitment_by_age", "state", "created_at"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    calling_ae: Mapped[str] = mapped_column(String(16))
    transaction_uid: Mapped[str] = mapped_column(String(64))
    instances: Mapped[list[Any]]
    """[SOP Class UID, SOP Instance UID] of each, in the order of the request."""
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[datetime]
    lease_token: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None]
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    """When it was asked for, or asked for again."""
    reported_at: Mapped[datetime | None]


class Pledge(Table):
    """What a peer is asked to commit to: a report of ours with its pictures, as they were delivered."""

    __tablename__ = "pledge"
    __table_args__ = (Index("pledge_due", "state", "next_at"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    delivery_id: Mapped[int] = mapped_column(ForeignKey("delivery.id", ondelete="CASCADE"), unique=True)
    instances: Mapped[list[Any]]
    """[SOP Class UID, SOP Instance UID] of each, as the peer has them; the report is the last."""
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    """How often the peer said that it has not got the report; forgotten when the delivery is a dead letter."""
    next_at: Mapped[datetime]
    error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    """When the report was delivered, or delivered again."""


class PledgeTransaction(Table):
    """One time that a peer was asked; it may answer an earlier one after it was asked again."""

    __tablename__ = "pledge_transaction"

    transaction_uid: Mapped[str] = mapped_column(String(64), primary_key=True)
    pledge_id: Mapped[int] = mapped_column(ForeignKey("pledge.id", ondelete="CASCADE"), index=True)
    asked_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]


class History(Table):
    """What happened to a study, for people."""

    __tablename__ = "history"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id", ondelete="CASCADE"), index=True)
    at: Mapped[datetime]
    event: Mapped[str] = mapped_column(String(40))
    detail: Mapped[str] = mapped_column(Text, default="")
