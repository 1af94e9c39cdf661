"""The catalogue of tasks: what each number means, its unit, its plausible range and the views that may speak for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Task(StrEnum):
    """What the network is asked; the values name the heads of the network and the keys of stored outputs."""

    LVEF = "lvef"
    """Left ventricular ejection fraction, %."""
    LVEDV = "lvedv"
    """Left ventricular end-diastolic volume, mL."""
    LVESV = "lvesv"
    """Left ventricular end-systolic volume, mL."""
    LVEF_REDUCED = "lvef_reduced"
    """Whether the LVEF is under 50 %; the number is the probability that it is."""
    AORTIC_STENOSIS = "aortic_stenosis"
    """Grade of aortic stenosis, one answer a study."""
    VIEW = "view"
    """Echocardiographic view of a loop."""


class View(StrEnum):
    """A view; the order is the class order of the view head."""

    A4C = "A4C"
    """Apical four-chamber."""
    A2C = "A2C"
    """Apical two-chamber."""
    PLAX = "PLAX"
    """Parasternal long axis."""
    PSAX = "PSAX"
    """Parasternal short axis."""
    OTHER = "other"
    """Any other view."""


class Grade(StrEnum):
    """A grade of aortic stenosis (TMED-2's labels); the order is the class order of the head."""

    NONE = "no"
    """No aortic stenosis."""
    MILD = "mild"
    """Mild aortic stenosis."""
    MILD_TO_MODERATE = "mildtomod"
    """Mild to moderate aortic stenosis."""
    MODERATE = "moderate"
    """Moderate aortic stenosis."""
    SEVERE = "severe"
    """Severe aortic stenosis."""


class Kind(StrEnum):
    """What the outputs of a head are."""

    REGRESSION = "regression"
    """One number in the task's unit."""
    BINARY = "binary"
    """One logit; its sigmoid is the probability of the positive class."""
    CLASSES = "classes"
    """One logit a class; their softmax are the probabilities."""


class Scope(StrEnum):
    """What one pass of the network for this task looks at."""

    LOOP = "loop"
    """One cine loop."""
    STUDY = "study"
    """A stack of stills of the whole study."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskInfo:
    """All that the model knows about a task."""

    task: Task
    """The task itself."""
    kind: Kind
    """What the head's outputs are."""
    scope: Scope
    """What one answer is about."""
    unit: str
    """Unit of the decoded value: "%", "mL" or "" (probabilities)."""
    num_outputs: int
    """Outputs of the head."""
    classes: tuple[str, ...]
    """Names of the classes in the order of the outputs; empty unless the kind is CLASSES."""
    low: float
    """Smallest plausible value of a study, in `unit`."""
    high: float
    """Largest plausible value of a study, in `unit`."""
    views: frozenset[View]
    """Views whose loops (or stills) may speak for this task; empty for the view task itself, which asks every loop."""
    max_sd: float
    """Largest standard deviation over the members, in `unit`, that still counts as agreement."""
    title: str
    """Name of the measurement for people."""


APICAL = frozenset({View.A4C, View.A2C})
"""Views that show the left ventricle as the volume and LVEF heads learned it."""

VALVE = frozenset({View.A4C, View.A2C, View.PLAX, View.PSAX})
"""Views whose stills make up the stack of the aortic stenosis head."""


def _info(
    task: Task,
    title: str,
    *,
    kind: Kind = Kind.REGRESSION,
    scope: Scope = Scope.LOOP,
    unit: str = "",
    classes: tuple[str, ...] = (),
    plausible: tuple[float, float] = (0.0, 1.0),
    views: frozenset[View] = APICAL,
    max_sd: float,
) -> TaskInfo:
    low, high = plausible
    return TaskInfo(
        task=task,
        kind=kind,
        scope=scope,
        unit=unit,
        num_outputs=len(classes) or 1,
        classes=classes,
        low=low,
        high=high,
        views=views,
        max_sd=max_sd,
        title=title,
    )


CATALOGUE: Mapping[Task, TaskInfo] = MappingProxyType(
    {
        info.task: info
        for info in (
            _info(Task.LVEF, "left ventricular ejection fraction", unit="%", plausible=(5.0, 90.0), max_sd=10.0),
            _info(Task.LVEDV, "left ventricular end-diastolic volume", unit="mL", plausible=(15.0, 600.0), max_sd=40.0),
            _info(Task.LVESV, "left ventricular end-systolic volume", unit="mL", plausible=(4.0, 550.0), max_sd=40.0),
            _info(
                Task.LVEF_REDUCED, "reduced left ventricular ejection fraction (< 50 %)", kind=Kind.BINARY, max_sd=0.3
            ),
            _info(
                Task.AORTIC_STENOSIS,
                "grade of aortic stenosis",
                kind=Kind.CLASSES,
                scope=Scope.STUDY,
                classes=tuple(grade.value for grade in Grade),
                views=VALVE,
                max_sd=0.3,
            ),
            _info(
                Task.VIEW,
                "view",
                kind=Kind.CLASSES,
                classes=tuple(view.value for view in View),
                views=frozenset(),
                max_sd=1.0,
            ),
        )
    }
)
"""Every task once, in the order in which people read them."""

LOOP_TASKS: tuple[Task, ...] = tuple(task for task, info in CATALOGUE.items() if info.scope is Scope.LOOP)
"""Tasks that look at one loop, the view among them."""

STUDY_TASKS: tuple[Task, ...] = tuple(task for task, info in CATALOGUE.items() if info.scope is Scope.STUDY)
"""Tasks that look at a stack of stills of the whole study."""

REPORTED_TASKS: tuple[Task, ...] = tuple(task for task in CATALOGUE if task is not Task.VIEW)
"""Tasks whose study value, or the reason for its absence, stands in the report."""
