"""How the pages say things: numbers with their spread, times with their age, tasks by the names that people use."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dicom_node.report.findings import SHORT_NAMES

TASKS: Mapping[str, str] = {
    **{task.value: name for task, name in SHORT_NAMES.items()},
    "lvef_reduced": "Reduced LVEF",
    "aortic_stenosis": "Aortic stenosis",
}
"""Name of each task; what is not in it keeps its own."""

LONG_TASKS: Mapping[str, str] = {
    "lvef": "ejection fraction",
    "lvedv": "end-diastolic volume",
    "lvesv": "end-systolic volume",
    "lvef_reduced": "below 50 %",
    "aortic_stenosis": "grade",
}
"""What each means."""

_GRADES = {"mildtomod": "mild to moderate", "no": "none"}
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_ONE_DECIMAL = "%"  # as the report rounds: volumes are whole


def task_name(task: str) -> str:
    """Return the short name of a task."""
    return TASKS.get(task, task)


def task_meaning(task: str) -> str:
    """Return what a task is, in words."""
    return LONG_TASKS.get(task, "")


def number(value: float, unit: str) -> str:
    """Return a number of this unit, rounded as the report rounds it."""
    return f"{value:.1f}" if unit == _ONE_DECIMAL else f"{value:.0f}"


def answer(result: Mapping[str, Any]) -> str:
    """Return what a result says, without unit: a number, a grade, or whether something is there."""
    value = result["value"]
    if isinstance(value, bool):
        return "present" if value else "absent"
    if isinstance(value, int | float):
        return number(value, result["unit"])
    return _GRADES.get(value, str(value))


def probability(result: Mapping[str, Any]) -> float | None:
    """Return how probable the answer is, 0..1; None: it is a number, or nobody said."""
    probabilities = result.get("probabilities") or {}
    value = result["value"]
    if isinstance(value, bool):
        found = next(iter(probabilities.values()), None)
        return None if found is None else float(found if value else 1.0 - found)
    found = probabilities.get(value) if isinstance(value, str) else None
    return None if found is None else float(found)


def by_task(findings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the results of a report by their tasks."""
    return {one["task"]: one for one in findings.get("results", ())}


def percent(share: float) -> str:
    """Return a share of one in percent."""
    return f"{100.0 * share:.0f} %"


def age(at: datetime, now: datetime) -> str:
    """Return how long ago something was, in its largest unit."""
    seconds = max((now - at).total_seconds(), 0.0)
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), _UNITS[-1])
    return f"{int(seconds // size)} {unit} ago"


def moment(at: datetime) -> str:
    """Return a time for people."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def machine_time(at: datetime) -> str:
    """Return a time for programs."""
    return at.astimezone(UTC).isoformat(timespec="seconds")


def parsed(at: str) -> datetime:
    """Return a time that the ledger's JSON gives."""
    return datetime.fromisoformat(at)


def size(num_bytes: int) -> str:
    """Return a number of bytes for people."""
    value, unit = float(num_bytes), "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


FILTERS = {
    "task_name": task_name,
    "task_meaning": task_meaning,
    "number": number,
    "answer": answer,
    "probability": probability,
    "by_task": by_task,
    "percent": percent,
    "age": age,
    "moment": moment,
    "machine_time": machine_time,
    "parsed": parsed,
    "size": size,
}
"""What templates may use."""
