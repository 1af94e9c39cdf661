"""From the verdicts on a study's instances to its report: the same on the network path and in `dicom-node analyse`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from dicom_node.identity import UID
from dicom_node.ledger.reports import WrittenPicture, WrittenReport
from dicom_node.report.cart import CART_SOP_CLASSES, read_cart
from dicom_node.report.document import Document, Evidence, build_report
from dicom_node.report.findings import CartValue, Predecessor
from dicom_node.report.header import SourceHeader, common_header, read_header
from dicom_node.report.origin import Origin
from dicom_node.report.pictures import Picture
from dicom_node.report.sr_class import WRITTEN_AS
from dicom_node.settings import Report as ReportSection
from dicom_node.store import InstanceStore
from model.aggregate import aggregate, stills_wanted
from model.clip.loop import load_still
from model.ensemble import stack_stills
from model.errors import ClipError
from model.prediction import Loop, LoopOutputs, StudyPrediction
from worker.drawing import draw_pictures
from worker.engine import Engine
from worker.findings import Screen, to_findings, to_ledger
from worker.loops import AnalysedLoop, RefusedLoop, Verdict

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """One instance of the study with the verdict on it."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    path: Path
    verdict: Verdict
    was_given_up: bool = False
    """Its attempts ended without an answer: the report is PARTIAL."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What a report is made of."""

    study_instance_uid: str
    revision: int
    predecessor: Predecessor | None
    subjects: tuple[Subject, ...]
    """Every current instance of the study."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Composed:
    """A report and what the ledger keeps of it."""

    document: Document
    pictures: tuple[Picture, ...]
    """What goes out before the report."""
    prediction: StudyPrediction
    cart: tuple[CartValue, ...]
    supersedes: str | None

    @property
    def ledger(self) -> dict[str, Any]:
        """Return the content for `dicom-node study --json`."""
        return to_ledger(self.prediction, self.cart)

    def keep(self, store: InstanceStore, study_uid: UID) -> WrittenReport:
        """Make the pictures and the report safe; return what the ledger keeps of the files.

        Raises:
            OutOfSpace, StoreError: the report is not kept.
        """
        pictures = tuple(
            WrittenPicture(
                kind=one.kind,
                sop_instance_uid=one.sop_instance_uid,
                sop_class_uid=one.sop_class_uid,
                path=store.keep_picture(study_uid, one.sop_instance_uid, one.part10),
            )
            for one in self.pictures
        )
        return WrittenReport(
            sop_instance_uid=self.document.sop_instance_uid,
            sop_class_uid=WRITTEN_AS,
            series_instance_uid=self.document.series_instance_uid,
            path=store.keep_report(self.document.sop_instance_uid, self.document.part10),
            pictures=pictures,
        )


def compose(
    material: Material,
    engine: Engine,
    created_at: datetime,
    section: ReportSection,
    step: Callable[[], None] = lambda: None,
) -> Composed:
    """Return the study's report: a function of the verdicts and the ensemble, but for its dates.

    Args:
        material: what it is made of.
        engine: who looked, and looks at the stills.
        created_at: its dates.
        section: what is made beside it, and in which character set.
        step: called between two pieces of work that each have a deadline of their own.

    Raises:
        ReportError: no report can be made of this study; the message is the reason.
    """
    headers = {one.sop_instance_uid: read_header(one.path) for one in material.subjects}
    ordered = sorted(material.subjects, key=lambda one: one.sop_instance_uid)
    header = common_header([headers[one.sop_instance_uid] for one in ordered])
    prediction = predict(ordered, engine)
    analysed = {one.sop_instance_uid: one.verdict for one in ordered if isinstance(one.verdict, AnalysedLoop)}
    refused = {one.sop_instance_uid: one.verdict for one in ordered if isinstance(one.verdict, RefusedLoop)}
    screens = {one.sop_instance_uid: _screen(one, headers[one.sop_instance_uid]) for one in ordered}
    cart = _cart(ordered)
    findings = to_findings(prediction, analysed, refused, screens, cart)
    origin = Origin(
        study_uid=UID(material.study_instance_uid),
        revision=material.revision,
        algorithm=findings.algorithm,
        header=header,
        created_at=created_at,
        character_set=section.character_set,
    )
    paths = {one.sop_instance_uid: one.path for one in ordered}
    drawn = draw_pictures(findings, origin, paths, analysed, engine, section.pictures, step)
    document = build_report(
        findings,
        origin,
        evidence=[_evidence(one, headers[one.sop_instance_uid]) for one in ordered],
        predecessor=material.predecessor,
        is_complete=not any(one.was_given_up for one in ordered),
        pictures=drawn,
    )
    supersedes = material.predecessor.sop_instance_uid if material.predecessor else None
    return Composed(document=document, pictures=drawn, prediction=prediction, cart=cart, supersedes=supersedes)


def predict(subjects: Sequence[Subject], engine: Engine) -> StudyPrediction:
    """Return what the ensemble says of a study whose loops have their verdicts: `model` alone, nothing of the node."""
    loops = [
        Loop(key=one.sop_instance_uid, outputs=one.verdict.outputs, header_view=one.verdict.header_view)
        for one in subjects
        if isinstance(one.verdict, AnalysedLoop)
    ]
    found = {one.sop_instance_uid: one for one in subjects}
    wanted = stills_wanted(loops, engine.info)
    return aggregate(loops, _look_at_stills([found[key] for key in wanted], engine), engine.info)


def _look_at_stills(subjects: Sequence[Subject], engine: Engine) -> LoopOutputs | None:
    if not subjects:
        return None
    try:
        stills = [
            load_still(one.path, engine.spec, one.verdict.sector)
            for one in subjects
            if isinstance(one.verdict, AnalysedLoop)
        ]
    except ClipError as error:
        # A loop that was read before: the disk lost it. The loops' numbers stand; the study's task abstains.
        log.error("still_unreadable", reason=str(error))
        return None
    stack, positions = stack_stills(stills, engine.spec)
    return engine.ensemble.predict_study(stack, positions)


def _cart(subjects: Sequence[Subject]) -> tuple[CartValue, ...]:
    reports = [one for one in subjects if one.sop_class_uid in CART_SOP_CLASSES]
    return tuple(value for one in reports for value in read_cart(one.path))


def _screen(one: Subject, header: SourceHeader) -> Screen:
    return Screen(
        sop_class_uid=one.sop_class_uid,
        rows=header.rows,
        columns=header.columns,
        num_frames=header.num_frames,
        series_number=header.series_number,
        instance_number=header.instance_number,
    )


def _evidence(one: Subject, header: SourceHeader) -> Evidence:
    return Evidence(
        sop_class_uid=one.sop_class_uid,
        sop_instance_uid=one.sop_instance_uid,
        series_instance_uid=one.series_instance_uid,
        rows=header.rows,
        columns=header.columns,
    )
