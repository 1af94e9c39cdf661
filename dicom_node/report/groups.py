"""The measurement groups of a report (TID 1501): the left ventricle and the aortic valve of the study, and each loop.

Viewers need in every group a tracking UID of its own and exactly one region on one frame; a number is always full
(OHIF breaks on an empty one), so what was not measured is said by a code and a sentence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from highdicom.sr import CodedConcept, ContentItem

from dicom_node.report import concepts, tree
from dicom_node.report.findings import (
    UNITS,
    Abstained,
    EvaluatedFinding,
    Evaluation,
    Findings,
    LoopFinding,
    MeasuredValue,
    Measurement,
)
from dicom_node.report.origin import Origin
from dicom_node.report.pictures import Picture


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageReference:
    """An image that a report may point at."""

    sop_class_uid: str
    sop_instance_uid: str
    rows: int
    columns: int
    box: tuple[int, int, int, int]
    """The area that a region outlines: left, top, right, bottom, pixels."""
    frames: tuple[int, ...]
    """The frames that regions may lie on, counted from 1; none: the image has no frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupContext:
    """What every group of one report shares."""

    origin: Origin
    images: dict[str, ImageReference]
    """Every analysed loop by its SOP Instance UID."""
    illustrations: dict[str, Picture]
    """Where the networks looked in a loop, by the loop's SOP Instance UID."""
    fallback: ImageReference
    """Where a group without a loop of its own points."""

    def tracking(self, label: str) -> list[ContentItem]:
        """Return the identifiers of a group."""
        identifier = self.origin.uid(f"group/{label}")
        return [
            tree.text(concepts.TRACKING_ID, label, tree.OBSERVES),
            tree.uid(concepts.TRACKING_UID, identifier, tree.OBSERVES),
        ]

    def region(self, loops: Sequence[str], place: int) -> ContentItem:
        """Return the analysed area on one frame of the first loop: the frame at this place of those that may be.

        The groups of one loop have places of their own: OHIF writes the labels of a frame over each other.
        """
        where = next((self.images[uid] for uid in loops if uid in self.images), self.fallback)
        source = tree.image(
            concepts.SOURCE_IMAGE,
            where.sop_class_uid,
            where.sop_instance_uid,
            tree.SELECTED,
            frames=where.frames[: place + 1][-1:],
        )
        return tree.rectangle(concepts.IMAGE_REGION, where.box, source)

    def sources(self, loops: Sequence[str], frames: Sequence[int] = ()) -> list[ContentItem]:
        """Return the loops that a number was inferred from."""
        return [
            tree.image(
                concepts.SOURCE_OF_MEASUREMENT, self.images[uid].sop_class_uid, uid, tree.INFERRED, frames=frames
            )
            for uid in loops
        ]

    def illustration(self, loop: str) -> list[ContentItem]:
        """Return the picture of a loop, if there is one."""
        one = self.illustrations.get(loop)
        if one is None:
            return []
        return [tree.image(concepts.ILLUSTRATION, one.sop_class_uid, one.sop_instance_uid, tree.CONTAINS)]

    def identification(self, task: str, members: int | None, sd: float | None = None) -> list[ContentItem]:
        """Return who computed a number (TID 4019), and what its uncertainty is if it has one."""
        algorithm = self.origin.algorithm
        parameters = [f"task={task}", f"ensemble sha256={algorithm.ensemble_digest}"]
        if members is not None:
            parameters.append(f"members={members}")
        if sd is not None:
            parameters.append("uncertainty=ensemble standard deviation, k=1")
        return [
            tree.text(concepts.ALGORITHM_NAME, algorithm.name, tree.MODIFIES),
            tree.text(concepts.ALGORITHM_VERSION, algorithm.version, tree.MODIFIES),
            *(tree.text(concepts.ALGORITHM_PARAMETERS, one, tree.MODIFIES) for one in parameters),
            tree.code(concepts.ALGORITHM_FAMILY, concepts.ARTIFICIAL_INTELLIGENCE, tree.MODIFIES),
        ]


def left_ventricle(findings: Findings, context: GroupContext) -> ContentItem:
    """Return the study's group of the left ventricle: LVEF, volumes and depressed function."""
    used = [uid for one in findings.measurements for uid in one.loops]
    children = [
        *context.tracking("Study: left ventricle"),
        *_about(concepts.LEFT_VENTRICLE, None),  # OHIF writes a group's site among its numbers; each number has its own
        *(_study_number(one, context) for one in findings.measurements),
    ]
    for evaluation in _of(findings.evaluations, Evaluation.LVEF_REDUCED):
        used += evaluation.loops
        children += _reduced(evaluation, context)
    for abstained in findings.abstentions:
        if abstained.task is not Evaluation.AORTIC_STENOSIS:
            children += _not_measured(abstained)
    return tree.container(concepts.GROUP, [*children, context.region(used, 0)], template="1501")


def aortic_valve(findings: Findings, context: GroupContext) -> ContentItem:
    """Return the study's group of the aortic valve: the grade of its stenosis."""
    children = [
        *context.tracking("Study: aortic valve"),
        *_about(concepts.EVALUATED[Evaluation.AORTIC_STENOSIS], concepts.AORTIC_VALVE),
    ]
    used: list[str] = []
    for evaluation in _of(findings.evaluations, Evaluation.AORTIC_STENOSIS):
        used += evaluation.loops
        children += _grade(evaluation, context)
    for abstained in findings.abstentions:
        if abstained.task is Evaluation.AORTIC_STENOSIS:
            children += _not_measured(abstained)
    return tree.container(concepts.GROUP, [*children, context.region(used, 1)], template="1501")


