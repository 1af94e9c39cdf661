"""A scanner without a network: instances go straight into the intake."""

import itertools

from dicom_node.clock import Clock
from dicom_node.identity import UID
from dicom_node.intake import Intake, Received
from dicom_node.ledger.engine import Sessions
from dicom_node.store import InstanceStore

STUDY = UID("1.2.826.0.1.1")
US_MULTIFRAME = UID("1.2.840.10008.5.1.4.1.1.3.1")
EXPLICIT_LITTLE = UID("1.2.840.10008.1.2.1")


class Arrivals:
    """Sends instances to an intake and remembers what it rang for."""

    def __init__(self, sessions: Sessions, store: InstanceStore, clock: Clock) -> None:
        self.rung: list[int] = []
        self.intake = Intake(sessions, store, clock, self.rung.append)
        self._numbers = itertools.count(1)

    def send(
        self,
        study_uid: UID = STUDY,
        sop_uid: UID | None = None,
        dataset: bytes | None = None,
        num_frames: int | None = 30,
    ) -> int:
        """Receive one instance, new unless told otherwise, and return its study's id."""
        return self.intake.receive(instance(study_uid, sop_uid or self.new_uid(), dataset, num_frames)).study_id

    def new_uid(self) -> UID:
        """Return a SOP Instance UID that was not used."""
        return UID(f"1.2.826.0.1.9.{next(self._numbers)}")


def instance(study_uid: UID, sop_uid: UID, dataset: bytes | None = None, num_frames: int | None = 30) -> Received:
    """Return an instance as the SCP hands it on."""
    return Received(
        study_uid=study_uid,
        series_uid=UID("1.2.826.0.1.2"),
        sop_instance_uid=sop_uid,
        sop_class_uid=US_MULTIFRAME,
        transfer_syntax_uid=EXPLICIT_LITTLE,
        calling_ae="CART",
        num_frames=num_frames,
        meta=b"\0" * 128 + b"DICM",
        dataset=sop_uid.encode() if dataset is None else dataset,
    )
