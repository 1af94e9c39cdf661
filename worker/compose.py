"""From the verdicts on a study's instances to its report: the same on the network path and in `dicom-node analyse`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from dicom_node.errors import ReportError
from dicom_node.identity import UID
from dicom_node.ledger.reports import WrittenPicture, WrittenReport
from dicom_node.report.cart import CART_SOP_CLASSES, read_cart
from dicom_node.report.document import Document, Evidence, build_report, in_order
from dicom_node.report.findings import CartValue, LoopFinding, Predecessor
from dicom_node.report.header import SourceHeader, common_header, read_header
from dicom_node.report.library import read_library
from dicom_node.report.origin import Origin
from dicom_node.report.pictures import Picture
from dicom_node.report.sr_class import WRITTEN_AS
from dicom_node.settings import Report as ReportSection
from dicom_node.store import InstanceStore, Staged
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
    path: Path | None
    """Of its file; None: retention removed it after an earlier report."""
    verdict: Verdict
    was_given_up: bool = False
    """Its attempts ended without an answer: the report is PARTIAL."""
    num_frames: int | None = None
    """What the ledger knows; the file's own header goes before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """The report that this one takes the place of, for what it says of images that are gone."""

    path: Path | None
    """Of its file; None: no image is gone, and nothing of it is needed."""
    cart: tuple[CartValue, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What a report is made of."""

    study_instance_uid: str
    revision: int
    predecessor: Predecessor | None
    subjects: tuple[Subject, ...]
    """Every current instance of the study."""
    earlier: Earlier | None = None
    """None: this is the first report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Composed:
    """A report and what the ledger keeps of it."""

    document: Document
    pictures: tuple[Picture, ...]
    """What goes out before the report."""
    prediction: StudyPrediction
    cart: tuple[CartValue, ...]
    loops: tuple[LoopFinding, ...]
    """In the order in which the report counts them."""
    supersedes: str | None

    @property
    def ledger(self) -> dict[str, Any]:
        """Return the content for `dicom-node study --json`."""
        return to_ledger(self.prediction, self.cart, self.loops)

    def keep(self, store: InstanceStore, study_uid: UID, step: Callable[[], None] = lambda: None) -> WrittenReport:
        """Make the pictures and the report safe; return what the ledger keeps of the files.

        Args:
            store: where.
            study_uid: whose they are.
            step: called before each file.

        Raises:
            OutOfSpace, StoreError: the report is not kept.
        """
        paths = []
        for one in self.pictures:
            step()
            paths.append(store.keep_picture(study_uid, one.sop_instance_uid, one.part10))
        step()
        return self._written(store.keep_report(self.document.sop_instance_uid, self.document.part10), paths)

    @contextmanager
    def staged(self, store: InstanceStore, study_uid: UID) -> Iterator[tuple[WrittenReport, Callable[[], None]]]:
        """Make the pictures and the report safe without their names; give what the ledger keeps of the files, and what
        names them. Those without a name are removed when the block ends.

        Raises:
            OutOfSpace, StoreError: nothing is kept.
        """
        with ExitStack() as stack:
            files: list[Staged] = []
            for one in self.pictures:
                files.append(store.stage_picture(study_uid, one.sop_instance_uid, one.part10))
                stack.callback(files[-1].close)
            files.append(store.stage_report(self.document.sop_instance_uid, self.document.part10))
            stack.callback(files[-1].close)

            def name_files() -> None:
                for file in files:
                    file.name()

            *pictures, report = (file.path for file in files)
            yield self._written(report, pictures), name_files

    def _written(self, path: str, picture_paths: Sequence[str]) -> WrittenReport:
        return WrittenReport(
            sop_instance_uid=self.document.sop_instance_uid,
            sop_class_uid=WRITTEN_AS,
            series_instance_uid=self.document.series_instance_uid,
            path=path,
            pictures=tuple(
                WrittenPicture(
                    kind=one.kind,
                    sop_instance_uid=one.sop_instance_uid,
                    sop_class_uid=one.sop_class_uid,
                    path=picture_path,
                )
                for one, picture_path in zip(self.pictures, picture_paths, strict=True)
            ),
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
    headers = _read_headers(material)
    ordered = [_with_its_size(one, headers) for one in sorted(material.subjects, key=lambda one: one.sop_instance_uid)]
    header = common_header([headers[one.sop_instance_uid] for one in ordered])
    prediction = _with_the_removed(predict(ordered, engine), ordered)
    analysed = {one.sop_instance_uid: one.verdict for one in ordered if isinstance(one.verdict, AnalysedLoop)}
    refused = {one.sop_instance_uid: one.verdict for one in ordered if isinstance(one.verdict, RefusedLoop)}
    screens = {one.sop_instance_uid: _screen(one, headers[one.sop_instance_uid]) for one in ordered}
    cart = _cart(ordered, material.earlier)
    findings = to_findings(prediction, analysed, refused, screens, cart)
    origin = Origin(
        study_uid=UID(material.study_instance_uid),
        revision=material.revision,
        algorithm=findings.algorithm,
        header=header,
        created_at=created_at,
        character_set=section.character_set,
    )
    paths = {one.sop_instance_uid: one.path for one in ordered if one.path is not None}
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
    return Composed(
        document=document,
        pictures=drawn,
        prediction=prediction,
        cart=cart,
        loops=tuple(in_order(findings.loops)),
        supersedes=supersedes,
    )


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
    if not subjects or any(one.path is None for one in subjects):  # a part of the stack says nothing
        return None
    try:
        stills = [
            load_still(one.path, engine.spec, one.verdict.sector)
            for one in subjects
            if isinstance(one.verdict, AnalysedLoop) and one.path is not None
        ]
    except ClipError as error:
        # A loop that was read before: the disk lost it. The loops' numbers stand; the study's task abstains.
        log.error("still_unreadable", reason=str(error))
        return None
    stack, positions = stack_stills(stills, engine.spec)
    return engine.ensemble.predict_study(stack, positions)


def _read_headers(material: Material) -> dict[str, SourceHeader]:
    """Return the header of every instance; what is left of those that retention removed is in the earlier report.

    Raises:
        ReportError: a file cannot be read again, or nothing says whose images were removed.
    """
    headers = {one.sop_instance_uid: read_header(one.path) for one in material.subjects if one.path is not None}
    removed = [one for one in material.subjects if one.path is None]
    if not removed:
        return headers
    path = None if material.earlier is None else material.earlier.path
    # Whose they were must be known: numbers of one patient must never stand in a report of another.
    whose = None if path is None else read_header(path, "the earlier report")
    if path is None or whose is None or not whose.patient_id:
        raise ReportError("images were removed, and no earlier report says whose they were; send the study again")
    sizes = read_library(path)
    for one in removed:
        rows, columns = sizes.get(one.sop_instance_uid, (None, None))
        headers[one.sop_instance_uid] = replace(
            whose, series_number=None, instance_number=None, num_frames=one.num_frames, rows=rows, columns=columns
        )
    return headers


def _with_its_size(one: Subject, headers: Mapping[str, SourceHeader]) -> Subject:
    """Refuse a loop whose images are gone, and whose size nobody knows: what was analysed of it cannot be outlined."""
    is_known = one.path is not None or headers[one.sop_instance_uid].rows is not None
    if is_known or isinstance(one.verdict, RefusedLoop):
        return one
    verdict = RefusedLoop(code="removed", reason="its images were removed, and how large they were is not known")
    return replace(one, verdict=verdict, was_given_up=True)


def _with_the_removed(prediction: StudyPrediction, subjects: Sequence[Subject]) -> StudyPrediction:
    number = sum(one.path is None for one in subjects)
    if not number:
        return prediction
    note = f"Images of {number} instances were removed after an earlier report; their results are those of then."
    return replace(prediction, notes=(*prediction.notes, note))


def _cart(subjects: Sequence[Subject], earlier: Earlier | None) -> tuple[CartValue, ...]:
    reports = [one for one in subjects if one.sop_class_uid in CART_SOP_CLASSES]
    read = [value for one in reports if one.path is not None for value in read_cart(one.path)]
    removed = {one.sop_instance_uid for one in reports if one.path is None}
    kept = [value for value in (earlier.cart if earlier else ()) if value.sop_instance_uid in removed]
    return (*kept, *read)


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
