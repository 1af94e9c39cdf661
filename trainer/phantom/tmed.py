"""Phantoms in the layout of TMED-2: stills of 112 x 112 pixels, and tables of views, diagnoses and folds."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from model.phantom.screen import Screen
from model.tasks import Grade, View
from trainer.phantom.case import Case, Plan, bare, make_case
from trainer.phantom.tables import Row, Tables

SIDE = 112
_DRAWN = Screen(rows=2 * SIDE, columns=2 * SIDE, apex_row=0.02, bottom_row=0.98, pixel_ratio=1.2)
_ROOT = "approved_users_only"
_LABELLED = "view_and_diagnosis_labeled_set/labeled"
_UNLABELLED = "view_and_diagnosis_labeled_set/unlabeled"
_DEV = "DEV479"
_SPLITS = ("train",) * 6 + ("val",) * 2 + ("test",) * 2
_VIEWS = {
    View.PLAX: "PLAX",
    View.PSAX: "PSAX",
    View.A4C: "A4C",
    View.A2C: "A2C",
    View.OTHER: "A4CorA2CorOther",
}
_STILLS = (View.PLAX, View.PSAX, View.PLAX, View.PSAX, View.A4C, View.A2C, View.OTHER)
_GRADES = {
    Grade.NONE: "no_AS",
    Grade.MILD: "mild_AS",
    Grade.MILD_TO_MODERATE: "mildtomod_AS",
    Grade.MODERATE: "moderate_AS",
    Grade.SEVERE: "severe_AS",
}
_NOT_PROVIDED = "Not_Provided"


def case(plan: Plan, number: int) -> Case:
    """Return a patient whose pictures were cut out and made small."""
    made = make_case(plan, number, base=_DRAWN)
    return replace(made, screen=bare(made.screen))


def write_case(patient: Case, root: Path) -> Tables:
    """Write the stills of a patient's one or two studies; some stills carry no label."""
    rng = patient.random(1)
    diagnosis = _GRADES[list(Grade)[patient.heart.stenosis]]
    images: list[Row] = []
    labelled: dict[int, list[Row]] = {0: [], 1: [], 2: []}
    unlabelled: list[Row] = []
    for study in range(1, 2 + int(rng.random() < 0.1)):
        for number, view in enumerate(_shown(rng)):
            key = f"{patient.number + 1}s{study}_{number}.png"
            has_label = number % 5 != 4
            folder = _LABELLED if has_label else _UNLABELLED
            _write_still(patient, view, 100 * study + number, root / _ROOT / folder / key)
            row = {"query_key": key, "SourceFolder": folder}
            labels = {"view_label": _VIEWS[view], "diagnosis_label": diagnosis}
            if not has_label:
                unlabelled.append(row | dict.fromkeys(labels, _NOT_PROVIDED))
                continue
            images.append({"query_key": key} | labels)
            for fold, rows in labelled.items():
                split = _SPLITS[(patient.number + 3 * fold) % len(_SPLITS)]
                rows.append(row | labels | {"view_classifier_split": split, "diagnosis_classifier_split": split})
    tables = {f"{_ROOT}/{_DEV}/TMED2_fold{fold}_labeledpart.csv": rows for fold, rows in labelled.items()}
    for fold in labelled:
        tables[f"{_ROOT}/{_DEV}/TMED2_fold{fold}_unlabeledpart.csv"] = unlabelled
    return tables | {f"{_ROOT}/labels_per_image.csv": images, "truth.csv": [patient.truth]}


def _shown(rng: np.random.Generator) -> Iterator[View]:
    yield from _STILLS
    for _ in range(int(rng.integers(3, 10))):
        yield _STILLS[int(rng.integers(len(_STILLS)))]


def _write_still(patient: Case, view: View, number: int, path: Path) -> None:
    frame = patient.film(view, number, num_frames=(1, 1)).frames_THWC[0, ..., 0]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX).save(path)
