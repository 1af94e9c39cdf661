"""MIMIC-IV-ECHO on disk, versions 0.1 and 1.0: DICOM by subject and study; what is a loop only the files know.

From version 1.0 on each study names a set of structured measurements: they become labels. The data set knows no views;
a file `view-labels.csv` (dicom_filepath, view) beside the lists, of readers or of a view classifier, is used if there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.clip.dicom import open_loop
from model.clip.sampling import clips_of, distinct
from model.clip.select import Reason, inspect, select
from model.clip.source import Frames, LoopSource
from model.clip.spec import ClipSpec
from model.clip.transform import cut_out, locate_by_header
from model.errors import NotALoop
from model.tasks import VALVE, Grade, Task, View
from trainer.data.labels import check_measurements, parse_number
from trainer.data.origin import Listing, Origin, Skip
from trainer.data.reel import SourceReel
from trainer.data.tables import find_table, need_table, read_rows
from trainer.errors import DataError

MIN_FRAMES = 16
"""Shorter loops are left out: a clip of the paper has so many frames."""

_RECORDS = ("subject_id", "study_id", "dicom_filepath")
_MEASURED = ("measurement_id", "test_type", "measurement", "result")
_LVEF = ("biplane_lvef", "lvef_3d", "lvef")  # the first that is there; the last is a guess by eye, in steps of 5
_VOLUMES = {"biplane_lvedv": Task.LVEDV, "biplane_lvesv": Task.LVESV}
_STENOSIS = "aortic_stenosis"
_PLAUSIBLE_LVEF = (10.0, 85.0)

# Two reporting systems with their own words; what is not listed gives no label.
_GRADES = {
    "no": Grade.NONE,
    "none": Grade.NONE,
    "absent": Grade.NONE,
    "sclerosis": Grade.NONE,
    "trivial": Grade.NONE,
    "mild": Grade.MILD,
    "mild-moderate": Grade.MILD_TO_MODERATE,
    "mild to moderate": Grade.MILD_TO_MODERATE,
    "mild-to-moderate": Grade.MILD_TO_MODERATE,
    "moderate": Grade.MODERATE,
    "moderate-severe": Grade.SEVERE,
    "moderate to severe": Grade.SEVERE,
    "severe": Grade.SEVERE,
    "critical": Grade.SEVERE,
}


def survey(root: Path) -> Listing:
    """Return every file as a loop, which it may turn out not to be, and a stack for each study with a grade."""
    views = _views(root)
    labels = _Labels.read(root)
    studies: dict[str, list[Origin]] = {}
    skipped: list[Skip] = list(labels.skipped)
    for row in read_rows(need_table(root, "echo-record-list"), _RECORDS):
        path = row["dicom_filepath"]
        if not (root / path).is_file():
            skipped.append(Skip(path=path, reason="file is missing", is_bad=True))
            continue
        view = views.get(path)
        targets: dict[Task, float | str] = dict(labels.of_loops.get(row["study_id"], {}))
        if view is not None:
            targets[Task.VIEW] = view.value
        studies.setdefault(row["study_id"], []).append(
            Origin(
                key=path,
                subject=row["subject_id"],
                study=row["study_id"],
                source=path,
                files=(path,),
                split=None,
                kind="loop",
                view=view,
                targets=targets,
            )
        )
    loops = [origin for study in studies.values() for origin in study]
    stacks = [
        _stack(study, sorted(studies[study], key=lambda one: one.key), grade)
        for study, grade in labels.grades.items()
        if study in studies
    ]
    return Listing(
        origins=tuple(sorted((*loops, *(one for one in stacks if one.files)), key=lambda one: one.key)),
        skipped=tuple(skipped),
    )


def open_reel(root: Path, origin: Origin, clip: ClipSpec) -> "SourceReel | StackReel":
    """Return the loop of a file, or the stills of a study's loops."""
    if origin.kind == "loop":
        source = _open(root / origin.files[0], min_frames=MIN_FRAMES)
        return SourceReel(source=source, clip=clip, check=_inspect)
    return StackReel.open(root, origin.files, clip)


