"""From verdicts to the report: dcmtk reads in it what the ledger keeps; two runs differ in their dates alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from dicom_node.report.findings import Predecessor
from dicom_node.settings import Report as ReportSection
from model.clip.spec import ClipSpec
from model.phantom.heart import Heart
from model.prediction import EnsembleInfo, LoopOutputs
from model.tasks import Task, View
from tests.doubles import ensembles
from tests.node.report.dcmtk_reader import Item, read
from tests.node.report.told import ABSENCES, ANSWERS, NAMES, PROBABILITIES
from tests.system.studies import part10
from worker.compose import Composed, Material, Subject, compose
from worker.engine import Engine
from worker.loops import AnalysedLoop, RefusedLoop, Verdict
from worker.phantom_study import Shot, make_study

SHOTS = (
    Shot(view=View.A4C, num_frames=8),
    Shot(view=View.A2C, num_frames=8),
    Shot(view=View.PLAX, num_frames=8),
    Shot(view=View.PLAX, num_frames=1),
)
UNITS = {"lvef": "% UCUM percent", "lvedv": "ml UCUM milliliter", "lvesv": "ml UCUM milliliter"}
SOURCE, COMMENT = "121112 DCM Source of Measurement", "121106 DCM Comment"
SPREAD = "371884006 SCT +/-, range of measurement uncertainty"
MONDAY, TUESDAY = (datetime(2026, 11, day, 3, 4, 5, day, tzinfo=UTC) for day in (23, 24))
GRADES = [[0.05, 0.1, 0.55, 0.2, 0.1], [0.05, 0.1, 0.45, 0.3, 0.1]]


SPEC = ClipSpec(size=32)
INFO = replace(ensembles.INFO, name="oracle")


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """An engine of two members that says of every stack what it was told."""

    grades: list[list[float]]
    info: EnsembleInfo = INFO
    spec: ClipSpec = SPEC

    @property
    def ensemble(self) -> "Oracle":
        """Return the ensemble of the engine."""
        return self

    def predict_study(self, stack: torch.Tensor, positions: torch.Tensor) -> LoopOutputs:
        """Return the grade of aortic stenosis."""
        return {Task.AORTIC_STENOSIS: self.grades}


def said(view: int, *, lvef: float, esv: float, reduced: float = 0.25) -> AnalysedLoop:
    """Return what two members say of a loop whose view is the one at this place."""
    views = [0.9 if place == view else 0.025 for place in range(5)]
    outputs: LoopOutputs = {
        Task.VIEW: [views, views],
        Task.LVEF: [[lvef - 1.5], [lvef + 1.75]],
        Task.LVEDV: [[120.25], [124.5]],
        Task.LVESV: [[esv], [esv + 3.0]],
        Task.LVEF_REDUCED: [[reduced], [reduced + 0.0625]],
    }
    return AnalysedLoop(outputs=outputs, frames=(0, 0, 3, 7))


STILL = RefusedLoop(code="still", reason="still image, not a cine loop: größer als 心")
A4C, A2C, PLAX = said(0, lvef=58.0, esv=50.0), said(1, lvef=57.0, esv=49.0), said(2, lvef=1.0, esv=1.0)
STUDIES: dict[str, tuple[list[Verdict], list[list[float]]]] = {
    "all answered": ([A4C, A2C, PLAX, STILL], GRADES),
    "EF and volumes apart": ([said(0, lvef=70.0, esv=47.0), STILL, STILL, STILL], GRADES),
    "refused because of the volumes": ([said(0, lvef=58.0, esv=95.0), STILL, STILL, STILL], GRADES),
    "undetermined": ([said(0, lvef=58.0, esv=50.0, reduced=0.5), STILL, PLAX, STILL], [[0.2] * 5] * 2),
    "no loop": ([STILL] * 4, GRADES),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    """Return the instances of a study, each of them refused."""
    folder = tmp_path_factory.mktemp("study")
    study = make_study(Heart(edv_ml=120.0, esv_ml=50.0), seed=1, at=MONDAY, shots=SHOTS)
    subjects = []
    for number, instance in enumerate(study):
        path = folder / f"{number}.dcm"
        path.write_bytes(part10(instance))
        subjects.append(
            Subject(
                sop_instance_uid=str(instance.SOPInstanceUID),
                sop_class_uid=str(instance.SOPClassUID),
                series_instance_uid=str(instance.SeriesInstanceUID),
                path=path,
                verdict=STILL,
            )
        )
    return subjects


def composed(files: Sequence[Subject], name: str, at: datetime = MONDAY, **changes: Any) -> Composed:
    """Return the report of a study with these verdicts."""
    verdicts, grades = STUDIES[name]
    subjects = tuple(replace(file, verdict=verdict) for file, verdict in zip(files, verdicts, strict=True))
    material = Material(study_instance_uid="1.2.3", revision=1, predecessor=None, subjects=subjects)
    return compose(
        replace(material, **changes), cast(Engine, Oracle(grades=grades)), at, ReportSection().without_pictures
    )


Fact = tuple[str, ...]
"""What, of what, how much, from where: as text."""


def kept(ledger: dict[str, Any]) -> list[Fact]:
    """Return what the ledger says, with the codes and the digits of reports."""
    facts: list[Fact] = []
    for one in ledger["results"]:
        name, loops = NAMES[one["task"]], " ".join(one["loops"])
        if one["task"] in UNITS:
            facts.append(("number", name, written(one["task"], one["value"]), loops))
            facts.append(("spread", name, f"{decimal(one['sd'])} [{UNITS[one['task']]}]"))
            facts += [("loop", name, written(one["task"], value), uid) for uid, value in one["per_loop"].items()]
        else:
            answer = {True: "present", False: "absent"}.get(one["value"], one["value"])
            facts.append(("answer", name, ANSWERS[answer]))
            facts += [
                ("number", PROBABILITIES[grade], f"{decimal(100 * probability)} [% UCUM percent]", loops)
                for grade, probability in one["probabilities"].items()
            ]
    for one in ledger["not_measured"]:
        name = NAMES[one["task"]]
        answer = ABSENCES[one["kind"]] if one["task"] in UNITS else "373068000 SCT Undetermined"
        facts.append(("answer", name, answer))
        facts.append(("reason", f"{name.split(' ', 2)[2]}: {one['reason']}"))
    return facts


def found(content: Item) -> list[Fact]:
    """Return what the report says of every task, in the study's two groups and in those of its loops."""
    (measurements,) = named(content, "CONTAINER", "126010 DCM Imaging Measurements")
    facts: list[Fact] = []
    for group in measurements.children:
        (label,) = named(group, "TEXT", "112039 DCM Tracking Identifier")
        is_loop = label.value.startswith("Loop")
        for one in group.children:
            loops = " ".join(source.value.split()[1] for source in named(one, "IMAGE", SOURCE))
            if one.kind == "NUM" and not one.name.startswith("P-VIEW"):
                facts.append(("loop" if is_loop else "number", one.name, one.value, loops))
                facts += [("spread", one.name, spread.value) for spread in named(one, "NUM", SPREAD) if not is_loop]
            elif one.name in NAMES.values():
                facts.append(("answer", one.name, one.value))
            elif one.name == COMMENT and not is_loop:
                facts.append(("reason", one.value))
    return facts


