"""A task's answers beside the truth, and the figures that follow: all samples, each view, each data set, each study.

Legend: N rows (samples or studies), K numbers of an answer (1, or one a class).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.tasks import CATALOGUE, Kind, Scope, Task
from trainer import metrics
from trainer.data.cohort import target
from trainer.metrics import Array, Figures, Rows
from trainer.predict import Answer

UNKNOWN_VIEW = "unknown"

Block = dict[str, Any]
"""Part of the JSON of an evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sample of a task, or one study of several samples."""

    dataset: str
    subject: str
    """Distinct over the data sets."""
    study: str
    """Distinct over the data sets."""
    key: str
    """Of the sample; of a study its own name."""
    view: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """A task's answers beside the truth."""

    task: Task
    rows: tuple[Row, ...]
    truth_N: Array
    """In the task's unit; 1 for the positive class; the number of a class."""
    said_NK: Array
    """In the task's unit; probability of the positive class; probability of each class."""

    @property
    def labels_N(self) -> NDArray[np.int64]:
        """Return the true classes' numbers."""
        return self.truth_N.astype(np.int64)

    @property
    def decided_N(self) -> NDArray[np.int64]:
        """Return the answered classes' numbers."""
        if CATALOGUE[self.task].kind is Kind.BINARY:
            return np.asarray(self.said_NK[:, 0] >= 0.5, dtype=np.int64)
        return np.asarray(self.said_NK.argmax(axis=1), dtype=np.int64)

    @property
    def num_subjects(self) -> int:
        """Return how many patients there are."""
        return len({row.subject for row in self.rows})

    def where(self, chosen_N: Iterable[bool]) -> "Answers":
        """Return the chosen rows."""
        places = np.flatnonzero(list(chosen_N))
        return Answers(
            task=self.task,
            rows=tuple(self.rows[place] for place in places),
            truth_N=self.truth_N[places],
            said_NK=self.said_NK[places],
        )


def collect(
    answers: Sequence[Answer], names: Sequence[str], task: Task, *, use_unknown_views: bool = False
) -> Answers | None:
    """Return what was said about the samples that speak for a task, the mean over the members; None: there is none."""
    rows, truth, said = [], [], []
    for one in answers:
        sample = one.entry.sample
        raw = target(sample, task, use_unknown_views=use_unknown_views)
        if raw is None or not one.outputs.get(task):
            continue
        name = names[one.entry.store]
        rows.append(
            Row(
                dataset=name,
                subject=f"{name}/{sample.subject}",
                study=f"{name}/{sample.subject}/{sample.study}",
                key=sample.key,
                view=sample.view.value if sample.view else UNKNOWN_VIEW,
            )
        )
        is_number = CATALOGUE[task].kind is Kind.REGRESSION
        truth.append(float(sample.targets[task]) if is_number else raw)
        said.append(one.mean(task))
    if not rows:
        return None
    return Answers(task=task, rows=tuple(rows), truth_N=np.array(truth), said_NK=np.array(said))


def by_study(answers: Answers) -> Answers:
    """Return one row a study: the mean over its samples, as the node answers for a study."""
    studies = [row.study for row in answers.rows]
    names, first, place_N = np.unique(studies, return_index=True, return_inverse=True)
    count = np.bincount(place_N)[:, None]

    def mean(values_NK: Array) -> Array:
        total = np.zeros((len(names), values_NK.shape[1]))
        np.add.at(total, place_N, values_NK)
        return total / count

    truth = mean(answers.truth_N[:, None])[:, 0]
    return Answers(
        task=answers.task,
        rows=tuple(replace(row, key=row.study, view="") for row in (answers.rows[place] for place in first)),
        truth_N=truth if CATALOGUE[answers.task].kind is Kind.REGRESSION else np.floor(truth + 0.5),
        said_NK=mean(answers.said_NK),
    )


def score(answers: Answers, *, resamples: int = metrics.RESAMPLES, seed: int = 0) -> Block:
    """Return n, n_subjects, the figures of the task's kind, and the 95 % interval of each over the patients."""

    def figures(rows: Rows) -> Figures:
        truth_N, said_NK = answers.truth_N[rows], answers.said_NK[rows]
        kind = CATALOGUE[answers.task].kind
        if kind is Kind.REGRESSION:
            return metrics.regression(truth_N, said_NK[:, 0])
        if kind is Kind.BINARY:
            return metrics.binary(truth_N > 0.5, said_NK[:, 0])
        return metrics.classes(truth_N.astype(np.int64), said_NK)

    subjects = [row.subject for row in answers.rows]
    return {
        "n": len(answers.rows),
        "n_subjects": answers.num_subjects,
        **figures(np.arange(len(answers.rows))),
        "ci95": metrics.intervals(figures, subjects, resamples=resamples, seed=seed),
    }


def block(answers: Answers, *, resamples: int = metrics.RESAMPLES, seed: int = 0) -> Block:
    """Return all figures of a task; see docs/training.md for the keys."""

    def scored(some: Answers) -> Block:
        return score(some, resamples=resamples, seed=seed)

    info = CATALOGUE[answers.task]
    content = scored(answers)
    if info.kind is not Kind.REGRESSION:
        content |= _decisions(answers)
    if info.scope is Scope.LOOP:
        views = sorted({row.view for row in answers.rows})
        content["per_view"] = {view: scored(answers.where(row.view == view for row in answers.rows)) for view in views}
        if answers.task is not Task.VIEW:
            content["per_study"] = scored(by_study(answers))
    datasets = sorted({row.dataset for row in answers.rows})
    content["datasets"] = datasets
    if len(datasets) > 1:
        content["per_dataset"] = {name: _of_dataset(answers, name, resamples, seed) for name in datasets}
    return content


def came_true(answers: Answers) -> tuple[NDArray[np.bool_], Array]:
    """Return of each row whether what was announced came true, and with which probability it was announced.

    Of a binary task that is its positive class, of many classes the most probable one.
    """
    if CATALOGUE[answers.task].kind is Kind.BINARY:
        return answers.truth_N > 0.5, answers.said_NK[:, 0]
    return answers.decided_N == answers.labels_N, answers.said_NK.max(axis=1)


def confusion(answers: Answers) -> NDArray[np.int64]:
    """Return the counts, a row each true class, a column each answered one."""
    num_classes = max(CATALOGUE[answers.task].num_outputs, 2)
    table = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(table, (answers.labels_N, answers.decided_N), 1)
    return table


def class_names(task: Task) -> tuple[str, ...]:
    """Return the names of the classes in the order of `confusion`."""
    return CATALOGUE[task].classes or ("preserved", "reduced")


def _of_dataset(answers: Answers, name: str, resamples: int, seed: int) -> Block:
    own = answers.where(row.dataset == name for row in answers.rows)
    content = score(own, resamples=resamples, seed=seed)
    if CATALOGUE[answers.task].scope is Scope.LOOP and answers.task is not Task.VIEW:
        content["per_study"] = score(by_study(own), resamples=resamples, seed=seed)
    return content


def _decisions(answers: Answers) -> Block:
    return {
        "ece": metrics.expected_calibration_error(metrics.calibration(*came_true(answers))),
        "classes": list(class_names(answers.task)),
        "confusion": confusion(answers).tolist(),
    }
