"""The catalogue says the same as the specification of the heads."""

import pytest

from model.tasks import CATALOGUE, LOOP_TASKS, REPORTED_TASKS, STUDY_TASKS, Kind, Scope, Task, View


def test_every_task_stands_in_the_catalogue_once() -> None:
    assert set(CATALOGUE) == set(Task)
    assert all(info.task is task for task, info in CATALOGUE.items())


def test_the_class_order_of_the_view_head_is_fixed() -> None:
    assert CATALOGUE[Task.VIEW].classes == ("A4C", "A2C", "PLAX", "PSAX", "other")


def test_the_class_order_of_the_aortic_stenosis_head_is_that_of_tmed() -> None:
    assert CATALOGUE[Task.AORTIC_STENOSIS].classes == ("no", "mild", "mildtomod", "moderate", "severe")


@pytest.mark.parametrize("task", list(Task))
def test_a_head_has_an_output_for_each_class(task: Task) -> None:
    info = CATALOGUE[task]

    assert info.num_outputs == (len(info.classes) if info.kind is Kind.CLASSES else 1)


def test_only_aortic_stenosis_looks_at_the_whole_study() -> None:
    assert STUDY_TASKS == (Task.AORTIC_STENOSIS,)
    assert set(LOOP_TASKS) == set(Task) - {Task.AORTIC_STENOSIS}
    assert CATALOGUE[Task.AORTIC_STENOSIS].scope is Scope.STUDY


def test_volumes_and_ejection_fraction_speak_on_apical_views_only() -> None:
    for task in (Task.LVEF, Task.LVEDV, Task.LVESV, Task.LVEF_REDUCED):
        assert CATALOGUE[task].views == {View.A4C, View.A2C}


def test_the_other_views_speak_for_no_task() -> None:
    assert not any(View.OTHER in info.views for info in CATALOGUE.values())


def test_the_view_itself_is_not_a_result_of_the_report() -> None:
    assert set(REPORTED_TASKS) == set(Task) - {Task.VIEW}


@pytest.mark.parametrize("task", list(Task))
def test_a_plausible_range_is_not_empty(task: Task) -> None:
    assert CATALOGUE[task].low < CATALOGUE[task].high
