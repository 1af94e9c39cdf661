"""An evaluation counts every sample once, speaks for what is known alone, and writes what it says."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.tasks import Task, View
from tests.trainer.runs import make_run, make_tested_store
from trainer.data.store import ClipStore
from trainer.errors import DataError, RunError, UsageError
from trainer.evaluate import evaluate, write_json
from trainer.predict import answer, labelled_cohort
from trainer.run import open_finished
from trainer.scores import Answers, Row, block, by_study


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with 16 patients on the test side, an A4C and a PLAX loop each."""
    return make_tested_store(tmp_path_factory.mktemp("stores") / "discs")


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of three tasks."""
    return make_run(tmp_path_factory.mktemp("runs") / "run", [store], ["lvef", "lvef_reduced", "view"])


@pytest.fixture(scope="module")
def evaluated(run: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Return an evaluation on split test, and its folder."""
    out = tmp_path_factory.mktemp("evaluations") / "out"
    return evaluate(run, [store], "test", out, resamples=200), out


def test_every_sample_that_speaks_is_counted_once(evaluated: tuple[dict[str, Any], Path]) -> None:
    document, _ = evaluated

    assert document["n"] == 32
    assert document["n_subjects"] == 16
    assert document["tasks"]["view"]["n"] == 32
    # the LVEF is no business of a PLAX loop
    assert document["tasks"]["lvef"]["n"] == 16
    assert list(document["tasks"]["lvef"]["per_view"]) == ["A4C"]


def test_the_document_has_the_promised_shape(evaluated: tuple[dict[str, Any], Path], run: Path, store: Path) -> None:
    document, out = evaluated

    assert (document["run"], document["data"], document["split"]) == (str(run), str(store), "test")
    assert {"mae", "rmse", "r2", "pearson", "bias", "std", "ci95"} <= document["tasks"]["lvef"].keys()
    assert {"accuracy", "auc", "f1", "f1_preserved", "f1_reduced", "ci95"} <= document["tasks"]["lvef_reduced"].keys()
    low, high = document["tasks"]["lvef"]["ci95"]["mae"]
    assert low <= document["tasks"]["lvef"]["mae"] <= high
    assert json.loads((out / "evaluation.json").read_text()) == document


def test_the_figures_are_those_of_the_predictions_file(evaluated: tuple[dict[str, Any], Path]) -> None:
    document, out = evaluated

    with (out / "predictions.csv").open(newline="") as stream:
        lines = [line for line in csv.DictReader(stream) if line["task"] == "lvef"]

    differences = [float(line["prediction"]) - float(line["truth"]) for line in lines]
    assert len(lines) == 16
    assert {line["view"] for line in lines} == {"A4C"}
    assert document["tasks"]["lvef"]["mae"] == pytest.approx(np.mean(np.abs(differences)), abs=1e-3)


def test_an_evaluation_on_test_stays_with_the_run(evaluated: tuple[dict[str, Any], Path], run: Path) -> None:
    assert json.loads((run / "evaluation.json").read_text()) == evaluated[0]


def test_an_evaluation_on_another_split_does_not(run: Path, store: Path, tmp_path: Path) -> None:
    before = (run / "evaluation.json").read_bytes() if (run / "evaluation.json").exists() else None

    evaluate(run, [store], "val", tmp_path / "out", resamples=0)

    after = (run / "evaluation.json").read_bytes() if (run / "evaluation.json").exists() else None
    assert after == before


def test_the_pictures_and_the_page_are_there(evaluated: tuple[dict[str, Any], Path]) -> None:
    _, out = evaluated

    assert {path.name for path in (out / "plots").iterdir()} == {
        "lvef_scatter.png",
        "lvef_bland_altman.png",
        *(f"{task}_{name}.png" for task in ("lvef_reduced", "view") for name in ("confusion", "roc", "calibration")),
    }
    assert "MAE, %" in (out / "tables.md").read_text()


