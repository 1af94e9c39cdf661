"""From the outputs of loops to one answer a study and task, or to the reason why there is none.

Pure: the same outputs give the same bits, in whatever order the loops arrived; no finite or infinite number raises.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from model.prediction import (
    Absence,
    Abstention,
    EnsembleInfo,
    Loop,
    LoopNumber,
    LoopOutputs,
    LoopView,
    StudyPrediction,
    TaskResult,
)
from model.tasks import CATALOGUE, REPORTED_TASKS, STUDY_TASKS, Kind, Scope, Task, TaskInfo, View

UNDETERMINED_BAND = (0.4, 0.6)
"""A binary task whose mean probability lies in here, ends included, is not answered: a coin would do as well."""

MIN_GRADE_PROBABILITY = 0.4
"""Smallest mean probability of the most probable grade (chance is 0.2) at which a grade is given."""

_NOT_RECOGNISED, _CONTRADICTED = "not recognised", "contradicted by the header"

EF_DIFFERENCE_NOTED = 8.0
"""Points between the LVEF and (EDV-ESV)/EDV above which the report says so."""

EF_DIFFERENCE_REFUSED = 15.0
"""Points between the LVEF and (EDV-ESV)/EDV above which neither the LVEF nor a volume is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedLoop:
    """A loop and the view that the ensemble recognised in it."""

    loop: Loop
    view: View | None
    """None: not recognised, or contradicted."""
    probability: float
    """Mean probability of the most probable view; 0 if there is none."""
    uncertain: View | None = None
    """The most probable view of a loop that is not recognised, but may be this one."""
    contradicted: View | None = None
    """The view that the ensemble recognised although the header names another one."""


def gate(loop: Loop, info: EnsembleInfo) -> GatedLoop:
    """Return the loop with its view: the most probable by the mean over the members, if that reaches the threshold.

    A header that names another view contradicts it: one of them is wrong, and the loop has none.
    """
    means = _class_means(loop.outputs.get(Task.VIEW, []), CATALOGUE[Task.VIEW])
    if means is None:
        return GatedLoop(loop=loop, view=None, probability=0.0)
    probability = max(means)
    view = list(View)[means.index(probability)]
    if probability < info.view_threshold:
        is_close = probability >= info.view_floor and loop.header_view in (None, view)
        return GatedLoop(loop=loop, view=None, probability=probability, uncertain=view if is_close else None)
    if loop.header_view not in (None, view):
        return GatedLoop(loop=loop, view=None, probability=probability, contradicted=view)
    return GatedLoop(loop=loop, view=view, probability=probability)


def speaks_for(loop: Loop, info: EnsembleInfo) -> frozenset[Task]:
    """Return the tasks that a loop's own number counts for, by its view."""
    view = gate(loop, info).view
    return frozenset(
        task
        for task, views in info.views.items()
        if task in REPORTED_TASKS and CATALOGUE[task].scope is Scope.LOOP and view in views
    )


def stills_wanted(loops: Iterable[Loop], info: EnsembleInfo) -> tuple[str, ...]:
    """Return the keys of the loops whose stills make the stack of the study's tasks, in the order of the stack.

    The order is that of the views (A4C, A2C, PLAX, PSAX), then of the keys; empty if no task wants a stack.
    """
    views = frozenset[View]().union(*(info.views[task] for task in STUDY_TASKS if task in info.views))
    order = list(View)
    gated = [one for one in _gate_all(loops, info) if one.view in views]
    return tuple(one.loop.key for one in sorted(gated, key=lambda one: order.index(one.view or View.OTHER)))


def aggregate(loops: Iterable[Loop], study_outputs: LoopOutputs | None, info: EnsembleInfo) -> StudyPrediction:
    """Return what the ensemble says about a study.

    Args:
        loops: every analysed B-mode loop of the study, each key once, in any order.
        study_outputs: what the ensemble said about the stack that `stills_wanted` names; None: there was no stack.
        info: the ensemble that made all of these outputs.
    """
    gated = _gate_all(loops, info)
    answers = [_answer(CATALOGUE[task], gated, study_outputs, info) for task in REPORTED_TASKS]
    results = [answer for answer in answers if isinstance(answer, TaskResult)]
    abstentions = [answer for answer in answers if isinstance(answer, Abstention)]
    results, contradicted, notes = _compare_with_volumes(results)
    order = list(CATALOGUE)
    return StudyPrediction(
        ensemble=info,
        results=tuple(results),
        abstentions=tuple(sorted(abstentions + contradicted, key=lambda one: order.index(one.task))),
        loops=tuple(_loop_view(one, info) for one in gated),
        notes=(*notes, *_contradictions(gated)),
    )


def _gate_all(loops: Iterable[Loop], info: EnsembleInfo) -> list[GatedLoop]:
    ordered = sorted(loops, key=lambda loop: loop.key)
    assert all(one.key < next_one.key for one, next_one in pairwise(ordered)), "a loop was given twice"
    return [gate(loop, info) for loop in ordered]


