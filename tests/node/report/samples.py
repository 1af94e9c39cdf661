"""Findings to make reports of."""

from collections.abc import Collection
from datetime import UTC, datetime

import numpy as np
import simplejpeg
from pydicom import Dataset

from dicom_node.identity import UID
from dicom_node.report.document import Document, Evidence, build_report
from dicom_node.report.findings import (
    Abstained,
    Algorithm,
    EvaluatedFinding,
    Evaluation,
    Findings,
    LoopFinding,
    LoopNumber,
    MeasuredValue,
    Measurement,
    NotMeasured,
    PictureKind,
    Predecessor,
    RefusedInstance,
)
from dicom_node.report.header import sanitise
from dicom_node.report.origin import Origin
from dicom_node.report.pictures import Cine, Page, Picture, saliency, summary, summary_pdf

STUDY = UID("1.2.826.0.1.3680043.8.498.1")
MOMENT = datetime(2026, 11, 24, 3, 4, 5, tzinfo=UTC)
US_MULTIFRAME = "1.2.840.10008.5.1.4.1.1.3.1"
US_IMAGE = "1.2.840.10008.5.1.4.1.1.6.1"
ALGORITHM = Algorithm(
    name="Echo-Vision-FM (phantom)",
    version="0.1.0",
    ensemble_digest="ab" * 32,
    statement="untrained weights: numbers have no meaning",
)
APICAL, AXIAL, STILL = "1.2.3.1", "1.2.3.2", "1.2.3.3"


def loop(uid: str, number: int, view: str | None, *numbers: LoopNumber) -> LoopFinding:
    """Return an analysed loop."""
    return LoopFinding(
        sop_instance_uid=uid,
        sop_class_uid=US_MULTIFRAME,
        rows=480,
        columns=640,
        num_frames=60,
        box=(40, 20, 600, 420),
        frames_used=tuple(range(1, 61, 4)),
        series_number=1,
        instance_number=number,
        view=view,
        view_probability=0.93,
        uncertain_view=None,
        contradiction="",
        numbers=numbers,
    )


REFUSED = RefusedInstance(
    sop_instance_uid=STILL,
    sop_class_uid=US_IMAGE,
    series_number=1,
    instance_number=3,
    num_frames=None,
    reason="still image, not a cine loop",
)

MEASURED = Findings(
    algorithm=ALGORITHM,
    measurements=(
        MeasuredValue(task=Measurement.LVEF, value=57.34, unit="%", sd=2.11, members=3, loops=(APICAL,)),
        MeasuredValue(task=Measurement.LVEDV, value=120.4, unit="mL", sd=8.04, members=3, loops=(APICAL,)),
        MeasuredValue(task=Measurement.LVESV, value=51.2, unit="mL", sd=None, members=1, loops=(APICAL,)),
    ),
    evaluations=(
        EvaluatedFinding(
            task=Evaluation.LVEF_REDUCED, value="absent", probabilities={"reduced": 0.08}, members=3, loops=(APICAL,)
        ),
        EvaluatedFinding(
            task=Evaluation.AORTIC_STENOSIS,
            value="mildtomod",
            probabilities={"no": 0.1, "mild": 0.2, "mildtomod": 0.5, "moderate": 0.15, "severe": 0.05},
            members=3,
            loops=(APICAL, AXIAL),
        ),
    ),
    abstentions=(),
    loops=(
        loop(APICAL, 1, "A4C", LoopNumber(task=Measurement.LVEF, value=57.34, sd=2.11)),
        loop(AXIAL, 2, "PLAX"),
    ),
    refused=(REFUSED,),
    notes=("LVEF and volumes differ by 9 points.",),
)