def named(item: Item, kind: str, name: str) -> list[Item]:
    """Return the children of this value type and concept."""
    return [child for child in item.children if (child.kind, child.name) == (kind, name)]


def written(task: str, value: float) -> str:
    """Return a number as reports write it: EF to 0.1 point, volumes to 1 mL."""
    return f"{decimal(value) if task == 'lvef' else f'{value:.0f}'} [{UNITS[task]}]"


def decimal(value: float) -> str:
    """Return a number to one decimal, as a person writes it."""
    return f"{value:.1f}".removesuffix(".0")


def read_back(result: Composed, folder: Path) -> Item:
    """Return the content of a report as dcmtk reads it."""
    path = folder / "report.dcm"
    path.write_bytes(result.document.part10)
    return read(path).content


@pytest.mark.parametrize("name", STUDIES)
def test_the_report_says_what_the_ledger_keeps_and_nothing_else(
    name: str, files: list[Subject], tmp_path: Path
) -> None:
    result = composed(files, name)

    content = read_back(result, tmp_path)

    assert sorted(found(content)) == sorted(kept(result.ledger))


@pytest.mark.parametrize("name", STUDIES)
def test_every_note_and_every_refused_instance_stand_in_the_report(
    name: str, files: list[Subject], tmp_path: Path
) -> None:
    result = composed(files, name)

    comments = [child.value for child in read_back(result, tmp_path).children[-1].children]

    assert set(result.ledger["notes"]) <= set(comments)
    assert sum(one.endswith(STILL.reason) for one in comments) == STUDIES[name][0].count(STILL)


@pytest.mark.parametrize("name", STUDIES)
def test_two_runs_differ_in_the_dates_of_content_and_creation_alone(name: str, files: list[Subject]) -> None:
    one, other = composed(files, name, MONDAY), composed(files, name, TUESDAY)

    assert one.document.part10 != other.document.part10
    assert without_dates(one, MONDAY) == without_dates(other, TUESDAY)
    assert one.ledger == other.ledger


def test_the_order_in_which_instances_came_does_not_show(files: list[Subject]) -> None:
    predecessor = Predecessor(
        study_instance_uid="1.2.3", series_instance_uid="1.2", sop_class_uid="1.2", sop_instance_uid="1.2.8"
    )
    subjects = [replace(file, verdict=verdict) for file, verdict in zip(files, STUDIES["all answered"][0], strict=True)]

    one, other = (
        composed(files, "all answered", revision=2, predecessor=predecessor, subjects=tuple(order))
        for order in (subjects, subjects[::-1])
    )

    assert one.document.part10 == other.document.part10


def without_dates(run: Composed, at: datetime) -> bytes:
    """Return the file without the dates and times that may differ, each of which stands there twice."""
    content = run.document.part10
    for keyword, value in (
        (b"\x08\x00\x12\x00DA", at.strftime("%Y%m%d")),  # Instance Creation Date
        (b"\x08\x00\x13\x00TM", at.strftime("%H%M%S.%f")),  # Instance Creation Time
        (b"\x08\x00\x23\x00DA", at.strftime("%Y%m%d")),  # Content Date
        (b"\x08\x00\x33\x00TM", at.strftime("%H%M%S.%f")),  # Content Time
    ):
        padded = value.encode() + b" " * (len(value) % 2)
        element = keyword + len(padded).to_bytes(2, "little") + padded
        assert content.count(element) == 1
        content = content.replace(element, b"")
    return content
