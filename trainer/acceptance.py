"""Whether an ensemble may take another one's place: no task gets lost, none gets worse than chance allows.

A task's figure is the mean over the members that carry it: of the mean absolute error where it is a number, of the
area under the ROC curve where it is yes or no, of the accuracy where it is one of several classes. It is worse when it
lies outside the mean 95 % interval of what is in use. Figures are compared only when they were measured on the same
data.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from model.bundle import Closed, first_mistake
from model.tasks import CATALOGUE, Kind, Task
from trainer.errors import PublishError
from trainer.evaluate import EVALUATION
from trainer.run import FinishedRun

_METRICS = {Kind.REGRESSION: "mae", Kind.BINARY: "auc", Kind.CLASSES: "accuracy"}

log = logging.getLogger(__name__)

_Model = TypeVar("_Model", bound=BaseModel)


class _Part(BaseModel):
    """What is read of `evaluation.json`; what else it says is for people."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Figures(_Part):
    """A task's part of an evaluation, of which the main metric counts here."""

    mae: float | None = None
    auc: float | None = None
    accuracy: float | None = None
    ci95: dict[str, tuple[float, float] | None] = {}


class Origin(_Part):
    """Which weights were evaluated."""

    weights_sha256: str


class Evaluation(_Part):
    """What `trainer evaluate` wrote about a run."""

    split: str
    n: int
    n_subjects: int
    data_digests: dict[str, str]
    tasks: dict[Task, Figures]
    provenance: Origin


class Published(Closed):
    """`evaluation.json` of a version on a shelf: the evaluations of its runs, whole."""

    format: int = 1
    """Version of this format."""
    members: dict[str, JsonValue]
    """Bundle -> `evaluation.json` of its run."""

    def evaluations(self) -> list[Evaluation]:
        """Return what is compared."""
        return [Evaluation.model_validate(one) for one in self.members.values()]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Figure:
    """A task's main metric, over the members that carry it."""

    value: float
    low: float
    high: float
    measured_on: frozenset[str]


def read_evaluation(run: FinishedRun) -> JsonValue:
    """Return the evaluation of a run on its test split, after it was checked.

    Raises:
        PublishError: there is none, it is of other weights, or not of all the run's tasks.
    """
    file = run.path / EVALUATION
    remedy = f"trainer evaluate {run.path} --split test"
    if not file.exists():
        raise PublishError(f"{run.path}: was not evaluated: {remedy}")
    evaluation = _read(file, Evaluation, remedy)
    if evaluation.split != "test":
        raise PublishError(f"{file}: is of split {evaluation.split}: {remedy}")
    if evaluation.provenance.weights_sha256 != run.weights_sha256:
        raise PublishError(f"{file}: is of other weights than the run has now: {remedy}")
    missing = [task.value for task in run.config.tasks if task not in evaluation.tasks]
    if missing:
        raise PublishError(f"{file}: says nothing of {', '.join(missing)}: {remedy} with data that has labels for it")
    whole: JsonValue = json.loads(file.read_text(encoding="utf-8"))
    return whole


def read_published(version: Path) -> Sequence[Evaluation]:
    """Return the evaluations of a version on a shelf, empty if it was put there without.

    Raises:
        PublishError: they cannot be read.
    """
    file = version / EVALUATION
    return _read(file, Published, "publish with --force, saying why").evaluations() if file.exists() else ()


def objections(old: Sequence[Evaluation], new: Sequence[Evaluation]) -> list[str]:
    """Return what speaks against `new` in the place of `old`, a line each.

    Args:
        old: of each member of the ensemble in use; none: there is none.
        new: of each member of the one to come.
    """
    found = []
    before, after = _figures(old), _figures(new)
    for task in CATALOGUE:
        if task in after and task in before:
            found += _compare(task, before[task], after[task])
        elif task in after or task not in before:
            if task not in after and any(task in one.tasks for one in new):
                found.append(f"{task}: its evaluation has no {_metric(task)}")
        else:
            found.append(f"{task}: the ensemble in use answers it, these runs do not")
    return found


def _compare(task: Task, before: _Figure, after: _Figure) -> list[str]:
    metric = _metric(task)
    if before.measured_on != after.measured_on:
        return [f"{task}: was measured on other data than the ensemble in use, so that the two cannot be compared"]
    is_worse = after.value > before.high if metric == "mae" else after.value < before.low
    text = f"{metric} {after.value:.4g}, in use {before.value:.4g} ({before.low:.4g} to {before.high:.4g})"
    log.info("%s: %s", task, text)
    return [f"{task}: is worse: {text}"] if is_worse else []


def _figures(evaluations: Sequence[Evaluation]) -> Mapping[Task, _Figure]:
    figures = {}
    for task in CATALOGUE:
        metric = _metric(task)
        found: list[tuple[float, float, float]] = []
        measured_on: set[str] = set()
        for evaluation in evaluations:
            own = evaluation.tasks.get(task)
            value: float | None = None if own is None else getattr(own, metric)
            if own is None or value is None:
                continue
            low, high = own.ci95.get(metric) or (value, value)
            found.append((value, low, high))
            measured_on.add(json.dumps(evaluation.data_digests, sort_keys=True))
        if found:
            value, low, high = (sum(one[place] for one in found) / len(found) for place in range(3))
            figures[task] = _Figure(value=value, low=low, high=high, measured_on=frozenset(measured_on))
    return figures


def _metric(task: Task) -> str:
    return _METRICS[CATALOGUE[task].kind]


def _read(file: Path, model: type[_Model], remedy: str) -> _Model:
    try:
        return model.model_validate_json(file.read_bytes())
    except OSError as error:
        raise PublishError(f"{file}: cannot be read ({error.strerror}): {remedy}") from error
    except ValidationError as error:
        raise PublishError(f"{file}: {first_mistake(error)}: {remedy}") from error
