"""The one translation: from what the model predicts to what the node reports."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dicom_node.report.findings import (
    UNITS,
    Abstained,
    Algorithm,
    CartValue,
    EvaluatedFinding,
    Evaluation,
    Findings,
    LoopFinding,
    LoopNumber,
    MeasuredValue,
    Measurement,
    NotMeasured,
    RefusedInstance,
)
from model.clip.sector import Sector
from model.prediction import EnsembleInfo, LoopView, StudyPrediction, TaskResult
from model.tasks import Task
from worker.loops import AnalysedLoop, RefusedLoop

ALGORITHM = "Echo-Vision-FM"
"""Name of the network in every report (Nat Commun 2025, 10.1038/s41467-025-66340-4)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Screen:
    """What the header of an instance says about its screen."""

    sop_class_uid: str
    rows: int | None
    columns: int | None
    num_frames: int | None
    series_number: int | None
    instance_number: int | None


def to_findings(
    prediction: StudyPrediction,
    analysed: Mapping[str, AnalysedLoop],
    refused: Mapping[str, RefusedLoop],
    screens: Mapping[str, Screen],
    cart: Sequence[CartValue] = (),
) -> Findings:
    """Return the prediction in the node's words.

    Args:
        prediction: of the study whose loops are `analysed`.
        analysed: every loop with a result, by SOP Instance UID.
        refused: every other instance of the study, by SOP Instance UID.
        screens: of every instance of both.
        cart: what the cart measured itself; it goes beside the prediction and never into it.
    """
    results = {result.task: result for result in prediction.results}
    return Findings(
        algorithm=to_algorithm(prediction.ensemble),
        measurements=tuple(
            _measured(results[task], measurement) for task, measurement in _MEASUREMENTS.items() if task in results
        ),
        evaluations=tuple(
            _evaluated(results[task], evaluation) for task, evaluation in _EVALUATIONS.items() if task in results
        ),
        abstentions=tuple(
            Abstained(task=_reported(one.task), kind=NotMeasured(one.kind.value), reason=one.reason)
            for one in prediction.abstentions
        ),
        loops=tuple(_loop(view, analysed[view.key], screens[view.key], results.keys()) for view in prediction.loops),
        refused=tuple(_refused(uid, one.reason, screens[uid]) for uid, one in _in_order(refused, screens)),
        notes=prediction.notes,
        cart=tuple(cart),
    )


def to_algorithm(info: EnsembleInfo) -> Algorithm:
    """Return who computed the numbers."""
    return Algorithm(
        name=f"{ALGORITHM} ({info.name})",
        version=info.version,
        ensemble_digest=info.digest,
        statement=info.statement,
    )


def to_ledger(
    prediction: StudyPrediction, cart: Sequence[CartValue] = (), loops: Sequence[LoopFinding] = ()
) -> dict[str, Any]:
    """Return what the ledger keeps of a report's content: `results` is the contract's list, the rest is added.

    Args:
        prediction: of the study.
        cart: what the cart measured itself.
        loops: every analysed loop, in the order in which the report counts them.
    """
    info = prediction.ensemble
    return {
        "ensemble": {
            "name": info.name,
            "version": info.version,
            "digest": info.digest,
            "statement": info.statement,
        },
        "results": [
            {
                "task": result.task.value,
                "value": result.value,
                "unit": result.unit,
                "sd": result.sd,
                "loops": list(result.loops),
                "members": result.members,
                "probabilities": result.probabilities,
                "per_loop": result.per_loop,
            }
            for result in prediction.results
        ],
        "not_measured": [
            {"task": one.task.value, "kind": one.kind.value, "reason": one.reason} for one in prediction.abstentions
        ],
        "notes": list(prediction.notes),
        "cart": [
            {
                "task": one.measurement.value,
                "value": one.value,
                "unit": one.unit,
                "method": one.method,
                "sop_instance_uid": one.sop_instance_uid,
            }
            for one in cart
        ],
        "loop_findings": [
            {
                "sop_instance_uid": one.sop_instance_uid,
                "view": one.view,
                "view_probability": one.view_probability,
                "uncertain_view": one.uncertain_view,
                "contradiction": one.contradiction,
                "numbers": [
                    {"task": each.task.value, "value": each.value, "unit": UNITS[each.task], "sd": each.sd}
                    for each in one.numbers
                ],
            }
            for one in loops
        ],
    }


