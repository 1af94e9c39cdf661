"""Custody: what a peer asks the node to commit to is compared with what lies on the disk (PS3.4 J.3.3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from dicom_node.clock import Clock
from dicom_node.commitment import FailureReason, Reference, Report, Request
from dicom_node.errors import StoreError
from dicom_node.identity import UID
from dicom_node.ledger import commitments
from dicom_node.ledger.commitments import HeldInstance
from dicom_node.ledger.engine import Sessions, lock_name
from dicom_node.store import InstanceStore

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the node can say of a request."""

    report: Report
    study_ids: Sequence[int]
    """Of the studies that the instances belong to."""


def judge(
    sessions: Sessions,
    store: InstanceStore,
    request: Request,
    clock: Clock,
    step: Callable[[], object] = lambda: None,
) -> Verdict:
    """Look at each instance of a request, as it lies on the disk; from here on retention leaves it alone.

    `step` is called before each: there may be many, and large ones.
    """
    held = commitments.hold(sessions, [one.sop_instance_uid for one in request.references], clock)
    failed = {}
    for one in request.references:
        step()
        reason = _flaw(sessions, store, one, held.get(one.sop_instance_uid))
        if reason is not None:
            failed[one] = int(reason)
            log.warning("instance_not_committed", instance=one.sop_instance_uid, reason=reason.name.lower())
    committed = tuple(one for one in request.references if one not in failed)
    report = Report(transaction_uid=request.transaction_uid, committed=committed, failed=failed)
    return Verdict(report=report, study_ids=sorted({one.study_id for one in held.values()}))


def _flaw(
    sessions: Sessions, store: InstanceStore, wanted: Reference, held: HeldInstance | None
) -> FailureReason | None:
    """Return why an instance is not committed to."""
    if held is None:
        return FailureReason.NO_SUCH_INSTANCE
    if held.sop_class_uid != wanted.sop_class_uid:
        return FailureReason.CLASS_INSTANCE_CONFLICT
    if held.is_purged:  # its file may be there still, and go at any moment
        return FailureReason.NO_SUCH_INSTANCE
    try:
        if store.is_intact(held.path, held.sha256, held.num_bytes):
            return None
        log.error("instance_damaged", study=held.study_id, instance=wanted.sop_instance_uid, path=held.path)
        _set_aside(sessions, store, held, wanted.sop_instance_uid)
    except StoreError as error:  # the disk does not say: no reason to move anything
        log.warning("instance_unreadable", study=held.study_id, reason=str(error))
    return FailureReason.PROCESSING_FAILURE


def _set_aside(sessions: Sessions, store: InstanceStore, held: HeldInstance, sop_uid: UID) -> None:
    """Move the damaged file away: sent again, the instance is then written again, not taken for known.

    Raises:
        StoreError: it cannot be read or moved.
    """
    with sessions.begin() as session:
        lock_name(session, sop_uid)  # the same instance may just be coming again
        if not store.is_intact(held.path, held.sha256, held.num_bytes):
            store.set_aside(held.path)
