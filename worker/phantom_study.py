"""A synthetic echo study as DICOM instances: B-mode loops of several views, a colour Doppler loop and a still."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID as PydicomUID
from pydicom.uid import JPEGBaseline8Bit

from model.phantom.anatomy import random_pose
from model.phantom.dicom import picture
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.phantom.screen import Screen
from model.tasks import View

_FRAME_TIME_MS = 33.3
_NUM_FRAMES = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """One instance of the synthetic study."""

    view: View
    num_frames: int = _NUM_FRAMES
    has_colour: bool = False


SHOTS = (
    Shot(view=View.PLAX),
    Shot(view=View.PSAX),
    Shot(view=View.A4C),
    Shot(view=View.A4C),
    Shot(view=View.A2C),
    Shot(view=View.A4C, has_colour=True),
    Shot(view=View.PLAX, num_frames=1),
)
"""What the study holds; the last two must be refused with a reason."""


def make_study(heart: Heart, *, seed: int, at: datetime, shots: Sequence[Shot] = SHOTS) -> Iterator[Dataset]:
    """Yield the instances of a synthetic study, a function of the arguments."""
    study_uid = _uid(f"study/{seed}/{at.isoformat()}")
    for number, shot in enumerate(shots, start=1):
        rng = np.random.default_rng([seed, number])
        screen = Screen(rows=480, columns=640, has_colour=shot.has_colour)
        frames = render(
            heart,
            shot.view,
            num_frames=shot.num_frames,
            frame_time_ms=_FRAME_TIME_MS,
            rng=rng,
            screen=screen,
            pose=random_pose(rng),
        )
        instance = picture(frames, screen, frame_time_ms=_FRAME_TIME_MS, heart_rate=heart.heart_rate)
        _identify(instance, study_uid=study_uid, number=number, at=at)
        yield instance


def _identify(instance: Dataset, *, study_uid: str, number: int, at: datetime) -> None:
    instance.SOPInstanceUID = _uid(f"{study_uid}/{number}")
    instance.StudyInstanceUID = study_uid
    instance.SeriesInstanceUID = _uid(f"{study_uid}/series")
    instance.PatientID = "PHANTOM"
    instance.PatientName = "Phantom^Echo"
    instance.PatientBirthDate = ""
    instance.PatientSex = "O"
    instance.AccessionNumber = ""
    instance.ReferringPhysicianName = ""
    instance.StudyID = "1"
    instance.StudyDescription = "Synthetic echocardiogram"
    instance.StudyDate = instance.ContentDate = at.strftime("%Y%m%d")
    instance.StudyTime = instance.ContentTime = at.strftime("%H%M%S")
    instance.Modality = "US"
    instance.Manufacturer = "Echo AI node phantom"
    instance.SeriesNumber = 1
    instance.InstanceNumber = number
    instance.file_meta = FileMetaDataset()
    instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID
    instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    instance.file_meta.TransferSyntaxUID = JPEGBaseline8Bit


def _uid(name: str) -> PydicomUID:
    return PydicomUID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name).int}")