EMPTY = Findings(
    algorithm=ALGORITHM,
    measurements=(),
    evaluations=(),
    abstentions=tuple(
        Abstained(task=task, kind=kind, reason="no apical loop was found")
        for task, kind in (
            (Measurement.LVEF, NotMeasured.NOT_ATTEMPTED),
            (Measurement.LVEDV, NotMeasured.FAILURE),
            (Measurement.LVESV, NotMeasured.OUT_OF_RANGE),
            (Evaluation.LVEF_REDUCED, NotMeasured.INDETERMINATE),
            (Evaluation.AORTIC_STENOSIS, NotMeasured.NOT_ATTEMPTED),
        )
    ),
    loops=(),
    refused=(REFUSED,),
    notes=(),
)

UNSEEN = Findings(
    algorithm=ALGORITHM,
    measurements=(),
    evaluations=(),
    abstentions=EMPTY.abstentions,
    loops=(loop(APICAL, 1, None), loop(AXIAL, 2, "other")),
    refused=(REFUSED,),
    notes=(),
)

EVIDENCE = (
    Evidence(sop_class_uid=US_MULTIFRAME, sop_instance_uid=APICAL, series_instance_uid="1.2.9", rows=480, columns=640),
    Evidence(sop_class_uid=US_MULTIFRAME, sop_instance_uid=AXIAL, series_instance_uid="1.2.9", rows=480, columns=640),
    Evidence(sop_class_uid=US_IMAGE, sop_instance_uid=STILL, series_instance_uid="1.2.9", rows=480, columns=640),
)

PREDECESSOR = Predecessor(
    study_instance_uid=STUDY,
    series_instance_uid="1.2.8",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33",
    sop_instance_uid="1.2.8.1",
)


def patient(**attributes: str) -> Dataset:
    """Return a study's header."""
    raw = Dataset()
    raw.PatientID = "P1"
    raw.PatientName = "Phantom^Echo"
    for keyword, value in attributes.items():
        setattr(raw, keyword, value)
    return sanitise(raw).attributes


def origin(**changes: object) -> Origin:
    """Return where the documents of a report come from."""
    whence: dict[str, object] = {"study_uid": STUDY, "revision": 1, "algorithm": ALGORITHM, "created_at": MOMENT}
    whence |= changes if "header" in changes else {"header": patient(), **changes}
    return Origin(**whence)  # type: ignore[arg-type]


def report(findings: Findings = MEASURED, header: Dataset | None = None, **changes: object) -> Document:
    """Return a report of the study."""
    names = ("study_uid", "revision", "created_at", "character_set")
    whence = {name: changes.pop(name) for name in names if name in changes}
    if header is not None:
        whence["header"] = header
    arguments = {"evidence": EVIDENCE, "predecessor": None, "is_complete": True, **changes}
    return build_report(findings, origin(algorithm=findings.algorithm, **whence), **arguments)  # type: ignore[arg-type]


ROWS, COLUMNS = 48, 64
FRAMES = tuple(
    simplejpeg.encode_jpeg(np.full((ROWS, COLUMNS, 3), 60 * number, np.uint8), colorspace="RGB", colorsubsampling="422")
    for number in range(3)
)
CINE = Cine(frames=FRAMES, rows=ROWS, columns=COLUMNS, frame_time_ms=33.3, source_frames=(5, 6, 7))
PAGE = Page(jpeg=FRAMES[1], rows=ROWS, columns=COLUMNS, pdf=b"%PDF-1.4\n%odd\n")


def pictures(
    kinds: Collection[PictureKind] = tuple(PictureKind), whence: Origin | None = None, shown: LoopFinding | None = None
) -> list[Picture]:
    """Return the pictures of these kinds, in the order in which they go out; of one loop where none is named."""
    whence, shown = whence or origin(), shown or MEASURED.loops[0]
    made = {
        PictureKind.SALIENCY: saliency(whence, shown, 1, CINE),
        PictureKind.SUMMARY: summary(whence, PAGE),
        PictureKind.SUMMARY_PDF: summary_pdf(whence, PAGE, [shown]),
    }
    return [one for kind, one in made.items() if kind in kinds]