def _answer(
    info: TaskInfo, gated: Sequence[GatedLoop], study_outputs: LoopOutputs | None, ensemble: EnsembleInfo
) -> TaskResult | Abstention:
    if info.task not in ensemble.views:
        return _abstain(info, Absence.NOT_ATTEMPTED, "the ensemble has no network for this measurement")
    used = [one.loop for one in gated if one.view in ensemble.views[info.task]]
    if not used:
        close = [one for one in gated if one.uncertain in ensemble.views[info.task]]
        kind = Absence.INDETERMINATE if close else Absence.NOT_ATTEMPTED
        return _abstain(info, kind, _nothing_to_see(info, gated) + _perhaps(close, ensemble))
    if info.scope is Scope.STUDY:
        if study_outputs is None or not study_outputs.get(info.task):
            return _abstain(info, Absence.FAILURE, "the stills of the study were not analysed")
        members = study_outputs[info.task]
        if _class_means(members, info) is None:
            return _abstain(info, Absence.FAILURE, "the network gave no finite number for the stills of the study")
        return _from_probabilities(info, members, used)
    return _from_loops(info, used)


def _from_loops(info: TaskInfo, used: Sequence[Loop]) -> TaskResult | Abstention:
    """Return the answer from one number a loop and member."""
    table = [[member[0] for member in loop.outputs.get(info.task, []) if len(member) == 1] for loop in used]
    num_members = len(table[0])
    num_bad = sum(not row or len(row) != num_members or not _all_finite(row) for row in table)
    if num_bad:
        return _abstain(
            info, Absence.FAILURE, f"the network gave no finite number for {num_bad} of {_count(len(used), 'loop')}"
        )
    by_member = [_mean([row[member] for row in table]) for member in range(num_members)]
    value, sd = _mean(by_member), _sd(by_member)
    per_loop = {loop.key: _mean(row) for loop, row in zip(used, table, strict=True)}
    probabilities = None
    answer: float | bool = value
    if not info.low <= value <= info.high:
        return _abstain(
            info,
            Absence.OUT_OF_RANGE,
            f"the value {_show(value, info)} is outside the plausible range"
            f" {_show(info.low, info)} to {_show(info.high, info)}",
        )
    if _disagree(sd, info):
        return _abstain(info, Absence.INDETERMINATE, _disagreement(sd, info))
    if info.kind is Kind.BINARY:
        low, high = UNDETERMINED_BAND
        if low <= value <= high:
            return _abstain(
                info,
                Absence.INDETERMINATE,
                f"the probability {value:.2f} is too close to one half (undetermined from {low:.2f} to {high:.2f})",
            )
        probabilities = {"reduced": value}
        answer = value > high
    return TaskResult(
        task=info.task,
        value=answer,
        unit=info.unit,
        sd=sd,
        members=num_members,
        loops=tuple(loop.key for loop in used),
        probabilities=probabilities,
        per_loop=per_loop,
    )


def _from_probabilities(
    info: TaskInfo, members: Sequence[Sequence[float]], used: Sequence[Loop]
) -> TaskResult | Abstention:
    """Return the most probable class by the mean over the members."""
    means = [_mean([member[index] for member in members]) for index in range(len(info.classes))]
    winner = means.index(max(means))
    sd = _sd([member[winner] for member in members])
    if means[winner] < MIN_GRADE_PROBABILITY:
        return _abstain(
            info,
            Absence.INDETERMINATE,
            f"no grade is probable enough (the most probable, {info.classes[winner]}, has p = {means[winner]:.2f})",
        )
    if _disagree(sd, info):
        return _abstain(info, Absence.INDETERMINATE, _disagreement(sd, info))
    return TaskResult(
        task=info.task,
        value=info.classes[winner],
        unit=info.unit,
        sd=sd,
        members=len(members),
        loops=tuple(loop.key for loop in used),
        probabilities=dict(zip(info.classes, means, strict=True)),
        per_loop={},
    )


def _compare_with_volumes(results: list[TaskResult]) -> tuple[list[TaskResult], list[Abstention], list[str]]:
    """Return the results that stand beside each other, the abstentions of those that do not, and a note in between."""
    values = {result.task: result.value for result in results}
    trio = (Task.LVEF, Task.LVEDV, Task.LVESV)
    if any(task not in values for task in trio):
        return results, [], []
    lvef_percent, edv_ml, esv_ml = (float(values[task]) for task in trio)
    by_volumes_percent = 100.0 * (edv_ml - esv_ml) / edv_ml
    difference = abs(lvef_percent - by_volumes_percent)
    words = (
        f"the LVEF ({lvef_percent:.1f} %) and the volumes (EDV {edv_ml:.0f} mL, ESV {esv_ml:.0f} mL,"
        f" hence {by_volumes_percent:.1f} %) differ by {difference:.1f} points"
    )
    if difference > EF_DIFFERENCE_REFUSED:
        contradicted = [_abstain(CATALOGUE[task], Absence.INDETERMINATE, words) for task in trio]
        return [result for result in results if result.task not in trio], contradicted, []
    return results, [], [words[0].upper() + words[1:] + "."] if difference > EF_DIFFERENCE_NOTED else []


