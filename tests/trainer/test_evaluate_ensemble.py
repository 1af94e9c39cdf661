"""The evaluation of a published ensemble says what the node would do with the same loops."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.ensemble import Ensemble
from model.tasks import Task, View
from tests.trainer.runs import half_tested, make_ensemble, make_run, make_tested_store
from tests.trainer.stores import make_store
from trainer.data.manifest import Sample
from trainer.data.store import ClipStore
from trainer.errors import DataError
from trainer.evaluate import evaluate
from trainer.evaluate_ensemble import evaluate_ensemble
from trainer.predict import answer_as_ensemble, labelled_cohort


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with 16 patients on the test side, an A4C and a PLAX loop each."""
    return make_tested_store(tmp_path_factory.mktemp("stores") / "discs")


@pytest.fixture(scope="module")
def runs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two runs; the brightness that tells the views apart is soon learned."""
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / str(seed), [store], ["lvef", "view"], epochs=6, seed=seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def published(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ensemble of both."""
    return make_ensemble(tmp_path_factory.mktemp("ensembles") / "discs", runs)


@pytest.fixture(scope="module")
def document(published: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return its evaluation."""
    return evaluate_ensemble(published, [store], "test", tmp_path_factory.mktemp("out"), resamples=50)


def test_it_is_the_mean_over_the_members(published: Path, store: Path) -> None:
    ensemble = Ensemble.load(published)
    cohort = labelled_cohort([ClipStore.open(store)], "test", [Task.LVEF])

    answers = answer_as_ensemble(ensemble, cohort)

    first = answers[0]
    assert len(first.outputs[Task.LVEF]) == 2
    assert first.mean(Task.LVEF) == [pytest.approx(sum(member[0] for member in first.outputs[Task.LVEF]) / 2)]


def in_beats(sample: Sample) -> Sample:
    """Return the loop of a view as a further clip of its patient's A4C loop."""
    sample = half_tested(sample)
    if sample.view is View.A4C:
        return sample
    return sample.model_copy(update={"key": f"{sample.subject}-A4C#1", "beat": 1, "view": View.A4C})


def test_a_loop_of_several_clips_is_answered_once_by_their_mean(published: Path, tmp_path: Path) -> None:
    ensemble = Ensemble.load(published)
    cohort = labelled_cohort([ClipStore.open(make_store(tmp_path / "beats", change=in_beats))], "test", [Task.LVEF])
    alone = [
        answer_as_ensemble(ensemble, replace(cohort, entries=(entry,)))[0].outputs[Task.LVEF]
        for entry in cohort.entries
    ]

    answers = answer_as_ensemble(ensemble, cohort)

    assert len(answers) == len(cohort.entries) / 2
    assert all(one.entry.sample.beat == 0 for one in answers)
    for number, one in enumerate(answers):
        first, second = alone[2 * number], alone[2 * number + 1]
        assert first != second
        for place, (value,) in enumerate(one.outputs[Task.LVEF]):
            assert value == pytest.approx((first[place][0] + second[place][0]) / 2)


def test_one_member_has_the_figures_of_its_run(runs: list[Path], store: Path, tmp_path: Path) -> None:
    single = make_ensemble(tmp_path / "single", runs[:1])

    of_ensemble = evaluate_ensemble(single, [store], "test", tmp_path / "a", resamples=0)
    of_run = evaluate(runs[0], [store], "test", tmp_path / "b", resamples=0)

    assert of_ensemble["tasks"]["lvef"]["mae"] == pytest.approx(of_run["tasks"]["lvef"]["mae"], rel=1e-4)
    assert of_ensemble["tasks"].keys() == of_run["tasks"].keys()


def test_the_gate_is_reported_loop_by_loop(document: dict[str, Any]) -> None:
    views = document["views"]

    assert views["n"] == 32
    assert sum(map(sum, views["confusion"])) == 32
    gate = views["gate"]["lvef"]
    assert (gate["loops_of_its_views"], gate["loops_of_other_views"]) == (16, 16)
    # a PLAX loop speaks if, and only if, it was taken for an A4C: what the run was trained on
    plax, a4c = views["truth"].index("PLAX"), views["recognised_as"].index("A4C")
    assert gate["views"] == ["A4C"]
    assert gate["of_them_with_a_number"] == views["confusion"][plax][a4c]


def test_a_loop_whose_view_is_right_never_speaks_for_what_it_may_not(document: dict[str, Any]) -> None:
    views = document["views"]
    right = [views["confusion"][place][place] for place in range(len(views["truth"]))]

    plax = views["truth"].index("PLAX")
    assert views["gate"]["lvef"]["of_them_with_a_number"] <= 16 - right[plax]


def test_every_study_is_answered_or_abstained_from(document: dict[str, Any]) -> None:
    served = document["as_served"]["lvef"]

    assert served["studies"] == 16
    assert served["answered"] + sum(served["abstentions"].values()) == 16


def test_the_files_are_those_of_a_run_and_the_gate_s_picture(published: Path, store: Path, tmp_path: Path) -> None:
    document = evaluate_ensemble(published, [store], "test", tmp_path, resamples=0)

    assert json.loads((tmp_path / "evaluation.json").read_text()) == document
    assert document["ensemble"]["statement"] == "discs are no hearts"
    assert (tmp_path / "plots" / "view_gate.png").exists()
    assert (tmp_path / "tables.md").exists()


def test_a_store_of_another_recipe_is_refused(published: Path, tmp_path: Path) -> None:
    store = make_tested_store(tmp_path / "store", subjects=4)
    text = (store / "store.json").read_text()
    (store / "store.json").write_text(text.replace('"size":32', '"size":40'))

    with pytest.raises(DataError, match=r"clip\.size"):
        evaluate_ensemble(published, [store], "test", tmp_path / "out")
