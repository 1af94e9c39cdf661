"""A phantom data set on disk: patients are written by several processes, tables by the one that asked."""

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from trainer.errors import UsageError
from trainer.phantom import camus, echonet, mimic, tmed
from trainer.phantom.case import Case, Plan
from trainer.phantom.tables import Tables, write_table

MARK = "PHANTOM"
"""A file of this name at the root of a data set says that no patient is in it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How the patients of a data set are made and written."""

    case: Callable[[Plan, int], Case]
    write: Callable[[Case, Path], Tables]


LAYOUTS = {
    "mimic": Layout(case=mimic.case, write=mimic.write_case),
    "mimic-0.1": Layout(case=mimic.case, write=mimic.write_case_of_version_0_1),
    "echonet": Layout(case=echonet.case, write=echonet.write_case),
    "camus": Layout(case=camus.case, write=camus.write_case),
    "camus-challenge": Layout(case=camus.case, write=camus.write_case_of_the_challenge),
    "tmed": Layout(case=tmed.case, write=tmed.write_case),
}
"""The layouts by name; MIMIC-IV-ECHO and CAMUS in both of their versions."""


def write(
    layout: str,
    out: Path,
    *,
    cases: int,
    plan: Plan,
    jobs: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a phantom data set; the same bytes for the same arguments, however many jobs.

    Raises:
        UsageError: the folder holds something already, or the layout is unknown.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"--layout {layout}: is none of {', '.join(LAYOUTS)}")
    if cases < 1:
        raise UsageError(f"--cases {cases}: at least one patient")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: holds something already: give an empty folder as --out")
    out.mkdir(parents=True, exist_ok=True)
    tables: Tables = {}
    for number, given in enumerate(_write_cases(layout, plan, out, cases, jobs or os.cpu_count() or 1), start=1):
        for name, rows in given.items():
            tables.setdefault(name, []).extend(rows)
        progress(number, cases)
    for name, rows in tables.items():
        if rows:
            _write(out / name, rows)
    (out / MARK).write_text(f"Synthetic echocardiograms; no patient. layout {layout}, cases {cases}, {plan}\n")


def _write_cases(layout: str, plan: Plan, out: Path, cases: int, jobs: int) -> Iterator[Tables]:
    """Yield the rows of each patient, in order, once its files are written."""
    write_one = partial(_write_case, layout, plan, out)
    if jobs == 1:
        yield from map(write_one, range(cases))
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(write_one, range(cases))


def _write_case(layout: str, plan: Plan, out: Path, number: int) -> Tables:
    how = LAYOUTS[layout]
    return how.write(how.case(plan, number), out)


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".txt":  # CAMUS's lists: a name a line
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{next(iter(row.values()))}\n" for row in rows))
    else:
        write_table(path, rows)