def _loop_view(gated: GatedLoop, ensemble: EnsembleInfo) -> LoopView:
    reason = "" if gated.view else f"view not recognised (p={gated.probability:.2f})"
    if gated.uncertain is not None:
        reason = f"view uncertain, {gated.uncertain} at best (p={gated.probability:.2f})"
    if gated.contradicted is not None:
        reason = (
            f"the header names {_named(gated.loop.header_view)}, the picture looks like {_seen_as(gated.contradicted)}"
            f" (p={gated.probability:.2f}): not used"
        )
    return LoopView(
        key=gated.loop.key,
        view=gated.view,
        probability=gated.probability,
        uncertain=gated.uncertain,
        reason=reason,
        is_contradicted=gated.contradicted is not None,
        numbers=tuple(_loop_numbers(gated, ensemble)),
    )


def _loop_numbers(gated: GatedLoop, ensemble: EnsembleInfo) -> Iterable[LoopNumber]:
    for task, info in CATALOGUE.items():
        if info.kind is Kind.REGRESSION and gated.view in ensemble.views.get(task, ()):
            values = [member[0] for member in gated.loop.outputs.get(task, []) if len(member) == 1]
            if values and _all_finite(values) and info.low <= _mean(values) <= info.high:
                yield LoopNumber(task=task, value=_mean(values), sd=_sd(values))


def _nothing_to_see(info: TaskInfo, gated: Sequence[GatedLoop]) -> str:
    if not gated:
        return "the study has no B-mode loop that could be analysed"
    wanted = "apical 4- or 2-chamber loop" if View.PLAX not in info.views else "apical or parasternal view"
    seen = Counter(_shown(one) for one in gated)
    names = [view.value for view in View] + [_CONTRADICTED, _NOT_RECOGNISED]
    found = ", ".join(f"{seen[name]} {name}" for name in names if seen[name])
    return f"no {wanted} was found among {_count(len(gated), 'B-mode loop')} ({found})"


def _perhaps(close: Sequence[GatedLoop], ensemble: EnsembleInfo) -> str:
    """Return in words that loops may show what is wanted; empty: none does."""
    if not close:
        return ""
    best = max(close, key=lambda one: one.probability)
    return (
        f"; {_count(len(close), 'loop')} may show one, but not surely enough (at best {best.uncertain} with"
        f" p={best.probability:.2f}, needed {ensemble.view_threshold:.2f})"
    )


def _shown(one: GatedLoop) -> str:
    if one.contradicted is not None:
        return _CONTRADICTED
    return _NOT_RECOGNISED if one.view is None else one.view.value


def _named(view: View | None) -> str:
    return "another view" if view in (None, View.OTHER) else f"the view {view}"


def _seen_as(view: View) -> str:
    return (
        f"none of {', '.join(known for known in View if known is not View.OTHER)}"
        if view is View.OTHER
        else _named(view)
    )


def _contradictions(gated: Sequence[GatedLoop]) -> list[str]:
    number = sum(one.contradicted is not None for one in gated)
    verb = "shows" if number == 1 else "show"
    return [f"{_count(number, 'loop')} {verb} another view than the header names; not used."] if number else []


def _disagree(sd: float | None, info: TaskInfo) -> bool:
    return sd is not None and not sd <= info.max_sd


def _disagreement(sd: float | None, info: TaskInfo) -> str:
    assert sd is not None
    limits = f"standard deviation {_show(sd, info)}, at most {_show(info.max_sd, info)}"
    return f"the members of the ensemble disagree ({limits})"


def _show(value: float, info: TaskInfo) -> str:
    if not info.unit:
        return f"{value:.2f}"
    number = f"{value:.0f}" if info.unit == "mL" else f"{value:.1f}"
    return f"{number if abs(value) < 1e6 else f'{value:.1e}'} {info.unit}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _abstain(info: TaskInfo, kind: Absence, reason: str) -> Abstention:
    return Abstention(task=info.task, kind=kind, reason=reason)


def _class_means(members: Sequence[Sequence[float]], info: TaskInfo) -> list[float] | None:
    """Return the mean probability of each class, None if a member gave something else."""
    if not members or any(len(member) != len(info.classes) or not _all_finite(member) for member in members):
        return None
    return [_mean([member[index] for member in members]) for index in range(len(info.classes))]


def _all_finite(values: Iterable[float]) -> bool:
    return all(math.isfinite(value) for value in values)


def _mean(values: Sequence[float]) -> float:
    """Return the exactly rounded mean of finite numbers, so that their order does not matter."""
    try:
        return math.fsum(values) / len(values)
    except OverflowError:
        return math.inf


def _sd(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, None of a single value."""
    if len(values) < 2:
        return None
    mean = _mean(values)
    deviations = [value - mean for value in values]
    squares = [deviation * deviation for deviation in deviations]
    return math.sqrt(_mean(squares) * len(values) / (len(values) - 1)) if _all_finite(squares) else math.inf