@dataclass(frozen=True, kw_only=True, slots=True)
class StackReel:
    """The middle sampled frame of each loop of a study, as the node makes a study's stack."""

    stills: tuple[Frames, ...]
    frame_time_ms: float | None = None
    heart_rate: float | None = None

    @classmethod
    def open(cls, root: Path, files: Sequence[str], clip: ClipSpec) -> "StackReel":
        """Read the stills, each cut out by its loop; files that are no B-mode loops are left out.

        Raises:
            NotALoop: none is left.
        """
        stills, last = [], NotALoop(Reason.STILL)
        for file in files:
            try:
                source = _open(root / file, min_frames=0)
                first, *_ = clips = clips_of(source.header, clip)
                seen = distinct(clips)
                frames_THWC = source.read(seen)
                _inspect(frames_THWC)
                sector = locate_by_header(frames_THWC, clip, source.header)
            except NotALoop as error:
                last = error
                continue
            middle = seen.index(first[len(first) // 2])
            stills.append(cut_out(frames_THWC[middle : middle + 1], sector)[0])
        if not stills:
            raise last
        return cls(stills=tuple(stills))

    @property
    def num_frames(self) -> int:
        """Return the number of stills."""
        return len(self.stills)

    def read(self, indices: Sequence[int]) -> list[Frames]:
        """Return these stills."""
        return [self.stills[index] for index in indices]


def _open(path: Path, *, min_frames: int) -> LoopSource:
    source = open_loop(path)
    select(source.header).check()
    if source.header.num_frames < min_frames:
        raise NotALoop(Reason.TOO_SHORT, f"{source.header.num_frames} frames")
    return source


def _inspect(frames_THWC: Frames) -> None:
    inspect(frames_THWC).check()


def _views(root: Path) -> dict[str, View]:
    """Return the view of each file that has one."""
    table = find_table(root, "view-labels")
    if table is None:
        return {}
    known = {view.value.lower(): view for view in View}
    found: dict[str, View] = {}
    for row in read_rows(table, ("dicom_filepath", "view")):
        view = known.get(row["view"].lower())
        if view is None:
            raise DataError(f"{table}: view {row['view']} of {row['dicom_filepath']} is none of {', '.join(View)}")
        found[row["dicom_filepath"]] = view
    return found


def _stack(study: str, loops: Sequence[Origin], grade: Grade) -> Origin:
    """Return the stack of a study: views in the node's order where they are known, else every loop."""
    order = [view for view in View if view in VALVE]
    seen = [one for view in order for one in loops if one.view is view]
    chosen = seen if any(one.view is not None for one in loops) else loops
    return Origin(
        key=f"stack/{study}",
        subject=loops[0].subject,
        study=study,
        source=study,
        files=tuple(one.source for one in chosen),
        split=None,
        kind="stack",
        view=None,
        targets={Task.AORTIC_STENOSIS: grade.value},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Labels:
    """What the structured measurements say of each study."""

    of_loops: Mapping[str, dict[Task, float | str]] = field(default_factory=dict)
    grades: Mapping[str, Grade] = field(default_factory=dict)
    skipped: tuple[Skip, ...] = ()

    @classmethod
    def read(cls, root: Path) -> "_Labels":
        """Read the measurements, if this version has them; the table has 28 million rows, of which few are kept."""
        table = find_table(root, "structured-measurement", "structured_measurement")
        if table is None:
            return cls()
        studies: dict[str, list[str]] = {}
        for study, measurement in _measured_studies(need_table(root, "echo-study-list")):
            studies.setdefault(measurement, []).append(study)
        values: dict[str, dict[str, str]] = {}
        wanted = {*_LVEF, *_VOLUMES, _STENOSIS}
        for row in read_rows(table, _MEASURED):
            if row["measurement"] in wanted and row["measurement_id"] in studies and row["test_type"].lower() == "tte":
                values.setdefault(row["measurement_id"], {}).setdefault(row["measurement"], row["result"])
        of_loops: dict[str, dict[Task, float | str]] = {}
        grades: dict[str, Grade] = {}
        skipped: list[Skip] = []
        for measurement, measured in sorted(values.items()):
            targets, grade = _targets(measured), _grade(measured.get(_STENOSIS, ""))
            mistake = check_measurements(targets)
            if mistake is not None:
                skipped.append(Skip(path=f"{table.name}#{measurement}", reason=mistake, is_bad=True))
                targets = {}
            for study in studies[measurement]:
                of_loops[study] = targets
                if grade is not None:
                    grades[study] = grade
        return cls(of_loops=of_loops, grades=grades, skipped=tuple(skipped))


def _measured_studies(table: Path) -> Iterator[tuple[str, str]]:
    """Yield study and measurement of each study that names one."""
    for row in read_rows(table, ("study_id", "measurement_id")):
        if row["measurement_id"]:
            yield row["study_id"], row["measurement_id"].removesuffix(".0")  # as pandas writes numbers with gaps


def _targets(measured: Mapping[str, str]) -> dict[Task, float | str]:
    targets: dict[Task, float | str] = {}
    for name in _LVEF:
        value = parse_number(measured.get(name, ""))
        if value is not None and _PLAUSIBLE_LVEF[0] <= value <= _PLAUSIBLE_LVEF[1]:
            targets[Task.LVEF] = value
            break
    for name, task in _VOLUMES.items():
        value = parse_number(measured.get(name, ""))
        if value is not None:
            targets[task] = value
    return targets


def _grade(words: str) -> Grade | None:
    """Return the grade of words such as "Mild AS" or "No aortic stenosis", None for what nobody listed."""
    text = (
        words.lower().replace("aortic", "").replace("stenosis", "").replace("valve", "").replace(" as", "").strip(" .,")
    )
    return _GRADES.get(text)
