"""From the verdicts on a study's instances to its report: the same on the network path and in `dicom-node analyse`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dicom_node.identity import UID, result_uid
from dicom_node.ledger.reports import WrittenReport
from dicom_node.report.findings import Predecessor
from model import aggregate
from model.clip.loop import load_still
from model.errors import ClipError
from model.prediction import Loop, LoopOutputs, StudyPrediction
from worker.engine import Engine
from worker.findings import to_findings, to_ledger
from worker.loops import AnalysedLoop, RefusedLoop, Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One instance of the study with the verdict on it."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    path: Path
    num_frames: int | None
    verdict: Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What a report is made of."""

    study_instance_uid: str
    revision: int
    predecessor: Predecessor | None
    subjects: tuple[Subject, ...]
    """Every current instance of the study."""
