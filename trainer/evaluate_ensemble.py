"""Evaluate a published ensemble on a split: what the model card says comes from here.

Beside the figures that a run has (of the mean over the members), it tells what the node would do: which views the
ensemble recognises, how often a loop whose view a task does not allow yields a number all the same, and the figures of
the studies that get an answer.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.aggregate import aggregate, gate
from model.ensemble import Ensemble
from model.prediction import Loop, StudyPrediction, TaskResult
from model.tasks import CATALOGUE, LOOP_TASKS, Kind, Task, View
from trainer import plots
from trainer.data.manifest import Split
from trainer.data.store import dataset_names, open_stores
from trainer.evaluate import PLOTS, figures, of_data, prepare_folder, write
from trainer.metrics import RESAMPLES
from trainer.predict import Answer, Progress, answer_as_ensemble, labelled_cohort
from trainer.scores import Answers, Block, by_study, collect, score

NOT_RECOGNISED = "not recognised"

_ANSWERS = [*(view.value for view in View), NOT_RECOGNISED]


def evaluate_ensemble(
    ensemble: Path,
    data: Sequence[Path],
    split: Split,
    out: Path,
    *,
    device: str = "cpu",
    batch: int = 8,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the figures of a published ensemble, and write them to `out`.

    Args:
        ensemble: folder of a published ensemble.
        data: stores of `trainer prepare`.
        split: train, val or test.
        out: folder to write to; what an earlier evaluation wrote there is replaced.
        device: such as "cpu" or "cuda:0".
        batch: clips at once.
        resamples: of the intervals; 0: none.
        seed: of the resamples.
        progress: called with the samples done and their number; None: the log is told.

    Raises:
        BundleError: the ensemble does not load.
        RunError: it gives no finite numbers.
        DataError: a store is not usable, was prepared otherwise than for it, or knows no truth for its tasks.
        UsageError: `out` cannot be written.
    """
    loaded = Ensemble.load(ensemble, device=device, batch=batch)
    tasks = [task for task in CATALOGUE if task in loaded.tasks]
    stores = open_stores(data, loaded.spec)
    # A study's truth holds for a loop of unknown view too, and the gate must do with that loop what it can.
    cohort = labelled_cohort(stores, split, tasks, use_unknown_views=True)
    prepare_folder(out)
    answers = answer_as_ensemble(loaded, cohort, batch=batch, progress=progress)
    names = dataset_names(stores)
    said = {task: collect(answers, names, task) for task in tasks}
    document = {
        "run": str(ensemble),
        "ensemble": {
            "name": loaded.info.name,
            "version": loaded.info.version,
            "digest": loaded.digest,
            "statement": loaded.info.statement,
        },
        **of_data(data, split, cohort, stores),
        **figures(said, split, resamples=resamples, seed=seed),
        "views": _views(answers, loaded),
        "as_served": _as_served(answers, names, loaded, resamples=resamples, seed=seed),
    }
    write(out, document, [one for one in said.values() if one is not None])
    if document["views"]["n"]:
        plots.confusion_matrix(
            np.array(document["views"]["confusion"]),
            [view.value for view in View],
            _ANSWERS,
            f"view gate: n = {document['views']['n']} loops",
            out / PLOTS / "view_gate.png",
        )
    return document


def _views(answers: Sequence[Answer], ensemble: Ensemble) -> Block:
    """Return what the gate makes of the loops whose view is known."""
    info = ensemble.info
    seen: list[tuple[View, View | None]] = []
    for one in answers:
        sample = one.entry.sample
        if sample.kind == "loop" and sample.view is not None:
            seen.append((sample.view, gate(_loop(one), info).view))
    counts = Counter((truth.value, found.value if found else NOT_RECOGNISED) for truth, found in seen)
    wrongly: dict[str, Block] = {}
    for task in LOOP_TASKS:
        if task is Task.VIEW or task not in info.views:
            continue
        allowed = info.views[task]
        strangers = [found for truth, found in seen if truth not in allowed]
        friends = [found for truth, found in seen if truth in allowed]
        wrongly[task.value] = {
            "views": sorted(allowed),
            "loops_of_other_views": len(strangers),
            "of_them_with_a_number": sum(found in allowed for found in strangers),
            "loops_of_its_views": len(friends),
            "of_them_without_a_number": sum(found not in allowed for found in friends),
        }
    return {
        "threshold": info.view_threshold,
        "floor": info.view_floor,
        "n": len(seen),
        "truth": [view.value for view in View],
        "recognised_as": _ANSWERS,
        "confusion": [[counts[view.value, name] for name in _ANSWERS] for view in View],
        "gate": wrongly,
    }


def _as_served(
    answers: Sequence[Answer],
    names: Sequence[str],
    ensemble: Ensemble,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Block]:
    """Return, for each task of loops, what the node would say about the split's studies, and the figures of that.

    A study is made of its loops of which anything is known, be it the study's LVEF; the gate decides which speak.
    """
    studies: defaultdict[str, list[Loop]] = defaultdict(list)
    for one in answers:
        sample = one.entry.sample
        if sample.kind == "loop":
            studies[f"{names[one.entry.store]}/{sample.subject}/{sample.study}"].append(_loop(one))
    predictions = {study: aggregate(loops, None, ensemble.info) for study, loops in studies.items()}
    content: dict[str, Block] = {}
    for task in LOOP_TASKS:
        truth = collect(answers, names, task, use_unknown_views=True)
        if task is Task.VIEW or truth is None:
            continue
        content[task.value] = _served(by_study(truth), predictions, resamples=resamples, seed=seed)
    return content


def _served(studies: Answers, predictions: Mapping[str, StudyPrediction], *, resamples: int, seed: int) -> Block:
    """Return how many studies with a known truth get an answer, why others do not, and their figures."""
    task = studies.task
    found = [_result(predictions[row.study], task) for row in studies.rows]
    reasons = Counter(
        one.kind.value for row in studies.rows for one in predictions[row.study].abstentions if one.task is task
    )
    answered = studies.where(one is not None for one in found)
    content: Block = {
        "studies": len(studies.rows),
        "answered": len(answered.rows),
        "abstentions": dict(sorted(reasons.items())),
    }
    if answered.rows:
        numbers = np.array([[_number(one)] for one in found if one is not None])
        own = Answers(task=task, rows=answered.rows, truth_N=answered.truth_N, said_NK=numbers)
        content |= score(own, resamples=resamples, seed=seed)
    return content


def _result(prediction: StudyPrediction, task: Task) -> TaskResult | None:
    return next((result for result in prediction.results if result.task is task), None)


def _number(result: TaskResult) -> float:
    if CATALOGUE[result.task].kind is Kind.BINARY:
        assert result.probabilities is not None, "a binary answer has its probability"
        return result.probabilities["reduced"]
    return float(result.value)


def _loop(one: Answer) -> Loop:
    """Return the loop as the node aggregates it; a store keeps no view of the header that could contradict it."""
    return Loop(key=one.entry.sample.key, outputs=one.outputs)
