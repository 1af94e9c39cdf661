"""Measurements that are used as labels: what is plausible at all."""

import math

from model.tasks import Task

_NAMES = {Task.LVEF: "EF", Task.LVEDV: "EDV", Task.LVESV: "ESV"}


def check_measurements(targets: dict[Task, float | str]) -> str | None:
    """Return what is wrong with the numbers of a loop, None if nothing is.

    An LVEF lies between 0 and 100 %, a volume above 0 mL, and the end-systolic one does not exceed the end-diastolic.
    """
    for task, value in targets.items():
        number = float(value) if task in _NAMES else 1.0
        if not math.isfinite(number) or number <= 0.0 or (task is Task.LVEF and number >= 100.0):
            return f"label out of range: {_NAMES[task]} {value}"
    edv, esv = targets.get(Task.LVEDV), targets.get(Task.LVESV)
    if edv is not None and esv is not None and float(esv) > float(edv):
        return f"label out of range: ESV {esv} above EDV {edv}"
    return None


def parse_number(text: str) -> float | None:
    """Return the number of a cell, None if it holds none."""
    try:
        return float(text)
    except ValueError:
        return None