def test_batches_do_not_change_the_answers(run: Path, store: Path) -> None:
    finished = open_finished(run)
    cohort = labelled_cohort([ClipStore.open(store)], "test", finished.config.tasks)

    one = answer(finished.network(), cohort, finished.config.clip, batch=1)
    many = answer(finished.network(), cohort, finished.config.clip, batch=7)

    assert [said.entry for said in one] == list(cohort.entries)
    for task in finished.config.tasks:
        np.testing.assert_allclose([said.mean(task) for said in one], [said.mean(task) for said in many], rtol=1e-4)


def test_a_run_of_the_lvef_alone_says_nothing_about_a_reduced_one(store: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [store], ["lvef"])

    document = evaluate(run, [store], "test", tmp_path / "out", resamples=0)

    assert list(document["tasks"]) == ["lvef"]
    assert document["n"] == 16
    assert document["tasks"]["lvef"]["ci95"]["mae"] is None


def test_two_data_sets_are_told_apart(run: Path, store: Path, tmp_path: Path) -> None:
    other = make_tested_store(tmp_path / "other", subjects=12, seed=1)

    document = evaluate(run, [store, other], "test", tmp_path / "out", resamples=0)

    assert {name: part["n"] for name, part in document["tasks"]["lvef"]["per_dataset"].items()} == {
        "discs": 16,
        "discs-2": 6,
    }
    # the same number in two data sets is not the same patient
    assert document["n_subjects"] == 22
    assert document["data"] == [str(store), str(other)]


def test_what_has_no_truth_is_named(store: Path, tmp_path: Path, run: Path) -> None:
    blind = make_store_without_lvef(tmp_path / "blind")

    document = evaluate(run, [blind], "test", tmp_path / "out", resamples=0)

    assert list(document["tasks"]) == ["view"]
    assert document["not_evaluated"].keys() == {"lvef", "lvef_reduced"}


def make_store_without_lvef(path: Path) -> Path:
    """Write a store that knows views alone."""
    from tests.trainer.runs import half_tested
    from tests.trainer.stores import make_store

    return make_store(path, subjects=8, change=lambda one: half_tested(one).model_copy(update={"targets": {}}))


def test_data_without_any_truth_is_refused(store: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [store], ["lvef"])
    blind = make_store_without_lvef(tmp_path / "blind")

    with pytest.raises(DataError, match="no sample of split test has a label for lvef"):
        evaluate(run, [blind], "test", tmp_path / "out")


def test_no_run_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run"):
        evaluate(tmp_path, [store], "test", tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_refused(run: Path, store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(UsageError, match="--out"):
        evaluate(run, [store], "test", tmp_path / "file" / "out")


def test_numbers_that_are_not_finite_end_the_evaluation(run: Path, store: Path) -> None:
    finished = open_finished(run)
    network = finished.network()
    for parameter in network.parameters():
        parameter.fill_(math.nan)
    cohort = labelled_cohort([ClipStore.open(store)], "test", finished.config.tasks)

    with pytest.raises(RunError, match="not finite"):
        answer(network, cohort, finished.config.clip)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})

    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"new": math.nan})

    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


def camus() -> Answers:
    """Return the answers for two patients of two views each."""
    rows = [
        Row(dataset="camus", subject=f"camus/{subject}", study=f"camus/{subject}/1", key=f"{subject}-{view}", view=view)
        for subject in ("p1", "p2")
        for view in (View.A2C.value, View.A4C.value)
    ]
    said = np.array([[60.0], [50.0], [30.0], [36.0]])
    return Answers(task=Task.LVEF, rows=tuple(rows), truth_N=np.array([57.0, 57.0, 30.0, 30.0]), said_NK=said)


def test_a_study_is_the_mean_of_its_views() -> None:
    content = block(camus(), resamples=0)

    assert content["mae"] == pytest.approx((3 + 7 + 0 + 6) / 4)
    assert content["per_study"]["n"] == 2
    assert content["per_study"]["mae"] == pytest.approx((2 + 3) / 2)
    assert content["per_view"]["A2C"]["mae"] == pytest.approx(1.5)
    assert content["per_view"]["A4C"]["mae"] == pytest.approx(6.5)


def test_studies_keep_their_patients() -> None:
    studies = by_study(camus())

    assert [row.subject for row in studies.rows] == ["camus/p1", "camus/p2"]
    assert studies.num_subjects == 2
