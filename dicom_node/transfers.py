"""What each association brings, told to the audit trail: one message a study when it ends (PS3.15 A.5.3.7).

The first instance of a study is told at once (A.5.3.3): a process that is killed leaves that behind, and no completion.
"""

import threading
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import dcmread

from dicom_node.audit import Action, Application, Audit, Outcome, StudyContent, transfer_begun, transferred
from dicom_node.identity import UID
from dicom_node.intake import IntakeKind, Received
from dicom_node.report.header import DAMAGE

ACTIONS = {
    IntakeKind.KEPT: Action.CREATE,
    IntakeKind.VERSION: Action.UPDATE,
    IntakeKind.IDENTICAL: Action.READ,
    IntakeKind.TAKEN_UP: Action.READ,
    IntakeKind.OWN_REPORT: Action.READ,
}

_Part = tuple[UID, str, Action, Outcome]
"""What one message may hold together (A.5.2, A.5.3.7): study, Patient ID, action, outcome."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tally:
    sender: Application
    parts: dict[_Part, Counter[str]] = field(default_factory=dict)
    """Instances by SOP class."""


class Transfers:
    """Counts what the associations of this process bring; their threads may share it."""

    def __init__(self, node: Application, audit: Audit, *, pulled: bool = False) -> None:
        """Tell `audit`; `pulled`: the node asked for what comes."""
        self._node = node
        self._pulled = pulled
        self._audit = audit
        self._lock = threading.Lock()
        self._tallies: dict[Hashable, _Tally] = {}

    def note(self, association: Hashable, address: str, received: Received, kind: IntakeKind | None) -> None:
        """Count an instance that an association brought; `kind` None: it could not be kept."""
        action = Action.CREATE if kind is None else ACTIONS[kind]
        outcome = Outcome.MINOR_FAILURE if kind is None else Outcome.SUCCESS
        part = (received.study_uid, received.patient_id, action, outcome)
        with self._lock:
            sender = Application(ae_title=received.calling_ae, address=address)
            tally = self._tallies.setdefault(association, _Tally(sender=sender))
            is_new = not any(study_uid == received.study_uid for study_uid, *_ in tally.parts)
            tally.parts.setdefault(part, Counter())[received.sop_class_uid] += 1
        if is_new:
            content = StudyContent(study_uid=received.study_uid, patient_id=received.patient_id)
            self._audit(transfer_begun(sender, self._node, content, pulled=self._pulled))

    def settle(self, is_running: Callable[[Any], bool]) -> None:
        """Tell what was brought by every association that is not running any more."""
        with self._lock:
            ended = [self._tallies.pop(one) for one in list(self._tallies) if not is_running(one)]
        for tally in ended:
            for part, num_instances in tally.parts.items():
                study_uid, patient_id, action, outcome = part
                content = StudyContent(study_uid=study_uid, patient_id=patient_id, num_instances=num_instances)
                self._audit(transferred(tally.sender, self._node, content, action, outcome, pulled=self._pulled))


def patient_id_of(path: Path) -> str:
    """Return the Patient ID in a file of the store; empty: it has none, or cannot be read."""
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(header.get("PatientID") or "").strip()
    except (*DAMAGE, OSError):
        return ""
