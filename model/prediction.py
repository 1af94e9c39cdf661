"""What the networks say: decoded numbers of a loop, and what they amount to for a study."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from model.tasks import CATALOGUE, Kind, Task, View

LoopOutputs = dict[Task, list[list[float]]]
"""task -> member -> decoded values: [value] in the task's unit, [p of the positive class], or [p of each class]."""


class Absence(StrEnum):
    """Why a task has no value."""

    NOT_ATTEMPTED = "not_attempted"
    """Nothing in the study could carry it."""
    FAILURE = "failure"
    """The computation gave no number."""
    INDETERMINATE = "indeterminate"
    """The members, or the measurements, contradict each other, or no class is probable enough."""
    OUT_OF_RANGE = "out_of_range"
    """The number is not plausible."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleInfo:
    """What a study's prediction must know about the networks that made it."""

    name: str
    """Name of the ensemble."""
    version: str
    """Its version."""
    statement: str
    """What its numbers are worth, such as "untrained weights: numbers have no meaning"."""
    digest: str
    """sha256 over the manifest and every bundle, hexadecimal."""
    views: Mapping[Task, frozenset[View]]
    """Each task that at least one member carries -> views that may speak for it: those that every member was trained on
    and that the catalogue allows."""
    view_threshold: float
    """Smallest mean probability at which a view counts as recognised, 0..1."""
    view_floor: float
    """From here up to the threshold a view is uncertain: a measurement for want of it is undetermined; under it the
    loop counts as one of no view. 0..threshold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loop:
    """One analysed loop."""

    key: str
    """SOP Instance UID; unique in a study."""
    outputs: LoopOutputs
    """What the ensemble said about it."""
    header_view: View | None = None
    """The view that the file's header names; None: it names none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopNumber:
    """One loop's own value of a regression task."""

    task: Task
    value: float
    """Mean over the members, in the task's unit."""
    sd: float | None
    """Standard deviation over the members; None with one member."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopView:
    """What a loop shows and said."""

    key: str
    """SOP Instance UID."""
    view: View | None
    """The recognised view; None: not recognised, or contradicted by the header."""
    probability: float
    """Mean probability of the most probable view, 0..1."""
    uncertain: View | None
    """The most probable view of a loop whose view is not recognised, but may be this one."""
    reason: str
    """Why the view is None, in words; empty if it was recognised."""
    is_contradicted: bool
    """The header names another view than the networks recognise: one of them is wrong, and the loop stays silent."""
    numbers: tuple[LoopNumber, ...]
    """The loop's own plausible values for the regression tasks that its view may speak for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """A task's value for the study."""

    task: Task
    value: float | str | bool
    """Number in `unit`; the class name of a grade; True or False of a binary task."""
    unit: str
    """"%", "mL" or ""."""
    sd: float | None
    """Standard deviation over the members of what each says for the study; None with one member."""
    members: int
    """How many networks spoke."""
    loops: tuple[str, ...]
    """Keys of the loops used, ascending."""
    probabilities: dict[str, float] | None
    """Class to mean probability; of a binary task {"reduced": p}; None for a number."""
    per_loop: dict[str, float]
    """Each used loop's mean over the members: a number, or a probability; empty for a task of the whole study."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Abstention:
    """A task without a value, and why."""

    task: Task
    kind: Absence
    reason: str
    """In words that a cardiologist understands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPrediction:
    """All that the ensemble says about a study: each reported task is either in `results` or in `abstentions`."""

    ensemble: EnsembleInfo
    results: tuple[TaskResult, ...]
    """In the order of the catalogue."""
    abstentions: tuple[Abstention, ...]
    """In the order of the catalogue."""
    loops: tuple[LoopView, ...]
    """Every loop given, by ascending key."""
    notes: tuple[str, ...]
    """Further sentences for the report."""


def decode(task: Task, raw: Sequence[float], view_temperature: float = 1.0) -> list[float]:
    """Return a head's outputs in the unit of its task, or as probabilities; what is not finite stays so.

    LVEF is learned as a fraction, volumes as ln(mL), classes as logits (paper 4.2; volumes always on the log scale).

    Args:
        task: whose head it is.
        raw: its outputs.
        view_temperature: divides the logits of the views, so that their probabilities come true as often as they say
            (Guo et al., ICML 2017).
    """
    info = CATALOGUE[task]
    assert len(raw) == info.num_outputs, f"{task} has {info.num_outputs} outputs, not {len(raw)}"
    if info.kind is Kind.CLASSES:
        return _softmax([value / view_temperature for value in raw] if task is Task.VIEW else raw)
    (value,) = raw
    if info.kind is Kind.BINARY:
        return [_sigmoid(value)]
    return [value * 100.0 if task is Task.LVEF else _exp(value)]


def mean_outputs(of_clips: Sequence[LoopOutputs]) -> LoopOutputs:
    """Return what each member says of a loop by what it says of the loop's clips: the mean of each decoded value."""
    first = of_clips[0]
    if len(of_clips) == 1:
        return first
    return {
        task: [
            [math.fsum(values) / len(values) for values in zip(*own, strict=True)]
            for own in zip(*(one[task] for one in of_clips), strict=True)
        ]
        for task in first
    }


def encode_target(task: Task, value: float) -> float:
    """Return what a regression head should put out for `value` in the task's unit: the inverse of `decode`."""
    assert CATALOGUE[task].kind is Kind.REGRESSION, f"{task} is no regression"
    return value / 100.0 if task is Task.LVEF else math.log(value)


def outputs_to_json(outputs: LoopOutputs) -> dict[str, list[list[float | None]]]:
    """Return the outputs as strict JSON, in which a number that is not finite is null."""
    return {
        task.value: [[value if math.isfinite(value) else None for value in member] for member in members]
        for task, members in outputs.items()
    }


def outputs_from_json(document: Mapping[str, Sequence[Sequence[float | None]]]) -> LoopOutputs:
    """Return what `outputs_to_json` was given; null becomes NaN.

    Raises:
        ValueError: a key is no task.
    """
    return {
        Task(key): [[math.nan if value is None else float(value) for value in member] for member in members]
        for key, members in document.items()
    }


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _sigmoid(value: float) -> float:
    if value >= 0.0:
        return 1.0 / (1.0 + _exp(-value))
    odds = _exp(value)
    return odds / (1.0 + odds)


def _softmax(values: Sequence[float]) -> list[float]:
    if not all(math.isfinite(value) for value in values):
        return [math.nan] * len(values)
    highest = max(values)
    weights = [math.exp(value - highest) for value in values]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
