"""What a person may do with a study over the network."""

from collections.abc import Callable
from http import HTTPStatus

import structlog

from dicom_node.clock import utc_now
from dicom_node.identity import UID
from dicom_node.ledger import studies as ledger_studies
from dicom_node.ledger.dead_letters import deliver_again
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import StudyState
from dicom_node.web.answers import Problem, known_uid, refusals

log = structlog.get_logger(__name__)


class StudyActions:
    """Take up, analyse again, deliver again."""

    def __init__(self, sessions: Sessions, ring: Callable[[int], None]) -> None:
        self._sessions = sessions
        self._ring = ring

    def retry(self, uid: str) -> UID:
        """Take up a failed study where it stopped and return its UID.

        Raises:
            Problem: the ledger does not hold it, it has not failed, or its images are gone.
        """
        study_uid = known_uid(uid)
        with refusals():
            state = ledger_studies.retry(self._sessions, study_uid, utc_now)
            study_id = ledger_studies.study_id_of(self._sessions, study_uid)
        if state is None:
            raise Problem(HTTPStatus.CONFLICT, f"study {study_uid} has not failed: nothing to retry")
        log.info("study_retried", study=study_id, state=state)
        if state is StudyState.ANALYSING:
            self._ring(study_id)
        return study_uid

    def reprocess(self, uid: str) -> UID:
        """Let a study be analysed again, in its next revision, and return its UID.

        Raises:
            Problem: the ledger does not hold it, it is still being analysed, or its images are gone.
        """
        study_uid = known_uid(uid)
        with refusals():
            ledger_studies.reprocess(self._sessions, study_uid, utc_now)
            study_id = ledger_studies.study_id_of(self._sessions, study_uid)
        log.info("study_reprocessed", study=study_id)
        self._ring(study_id)
        return study_uid

    def deliver_again(self, uid: str, report_uid: str, peer: str) -> UID:
        """Send a report again that did not reach a peer, and return the UID of its study.

        Raises:
            Problem: there is no such study, or the report is no dead letter of this peer.
        """
        study_uid = known_uid(uid)
        with refusals():
            is_again = deliver_again(self._sessions, study_uid, known_uid(report_uid), peer, utc_now)
        if not is_again:
            raise Problem(HTTPStatus.CONFLICT, "this report is no dead letter of this peer: nothing to deliver again")
        log.info("delivery_retried", study_uid=study_uid, report=report_uid)
        return study_uid
