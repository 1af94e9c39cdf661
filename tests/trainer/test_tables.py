"""The page puts the paper's figures beside ours, and says why they may not be compared."""

from typing import Any

import numpy as np
import pytest

from model.tasks import CATALOGUE, Kind, Task
from trainer.reference import PAPER, TEST_SUBJECTS, reasons
from trainer.scores import Answers, Row, block
from trainer.tables import page


def document(
    dataset: str, subjects: int, views: tuple[str, ...] = ("A4C",), *, is_phantom: bool = False
) -> dict[str, Any]:
    """Return an evaluation of the LVEF."""
    places = [(f"{dataset}/{number}", view) for number in range(subjects) for view in views]
    rows = tuple(Row(dataset=dataset, subject=one, study=one, key=one + view, view=view) for one, view in places)
    truth = np.linspace(30.0, 70.0, len(rows))
    answers = Answers(task=Task.LVEF, rows=rows, truth_N=truth, said_NK=(truth + 2.0)[:, None])
    return {
        "run": "run",
        "data": "store",
        "split": "test",
        "n": len(rows),
        "n_subjects": subjects,
        "datasets": {dataset: {"dataset": dataset, "path": "store", "is_phantom": is_phantom}},
        "tasks": {"lvef": block(answers, resamples=20)},
        "not_evaluated": {"view": "no sample of split test has a label for it"},
    }


def test_ours_stands_above_the_paper_s() -> None:
    lines = page(document("echonet", 12)).splitlines()

    ours = next(line for line in lines if "ours, a sample" in line)
    paper = next(line for line in lines if "with STF-Net (paper)" in line)
    assert lines.index(ours) < lines.index(paper)
    assert ours.startswith("| **ours, a sample** | 12 | 2.00 [2.00, 2.00] |")
    assert paper.startswith("| Echo-Vision-FM with STF-Net (paper) | - | 3.87 |")


def test_a_part_of_a_data_set_is_not_compared() -> None:
    assert "**Not the paper's test set**: 12 patients" in page(document("echonet", 12))
    assert not any("Not the paper's test set" in reason for reason in reasons("echonet", Task.LVEF, 1277))


def test_phantoms_are_no_data_set_of_the_paper() -> None:
    text = page(document("camus", 50, is_phantom=True))

    assert "**Phantoms**: no patient is in this data" in text
    assert "**Phantoms**" not in page(document("camus", 50))


def test_a_study_of_two_views_is_shown_as_one_and_view_by_view() -> None:
    text = page(document("camus", 4, ("A2C", "A4C")))

    assert "| **ours, a study** | 4 |" in text
    assert "| **ours, a sample** | 8 |" in text
    assert "| A2C | 4 |" in text
    assert "two-chamber half sequence alone" in text


def test_a_data_set_that_the_paper_does_not_know_stands_alone() -> None:
    text = page(document("mimic", 4))

    assert "ours, a sample" in text
    assert "paper" not in text


def test_what_was_not_evaluated_is_said() -> None:
    assert "Not evaluated: no sample of split test has a label for it." in page(document("echonet", 4))


@pytest.mark.parametrize("place", PAPER)
def test_every_figure_of_the_paper_is_one_of_ours(place: tuple[str, Task]) -> None:
    dataset, task = place
    known = {"mae", "rmse", "r2", "pearson", "bias"} if CATALOGUE[task].kind is Kind.REGRESSION else {
        "accuracy", "auc", "f1"
    }  # fmt: skip

    assert dataset in TEST_SUBJECTS
    for row in PAPER[place]:
        assert row.figures.keys() <= known