def loop(finding: LoopFinding, label: str, context: GroupContext) -> ContentItem:
    """Return one loop's group: its view, its own numbers and its picture."""
    children = [*context.tracking(label), *_about(concepts.LEFT_VENTRICLE, None), *_view(finding, context)]
    for one in finding.numbers:
        below = [
            tree.code(concepts.METHOD, concepts.VIDEO_REGRESSION, tree.MODIFIES),
            tree.code(concepts.FINDING_SITE, concepts.LEFT_VENTRICLE, tree.MODIFIES),
            *context.sources([finding.sop_instance_uid], finding.frames_used),
            *context.identification(one.task, None, one.sd),
            *_uncertainty(one.sd, one.task),
        ]
        children.append(_measurement(one.task, one.value, below))
    children += [context.region([finding.sop_instance_uid], 2), *context.illustration(finding.sop_instance_uid)]
    return tree.container(concepts.GROUP, children, template="1501")


def _view(finding: LoopFinding, context: GroupContext) -> list[ContentItem]:
    """Return the view of a loop, or why it has none; first, so that a viewer says whose numbers follow."""
    view = concepts.VIEWS.get(finding.view or "")
    if view is None:
        seen = "view: none that a number is measured in" if finding.view else "view not recognised"
        if finding.uncertain_view is not None:
            seen = f"view uncertain, {finding.uncertain_view} at best"
        comment = finding.contradiction or f"{seen} (probability {finding.view_probability:.0%})"
        return [tree.text(concepts.COMMENT, comment, tree.CONTAINS)]
    below = [
        *context.sources([finding.sop_instance_uid]),
        *context.identification("view", None),
        tree.code(concepts.IMAGE_VIEW, view, tree.MODIFIES),
    ]
    return [
        _probability(concepts.P_VIEWS[finding.view or ""], finding.view_probability, below),
        tree.code(concepts.IMAGE_VIEW, view, tree.CONTAINS),
    ]


def rounded(task: Measurement, value: float) -> float:
    """Return the value as reports write it: EF to 0.1 point, volumes to 1 mL."""
    return round(value, 1) if task is Measurement.LVEF else round(value)


def _about(finding: CodedConcept, site: CodedConcept | None) -> list[ContentItem]:
    items = [tree.code(concepts.FINDING, finding, tree.CONTAINS)]
    if site is not None:
        items.append(tree.code(concepts.FINDING_SITE, site, tree.MODIFIES))
    return items


def _of(evaluations: Sequence[EvaluatedFinding], task: Evaluation) -> list[EvaluatedFinding]:
    return [one for one in evaluations if one.task is task]


def _study_number(one: MeasuredValue, context: GroupContext) -> ContentItem:
    below = [tree.code(concepts.METHOD, concepts.VIDEO_REGRESSION, tree.MODIFIES)]
    if len(one.loops) > 1 or one.members > 1:
        below.append(tree.code(concepts.DERIVATION, concepts.MEAN, tree.MODIFIES))
    below += [
        tree.code(concepts.FINDING_SITE, concepts.LEFT_VENTRICLE, tree.MODIFIES),
        *context.sources(one.loops),
        *context.identification(one.task, one.members, one.sd),
        *_uncertainty(one.sd, one.task),
    ]
    return _measurement(one.task, one.value, below)


def _measurement(task: Measurement, value: float, below: Sequence[ContentItem]) -> ContentItem:
    unit = concepts.UNITS[UNITS[task]]
    return tree.number(concepts.MEASURED[task], rounded(task, value), unit, children=below)


def _uncertainty(sd: float | None, task: Measurement) -> list[ContentItem]:
    if sd is None:
        return []
    # TID 310 row 5, in the unit of the number; volumes keep a decimal here, so that a small spread does not read 0.
    return [tree.number(concepts.UNCERTAINTY, round(sd, 1), concepts.UNITS[UNITS[task]], relationship=tree.PROPERTY)]


def _probability(name: CodedConcept, probability: float, below: Sequence[ContentItem]) -> ContentItem:
    return tree.number(name, round(100.0 * probability, 1), concepts.UNITS["%"], children=below)


def _reduced(one: EvaluatedFinding, context: GroupContext) -> list[ContentItem]:
    name = concepts.EVALUATED[Evaluation.LVEF_REDUCED]
    below = [
        *context.sources(one.loops),
        *context.identification(one.task, one.members),
        tree.code(concepts.FINDING, name, tree.MODIFIES),
    ]
    return [
        _probability(concepts.P_REDUCED, one.probabilities["reduced"], below),
        tree.code(name, concepts.PRESENCE[one.value], tree.CONTAINS),
    ]


def _grade(one: EvaluatedFinding, context: GroupContext) -> list[ContentItem]:
    items = [
        _probability(
            concepts.P_GRADES[grade],
            probability,
            [
                *context.sources(one.loops),
                *context.identification(one.task, one.members),
                tree.code(concepts.SEVERITY, concepts.GRADES[grade], tree.MODIFIES),
            ],
        )
        for grade, probability in one.probabilities.items()
    ]
    name = concepts.EVALUATED[Evaluation.AORTIC_STENOSIS]
    return [*items, tree.code(name, concepts.GRADES[one.value], tree.CONTAINS)]


def _not_measured(one: Abstained) -> list[ContentItem]:
    if isinstance(one.task, Measurement):
        name = concepts.MEASURED[one.task]
        answer = tree.code(name, concepts.NOT_MEASURED[one.kind], tree.CONTAINS)
    else:
        name = concepts.EVALUATED[one.task]
        answer = tree.code(name, concepts.UNDETERMINED, tree.CONTAINS)
    return [answer, tree.text(concepts.COMMENT, f"{name.meaning}: {one.reason}", tree.CONTAINS)]
