"""`dicom-node analyse`: files through the same code as the network's path, without network, broker or ledger."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from dicom_node.clock import utc_now
from dicom_node.errors import InvalidUID, ReportError
from dicom_node.identity import parse_uid
from dicom_node.settings import Report as ReportSection
from model.ensemble import SHIPPED
from worker import contact_sheet
from worker.compose import Composed, Material, Subject, compose
from worker.engine import Engine, load_engine
from worker.errors import NoEnsemble
from worker.loops import AnalysedLoop, RefusedLoop, analyse_files

_IDENTITY: list[Any] = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "NumberOfFrames",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A file that is an instance of a study."""

    path: Path
    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    is_loop: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A file that is no usable DICOM, and why."""

    path: Path
    reason: str
    detail: str = ""
    """What makes the reason true here; holds paths and values, so that it is not for pictures that are passed on."""

    @property
    def text(self) -> str:
        """Return the reason with its detail."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def run(
    paths: Sequence[Path],
    out: Path,
    ensemble: Path | None,
    as_json: bool,
    sheet: Path | None,
    *,
    with_pictures: bool = False,
) -> int:
    """Analyse the files, write one report a study and the wanted pictures into `out`, print the results, draw the
    contact sheet if one is wanted; return the exit code."""
    console = Console(stderr=True)
    try:
        engine = load_engine(ensemble or SHIPPED)
    except NoEnsemble as error:
        console.print(f"dicom-node: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    out.mkdir(parents=True, exist_ok=True)
    studies, refused = _sort(_files(paths))
    section = ReportSection() if with_pictures else ReportSection().without_pictures
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("analysed", total=sum(map(len, studies.values())))
        analysed = [
            _analyse(study_uid, files, engine, out, section, step=partial(bar.advance, task))
            for study_uid, files in sorted(studies.items())
        ]
    documents = [document for document, _ in analysed]
    if as_json:
        content = {
            "studies": documents,
            "refused": [{"path": str(one.path), "reason": one.text} for one in refused],
        }
        Console(soft_wrap=True).print(json.dumps(content, indent=1), markup=False, highlight=False)
    else:
        _print_tables(documents, refused, engine)
    if sheet is not None:  # last: a sheet that cannot be written costs the sheet alone
        try:
            written = _draw(sheet, analysed, refused, engine)
        except OSError as error:
            console.print(f"dicom-node: contact sheet: {error}", markup=False, highlight=False, soft_wrap=True)
            return 1
        for one in written:
            line = f"contact sheet: {one}"
            Console(stderr=as_json).print(line, markup=False, highlight=False, soft_wrap=True)
    return 1 if any(document["state"] == "failed" for document in documents) else 0


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())
        else:
            yield path


def _sort(files: Iterable[Path]) -> tuple[dict[str, list[Found]], list[Refused]]:
    """Return the instances of each study, and what is refused; every file is in one of them, once."""
    studies: dict[str, list[Found]] = defaultdict(list)
    refused: list[Refused] = []
    first: dict[str, Path] = {}
    for path in files:
        identified = _identify(path)
        if isinstance(identified, Refused):
            refused.append(identified)
        elif identified.sop_instance_uid in first:
            twin = first[identified.sop_instance_uid]
            refused.append(Refused(path=path, reason="the same SOP Instance UID as another file", detail=str(twin)))
        else:
            first[identified.sop_instance_uid] = path
            studies[identified.study_uid].append(identified)
    return studies, refused


def _identify(path: Path) -> Found | Refused:
    try:
        dataset = dcmread(path, stop_before_pixels=True, specific_tags=_IDENTITY)
    except InvalidDicomError:
        return Refused(path=path, reason="no DICOM file")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, NotImplementedError) as error:
        return Refused(path=path, reason=f"damaged DICOM file ({type(error).__name__})")
    try:
        return Found(
            path=path,
            study_uid=parse_uid(dataset.get("StudyInstanceUID", "")),
            series_uid=parse_uid(dataset.get("SeriesInstanceUID", "")),
            sop_instance_uid=parse_uid(dataset.get("SOPInstanceUID", "")),
            sop_class_uid=parse_uid(dataset.get("SOPClassUID", "")),
            is_loop=str(dataset.get("NumberOfFrames", 1) or 1) not in ("0", "1"),
        )
    except InvalidUID as error:
        return Refused(path=path, reason="SOP, Study or Series UID missing or wrong", detail=str(error))
    except (ValueError, TypeError) as error:
        return Refused(path=path, reason=f"damaged DICOM file ({type(error).__name__})")


