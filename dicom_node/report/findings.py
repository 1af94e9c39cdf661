"""What a report says, in the node's own words: the one input of the document builder.

The worker translates the model's predictions into these types (worker/findings.py); nothing here knows a network.
"""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Measurement(StrEnum):
    """A number of the left ventricle."""

    LVEF = "lvef"
    """Left ventricular ejection fraction, %."""
    LVEDV = "lvedv"
    """Left ventricular end-diastolic volume, mL."""
    LVESV = "lvesv"
    """Left ventricular end-systolic volume, mL."""


UNITS = MappingProxyType({Measurement.LVEF: "%", Measurement.LVEDV: "mL", Measurement.LVESV: "mL"})
"""Unit of each number."""

SHORT_NAMES = MappingProxyType({Measurement.LVEF: "LVEF", Measurement.LVEDV: "LV EDV", Measurement.LVESV: "LV ESV"})
"""As people call them."""

SCALES = MappingProxyType({Measurement.LVEF: 90.0, Measurement.LVEDV: 300.0, Measurement.LVESV: 250.0})
"""Where an axis ends on which a number is shown, in its unit; it begins at 0."""


class Evaluation(StrEnum):
    """A qualitative finding."""

    LVEF_REDUCED = "lvef_reduced"
    """LVEF below 50 %."""
    AORTIC_STENOSIS = "aortic_stenosis"
    """Grade of aortic stenosis."""


class NotMeasured(StrEnum):
    """Why there is no value (CID 42)."""

    NOT_ATTEMPTED = "not_attempted"
    """No loop could carry it: 114007."""
    FAILURE = "failure"
    """The computation failed: 114006."""
    INDETERMINATE = "indeterminate"
    """The members or the measurements contradict each other: 114011."""
    OUT_OF_RANGE = "out_of_range"
    """The value is not plausible: 114009."""


class PictureKind(StrEnum):
    """What a picture is."""

    SALIENCY = "saliency"
    """Attention rollout over one loop: Multi-frame True Color Secondary Capture."""
    SUMMARY = "summary"
    """The report on one page: Secondary Capture."""
    SUMMARY_PDF = "summary_pdf"
    """The same page: Encapsulated PDF."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Algorithm:
    """Who computed it (TID 4019)."""

    name: str
    """Echo-Vision-FM and the ensemble's name."""
    version: str
    ensemble_digest: str
    """sha256, hexadecimal."""
    statement: str
    """Such as "untrained weights: numbers have no meaning"; stands in every report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopNumber:
    """One loop's own number for one task."""

    task: Measurement
    value: float
    sd: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopFinding:
    """One analysed loop."""

    sop_instance_uid: str
    sop_class_uid: str
    rows: int
    columns: int
    num_frames: int
    box: tuple[int, int, int, int]
    """What of the screen was analysed: left, top, right, bottom, pixels from its upper left corner, inside it."""
    frames_used: tuple[int, ...]
    """1-based frame numbers of the clip, ascending, without repeats."""
    series_number: int | None
    instance_number: int | None
    view: str | None
    """A4C, A2C, PLAX, PSAX or other; None: not recognised, or contradicted by the header."""
    view_probability: float
    """0..1, of the most probable view."""
    uncertain_view: str | None
    """The view of a loop that is not recognised, but may be this one."""
    contradiction: str
    """In words, if the header names another view than the picture shows; such a loop has no view and no number."""
    numbers: tuple[LoopNumber, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredValue:
    """A study-level number with its spread."""

    task: Measurement
    value: float
    unit: str
    """"%" or "mL"."""
    sd: float | None
    """Ensemble standard deviation, k=1, same unit; None with one member."""
    members: int
    loops: tuple[str, ...]
    """SOP Instance UIDs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedFinding:
    """A study-level qualitative finding."""

    task: Evaluation
    value: str
    """lvef_reduced: "present", "absent"; aortic_stenosis: no, mild, mildtomod, moderate, severe."""
    probabilities: dict[str, float]
    """Class to 0..1: {"reduced": p} or one a grade."""
    members: int
    loops: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Abstained:
    """A task without a value, and why."""

    task: Measurement | Evaluation
    kind: NotMeasured
    reason: str
    """One sentence for the cardiologist."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusedInstance:
    """An instance of the study that carried no number, and why."""

    sop_instance_uid: str
    sop_class_uid: str
    series_number: int | None
    instance_number: int | None
    num_frames: int | None
    reason: str
    """In words; without the numbers above."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CartValue:
    """A number that the ultrasound cart measured itself; it is shown, and changes none of ours."""

    measurement: Measurement
    value: float
    unit: str
    """"%" or "mL"."""
    method: str
    """In words, such as "biplane" or "4-chamber"; empty: the cart names none."""
    sop_instance_uid: str
    """Of the cart's report."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """All that one report says."""

    algorithm: Algorithm
    measurements: tuple[MeasuredValue, ...]
    evaluations: tuple[EvaluatedFinding, ...]
    abstentions: tuple[Abstained, ...]
    loops: tuple[LoopFinding, ...]
    refused: tuple[RefusedInstance, ...]
    notes: tuple[str, ...]
    """Further sentences, such as a difference between EF and the volumes."""
    cart: tuple[CartValue, ...] = ()
    """What the cart's own reports say of the same quantities."""

    @property
    def carriers(self) -> frozenset[str]:
        """Return the SOP Instance UIDs of the loops whose own number counts; a grade is of stills of all loops."""
        reduced = (one.loops for one in self.evaluations if one.task is Evaluation.LVEF_REDUCED)
        return frozenset(uid for loops in (*(one.loops for one in self.measurements), *reduced) for uid in loops)


@dataclass(frozen=True, kw_only=True, slots=True)
class Predecessor:
    """The report that this one takes the place of."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str
