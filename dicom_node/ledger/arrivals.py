"""What nearly every instance that arrives needs of the ledger: one question, and two statements that keep it.

Nearly every instance is new, and its study is still being received. All else is the intake's to decide.
"""

from collections.abc import Mapping

from sqlalchemy import Engine, PoolProxiedConnection, bindparam, case, insert, select, union_all, update

from dicom_node.identity import UID
from dicom_node.ledger.prepared import Prepared
from dicom_node.ledger.schema import Instance, InstanceState, Picture, Report, Study, StudyState

_INSTANCE, _STUDY = Instance.metadata.tables["instance"], Study.metadata.tables["study"]

_MENTION = union_all(
    *(
        select(table.c.sop_instance_uid).where(table.c.sop_instance_uid == bindparam("sop_instance_uid"))
        for table in (_INSTANCE, Report.metadata.tables["report"], Picture.metadata.tables["picture"])
    )
).limit(1)

_GIVEN = (
    "sop_instance_uid",
    "sop_class_uid",
    "series_instance_uid",
    "transfer_syntax_uid",
    "path",
    "sha256",
    "num_bytes",
    "num_frames",
    "calling_ae",
    "received_at",
    "is_loop",
)
"""Columns of an instance that come with it."""

_ALWAYS: Mapping[str, object] = {"is_current": True, "state": InstanceState.PENDING.value, "attempts": 0}

# As it is read the study is locked, so that its state stays: the row of an instance comes after its study's lock.
_ADD = (
    insert(_INSTANCE)
    .from_select(
        ["study_id", *_GIVEN, *_ALWAYS],
        select(
            _STUDY.c.id,
            *(bindparam(name, type_=_INSTANCE.c[name].type) for name in _GIVEN),
            *(bindparam(name, value, type_=_INSTANCE.c[name].type) for name, value in _ALWAYS.items()),
        )
        .where(
            _STUDY.c.study_instance_uid == bindparam("study_instance_uid"),
            _STUDY.c.state == StudyState.RECEIVING.value,
            _STUDY.c.purged_at.is_(None),
            ~_MENTION.exists(),
        )
        .with_for_update(key_share=True, of=_STUDY),
        include_defaults=False,
    )
    .returning(_INSTANCE.c.study_id)
)

_NOW = bindparam("now", type_=_STUDY.c.last_received_at.type)
_LATEST = case((_STUDY.c.last_received_at > _NOW, _STUDY.c.last_received_at), else_=_NOW)  # a clock may have been ahead
_TOUCH = update(_STUDY).where(_STUDY.c.id == bindparam("study")).values(last_received_at=_LATEST, rung_at=_NOW)


class Arrivals:
    """The statements, prepared for one engine."""

    def __init__(self, engine: Engine) -> None:
        self._mention = Prepared(_MENTION, engine)
        self._add = Prepared(_ADD, engine)
        self._touch = Prepared(_TOUCH, engine)

    def is_mentioned(self, connection: PoolProxiedConnection, sop_instance_uid: UID) -> bool:
        """Return whether the ledger has anything by this UID: an instance, or what the node wrote."""
        return self._mention.first(connection, {"sop_instance_uid": sop_instance_uid}) is not None

    def add(self, connection: PoolProxiedConnection, study_uid: UID, instance: Mapping[str, object]) -> int | None:
        """Add a row to a study that is being received; the caller holds the name of the instance.

        Returns:
            The study's id; None: nothing changed, for the UID is mentioned already, or the study is new, further on,
            or without its images.
        """
        added = self._add.first(connection, {"study_instance_uid": study_uid, **instance})
        return None if added is None else int(added[0])

    def touch(self, connection: PoolProxiedConnection, study_id: int, now: object) -> None:
        """Date the study's last arrival, and that a worker is called for it, to now."""
        self._touch.first(connection, {"study": study_id, "now": now})
