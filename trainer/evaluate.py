"""Evaluate a run, or a published ensemble, on a split: every sample once, intervals over patients, and pictures.

evaluation.json  all figures
predictions.csv  a line each sample and task
tables.md        the figures beside the paper's
plots/           pictures
"""

import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.tasks import CATALOGUE, Kind, Task
from trainer import plots
from trainer.data.cohort import Cohort
from trainer.data.manifest import Split
from trainer.data.store import ClipStore, dataset_names, open_stores
from trainer.errors import TrainerError, UsageError
from trainer.files import replacing
from trainer.metrics import RESAMPLES
from trainer.predict import Progress, answer, labelled_cohort
from trainer.run import FinishedRun, open_finished
from trainer.scores import Answers, Block, block, class_names, collect
from trainer.tables import page

log = logging.getLogger(__name__)

EVALUATION = "evaluation.json"
PREDICTIONS = "predictions.csv"
TABLES = "tables.md"
PLOTS = "plots"


def evaluate(
    run: Path,
    data: Sequence[Path],
    split: Split,
    out: Path,
    *,
    batch: int = 8,
    device: str = "auto",
    workers: int = 0,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the figures of a finished run, and write them to `out`; those of split test into the run as well.

    Args:
        run: of `trainer finetune`.
        data: stores of `trainer prepare`.
        split: train, val or test.
        out: folder to write to; what an earlier evaluation wrote there is replaced.
        batch: clips at once.
        device: such as "cpu", "cuda:0" or "auto".
        workers: processes that read clips.
        resamples: of the intervals; 0: none.
        seed: of the resamples.
        progress: called with the samples done and their number; None: the log is told.

    Raises:
        RunError: the run is not finished, or its weights give no finite numbers.
        DataError: a store is not usable, was prepared otherwise than for the run, or knows no truth for its tasks.
        UsageError: `out` cannot be written.
    """
    finished = open_finished(run)
    config = finished.config
    stores = open_stores(data, config.clip)
    unknown = config.use_unknown_views
    cohort = labelled_cohort(stores, split, config.tasks, use_unknown_views=unknown)
    prepare_folder(out)
    answers = answer(
        finished.network(),
        cohort,
        config.clip,
        view_temperature=finished.view_temperature,
        batch=batch,
        device=device,
        workers=workers,
        progress=progress,
    )
    names = dataset_names(stores)
    said = {task: collect(answers, names, task, use_unknown_views=unknown) for task in config.tasks}
    document = {
        "run": str(run),
        **of_data(data, split, cohort, stores),
        **figures(said, split, resamples=resamples, seed=seed),
        "provenance": _provenance(finished, stores),
    }
    write(out, document, [one for one in said.values() if one is not None])
    if split == "test":
        write_json(run / EVALUATION, document)
    return document


def of_data(data: Sequence[Path], split: Split, cohort: Cohort, stores: Sequence[ClipStore]) -> Block:
    """Return what an evaluation says about its data: paths, split, counts and digests."""
    paths = [str(path) for path in data]
    names = dataset_names(stores)
    return {
        "data": paths[0] if len(paths) == 1 else paths,
        "split": split,
        "n": len(cohort.entries),
        "n_subjects": cohort.num_subjects,
        "data_digests": {name: store.digest for name, store in zip(names, stores, strict=True)},
        "datasets": {
            name: {"dataset": store.info.dataset, "path": path, "is_phantom": store.info.is_phantom}
            for name, store, path in zip(names, stores, paths, strict=True)
        },
    }


def figures(said: dict[Task, Answers | None], split: Split, *, resamples: int, seed: int) -> Block:
    """Return the figures of each task, and of which tasks there are none."""
    ordered = [task for task in CATALOGUE if task in said]
    tasks: dict[str, Block] = {}
    missing: dict[str, str] = {}
    for task in ordered:
        answers = said[task]
        if answers is None:
            missing[task.value] = f"no sample of split {split} has a label for it"
        else:
            tasks[task.value] = block(answers, resamples=resamples, seed=seed)
    intervals = {"level": 0.95, "method": "percentiles over resampled patients", "resamples": resamples, "seed": seed}
    return {"tasks": tasks, "not_evaluated": missing, "intervals": intervals}


def prepare_folder(out: Path) -> None:
    """Make the folder that an evaluation goes to.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        (out / PLOTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}: give a folder that can be written") from error


def write(out: Path, document: Block, said: Sequence[Answers]) -> None:
    """Write the figures, the predictions, the tables and the pictures.

    Raises:
        TrainerError: the disk does not take them.
    """
    try:
        _write_predictions(out / PREDICTIONS, said)
        (out / TABLES).write_text(page(document), encoding="utf-8")
        for answers in said:
            plots.draw_task(answers, out / PLOTS)
    except OSError as error:
        raise TrainerError(f"{error.filename or out}: {error.strerror}: make room and evaluate again") from error
    write_json(out / EVALUATION, document)


def write_json(file: Path, document: Block) -> None:
    """Write a whole new file in the place of the old one, or leave the old one.

    Raises:
        TrainerError: the disk does not take it.
    """
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    try:
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TrainerError(f"{file}: {error.strerror}: make room and evaluate again") from error


def _provenance(run: FinishedRun, stores: Sequence[ClipStore]) -> Block:
    digests = {store.digest for store in stores}
    names = {store.info.dataset for store in stores}
    trained_on = run.data_digests
    changed = sorted(name for name, digest in trained_on.items() if name in names and digest not in digests)
    for name in changed:
        log.warning("%s was prepared anew since the run was trained: its split may hold patients of the training", name)
    return {
        "code_version": run.provenance.code_version,
        "git_revision": run.provenance.git_revision,
        "seed": run.config.seed,
        "best": run.best.model_dump(),
        "weights_sha256": run.weights_sha256,
        "trained_on": trained_on,
        "prepared_anew_since": changed,
    }


def _write_predictions(file: Path, said: Sequence[Answers]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(("dataset", "subject", "study", "key", "view", "task", "truth", "prediction", "probabilities"))
        for answers in said:
            for place, row in enumerate(answers.rows):
                own = (part.removeprefix(f"{row.dataset}/") for part in (row.subject, row.study))
                lines.writerow((row.dataset, *own, row.key, row.view, answers.task.value, *_cells(answers, place)))


def _cells(answers: Answers, place: int) -> tuple[str, str, str]:
    """Return truth, prediction and the probabilities as they stand in a line."""
    if CATALOGUE[answers.task].kind is Kind.REGRESSION:
        return f"{answers.truth_N[place]:.6g}", f"{answers.said_NK[place, 0]:.6g}", ""
    names = class_names(answers.task)
    said = answers.said_NK[place]
    probabilities = [1.0 - said[0], said[0]] if len(said) == 1 else list(said)
    pairs = " ".join(f"{name}={value:.6f}" for name, value in zip(names, probabilities, strict=True))
    return names[answers.labels_N[place]], names[answers.decided_N[place]], pairs
