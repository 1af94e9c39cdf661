"""Instances that arrive as the SCP hands them on, without a network."""

import io
from collections.abc import Callable, Sequence

from pydicom import Dataset, dcmwrite

from dicom_node.clock import Clock, utc_now
from dicom_node.identity import UID
from dicom_node.intake import Intake, Received
from dicom_node.ledger.engine import Sessions
from dicom_node.store import InstanceStore
from dicom_node.wire import walk


def arrive(
    instances: Sequence[Dataset],
    sessions: Sessions,
    store: InstanceStore,
    ring: Callable[[int], None] = lambda _study_id: None,
    damage: tuple[bytes, bytes] = (b"", b""),
    clock: Clock = utc_now,
    calling: str = "SCANNER",
) -> int:
    """Let instances arrive, some bytes replaced by others; return the study's id."""
    intake = Intake(sessions, store, clock, ring)
    for instance in instances:
        buffer = io.BytesIO()
        dcmwrite(buffer, instance, enforce_file_format=True)
        file = buffer.getvalue().replace(*damage, 1)
        # The data set begins after preamble, prefix and group 2, whose length the first element tells.
        start = 144 + int.from_bytes(file[140:144], "little")
        walk(file[start:], instance.file_meta.TransferSyntaxUID)
        outcome = intake.receive(
            Received(
                study_uid=UID(instance.StudyInstanceUID),
                series_uid=UID(instance.SeriesInstanceUID),
                sop_instance_uid=UID(instance.SOPInstanceUID),
                sop_class_uid=UID(instance.SOPClassUID),
                transfer_syntax_uid=UID(instance.file_meta.TransferSyntaxUID),
                calling_ae=calling,
                num_frames=instance.get("NumberOfFrames"),
                meta=file[:start],
                dataset=file[start:],
            )
        )
    return outcome.study_id