def _analyse(
    study_uid: str,
    files: Sequence[Found],
    engine: Engine,
    out: Path,
    section: ReportSection,
    *,
    step: Callable[[], None],
) -> tuple[dict[str, Any], tuple[Subject, ...]]:
    """Return the study as `dicom-node study --json` shows it, without deliveries, and its instances; `step` is called
    after each instance."""
    received_at = utc_now()
    verdicts = []
    for verdict in analyse_files([one.path for one in files], engine, with_attention=bool(section.pictures)):
        verdicts.append(verdict)
        step()
    subjects = tuple(
        Subject(
            sop_instance_uid=one.sop_instance_uid,
            sop_class_uid=one.sop_class_uid,
            series_instance_uid=one.series_uid,
            path=one.path,
            verdict=verdict,
        )
        for one, verdict in zip(files, verdicts, strict=True)
    )
    document: dict[str, Any] = {
        "study_instance_uid": study_uid,
        "state": "delivered",
        "received_at": received_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "completed_at": None,
        "instances": len(files),
        "loops": sum(one.is_loop for one in files),
        "loops_analysed": sum(isinstance(verdict, AnalysedLoop) for verdict in verdicts),
        "not_analysed": [
            {"sop_instance_uid": one.sop_instance_uid, "reason": one.verdict.reason}
            for one in subjects
            if isinstance(one.verdict, RefusedLoop)
        ],
        "results": [],
        "reports": [],
        "error": None,
    }
    material = Material(study_instance_uid=study_uid, revision=1, predecessor=None, subjects=subjects)
    try:
        composed = compose(material, engine, utc_now().astimezone(), section)
    except ReportError as error:
        return {**document, "state": "failed", "error": str(error)}, subjects
    return {**document, **composed.ledger, **_written(composed, out)}, subjects


def _written(composed: Composed, out: Path) -> dict[str, Any]:
    uid = composed.document.sop_instance_uid
    path = out / f"{uid}.dcm"
    path.write_bytes(composed.document.part10)
    pictures = []
    for one in composed.pictures:
        file = out / f"{one.kind.value}-{one.sop_instance_uid}.dcm"
        file.write_bytes(one.part10)
        pictures.append({"kind": one.kind.value, "sop_instance_uid": one.sop_instance_uid, "path": str(file)})
    return {
        "completed_at": utc_now().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reports": [{"sop_instance_uid": uid, "path": str(path), "supersedes": None, "pictures": pictures}],
    }


def _print_tables(documents: Sequence[dict[str, Any]], refused: Sequence[Refused], engine: Engine) -> None:
    console = Console()
    for document in documents:
        table = Table("Task", "Value", "Spread", "Loops", title=f"Study {document['study_instance_uid']}")
        for result in document["results"]:
            value = f"{result['value']:.1f}" if isinstance(result["value"], float) else str(result["value"])
            spread = "" if result["sd"] is None else f"{result['sd']:.2f}"
            table.add_row(result["task"], f"{value} {result['unit']}", spread, str(len(result["loops"])))
        for one in document.get("not_measured", ()):
            table.add_row(one["task"], "not measured", "", one["reason"])
        for one in document.get("cart", ()):
            table.add_row(f"cart: {one['task']}", f"{one['value']:.1f} {one['unit']}", "", one["method"])
        console.print(table)
        for one in document["not_analysed"]:
            console.print(f"not analysed: {one['sop_instance_uid']}: {one['reason']}", markup=False, highlight=False)
        for report in document["reports"]:
            console.print(f"report: {report['path']}", markup=False, highlight=False, soft_wrap=True)
            for picture in report["pictures"]:
                line = f"{picture['kind']}: {picture['path']}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        if document["error"]:
            console.print(f"no report: {document['error']}", markup=False, highlight=False)
    for file in refused:
        console.print(f"refused: {file.path}: {file.text}", markup=False, highlight=False, soft_wrap=True)
    if engine.info.statement:
        console.print(engine.info.statement, style="bold", markup=False)


def _draw(
    path: Path,
    analysed: Sequence[tuple[dict[str, Any], tuple[Subject, ...]]],
    refused: Sequence[Refused],
    engine: Engine,
) -> list[Path]:
    """Write the contact sheet; return its files.

    Raises:
        OSError: one cannot be written.
    """
    chapters = [
        contact_sheet.Chapter(
            heading=f"Study {document['study_instance_uid']}",
            rows=[contact_sheet.judged(one.path, one.verdict, engine.info) for one in subjects if one.path],
        )
        for document, subjects in analysed
    ]
    rows = [contact_sheet.Row(path=one.path, verdict=f"refused: {one.reason}", is_accepted=False) for one in refused]
    chapters.append(contact_sheet.Chapter(heading="Files that count as no instance", rows=rows))
    title = f"{engine.info.name} {engine.info.version}: {engine.info.statement}"
    return contact_sheet.draw(path, title, chapters, engine.spec)