def to_cart(document: Mapping[str, Any]) -> tuple[CartValue, ...]:
    """Return the cart's numbers out of what the ledger keeps of a report's content."""
    return tuple(
        CartValue(
            measurement=Measurement(one["task"]),
            value=one["value"],
            unit=one["unit"],
            method=one["method"],
            sop_instance_uid=one["sop_instance_uid"],
        )
        for one in document.get("cart", ())
    )


_MEASUREMENTS = {
    Task.LVEF: Measurement.LVEF,
    Task.LVEDV: Measurement.LVEDV,
    Task.LVESV: Measurement.LVESV,
}
_EVALUATIONS = {Task.LVEF_REDUCED: Evaluation.LVEF_REDUCED, Task.AORTIC_STENOSIS: Evaluation.AORTIC_STENOSIS}


def _reported(task: Task) -> Measurement | Evaluation:
    return _MEASUREMENTS[task] if task in _MEASUREMENTS else _EVALUATIONS[task]


def _measured(result: TaskResult, measurement: Measurement) -> MeasuredValue:
    return MeasuredValue(
        task=measurement,
        value=float(result.value),
        unit=result.unit,
        sd=result.sd,
        members=result.members,
        loops=result.loops,
    )


def _evaluated(result: TaskResult, evaluation: Evaluation) -> EvaluatedFinding:
    value = ("present" if result.value else "absent") if isinstance(result.value, bool) else str(result.value)
    return EvaluatedFinding(
        task=evaluation,
        value=value,
        probabilities=result.probabilities or {},
        members=result.members,
        loops=result.loops,
    )


def _loop(view: LoopView, analysed: AnalysedLoop, screen: Screen, answered: Collection[Task]) -> LoopFinding:
    """Return a loop's finding; what the study abstains from, no loop says alone."""
    return LoopFinding(
        sop_instance_uid=view.key,
        sop_class_uid=screen.sop_class_uid,
        rows=screen.rows or 1,
        columns=screen.columns or 1,
        num_frames=screen.num_frames or 1,
        box=seen_part(analysed.sector, screen.rows or 1, screen.columns or 1),
        frames_used=tuple(sorted({index + 1 for index in analysed.frames})),
        series_number=screen.series_number,
        instance_number=screen.instance_number,
        view=None if view.view is None else view.view.value,
        view_probability=view.probability,
        uncertain_view=None if view.uncertain is None else view.uncertain.value,
        contradiction=view.reason if view.is_contradicted else "",
        numbers=tuple(
            LoopNumber(task=_MEASUREMENTS[number.task], value=number.value, sd=number.sd)
            for number in view.numbers
            if number.task in _MEASUREMENTS and number.task in answered
        ),
    )


def seen_part(sector: Sector | None, rows: int, columns: int) -> tuple[int, int, int, int]:
    """Return what was cut out of a screen of this size, so far as it lies on it: left, top, right, bottom; all of it
    where nothing was."""
    if sector is None:
        return 0, 0, columns, rows
    top, left, height, width = sector.box
    return max(left, 0), max(top, 0), min(left + width, columns), min(top + height, rows)


def _refused(uid: str, reason: str, screen: Screen) -> RefusedInstance:
    return RefusedInstance(
        sop_instance_uid=uid,
        sop_class_uid=screen.sop_class_uid,
        series_number=screen.series_number,
        instance_number=screen.instance_number,
        num_frames=screen.num_frames,
        reason=reason,
    )


def _in_order(refused: Mapping[str, RefusedLoop], screens: Mapping[str, Screen]) -> Iterable[tuple[str, RefusedLoop]]:
    """Return the refused instances as a person counts them: by series, instance number, UID."""

    def place(item: tuple[str, RefusedLoop]) -> tuple[int, int, str]:
        screen = screens[item[0]]
        return (screen.series_number or 0, screen.instance_number or 0, item[0])

    return sorted(refused.items(), key=place)
