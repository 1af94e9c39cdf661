"""One answer a study and task, or the reason why there is none."""

import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.aggregate import aggregate, gate, stills_wanted
from model.prediction import (
    Absence,
    Abstention,
    Loop,
    LoopOutputs,
    StudyPrediction,
    TaskResult,
    decode,
    encode_target,
    outputs_from_json,
    outputs_to_json,
)
from model.tasks import CATALOGUE, LOOP_TASKS, REPORTED_TASKS, Task, View
from tests.doubles import ensembles

INFO = replace(ensembles.INFO, view_threshold=0.6, view_floor=0.45)


def view_outputs(view: View, probability: float = 0.9, members: int = 2) -> list[list[float]]:
    rest = (1.0 - probability) / 4
    return [[probability if one is view else rest for one in View] for _ in range(members)]


def loop(
    key: str,
    view: View = View.A4C,
    *,
    lvef: tuple[float, ...] = (60.0, 62.0),
    lvedv: tuple[float, ...] = (100.0, 100.0),
    lvesv: tuple[float, ...] = (40.0, 40.0),
    reduced: tuple[float, ...] = (0.1, 0.1),
    probability: float = 0.9,
) -> Loop:
    outputs: LoopOutputs = {
        Task.VIEW: view_outputs(view, probability),
        Task.LVEF: [[value] for value in lvef],
        Task.LVEDV: [[value] for value in lvedv],
        Task.LVESV: [[value] for value in lvesv],
        Task.LVEF_REDUCED: [[value] for value in reduced],
    }
    return Loop(key=key, outputs=outputs)


def grades(*members: list[float]) -> LoopOutputs:
    return {Task.AORTIC_STENOSIS: list(members)}


def result(prediction: StudyPrediction, task: Task) -> TaskResult:
    (found,) = (one for one in prediction.results if one.task is task)
    return found


def abstention(prediction: StudyPrediction, task: Task) -> Abstention:
    (found,) = (one for one in prediction.abstentions if one.task is task)
    return found


def test_the_study_value_is_the_mean_over_loops_and_members() -> None:
    loops = [loop("1.1", lvef=(50.0, 60.0)), loop("1.2", View.A2C, lvef=(54.0, 72.0))]

    lvef = result(aggregate(loops, None, INFO), Task.LVEF)

    assert lvef.value == 59.0
    assert lvef.unit == "%"
    assert lvef.loops == ("1.1", "1.2")
    assert lvef.per_loop == {"1.1": 55.0, "1.2": 63.0}
    assert lvef.members == 2


def test_the_spread_is_that_of_the_members_not_of_the_loops() -> None:
    loops = [loop("1.1", lvef=(50.0, 52.0)), loop("1.2", lvef=(70.0, 72.0))]

    lvef = result(aggregate(loops, None, INFO), Task.LVEF)

    assert lvef.sd == pytest.approx(math.sqrt(2.0))


def test_a_single_member_has_no_spread() -> None:
    prediction = aggregate([loop("1.1", lvef=(60.0,))], None, INFO)

    assert result(prediction, Task.LVEF).sd is None


def test_a_loop_of_another_view_does_not_speak() -> None:
    loops = [loop("1.1"), loop("1.2", View.PLAX, lvef=(20.0, 20.0)), loop("1.3", View.OTHER, lvef=(20.0, 20.0))]

    lvef = result(aggregate(loops, None, INFO), Task.LVEF)

    assert lvef.value == 61.0
    assert lvef.loops == ("1.1",)


def test_a_view_that_a_member_was_not_trained_on_does_not_speak() -> None:
    info = replace(INFO, views={**INFO.views, Task.LVEF: frozenset({View.A4C})})

    prediction = aggregate([loop("1.1", View.A2C)], None, info)

    assert abstention(prediction, Task.LVEF).kind is Absence.NOT_ATTEMPTED
    assert result(prediction, Task.LVEDV).loops == ("1.1",)


def test_a_loop_whose_view_is_not_recognised_does_not_speak_and_says_why() -> None:
    prediction = aggregate([loop("1.1", probability=0.41)], None, INFO)

    assert prediction.loops[0].view is None
    assert prediction.loops[0].reason == "view not recognised (p=0.41)"
    assert abstention(prediction, Task.LVEF).kind is Absence.NOT_ATTEMPTED


def test_a_loop_in_the_band_leaves_undetermined_what_it_might_have_carried() -> None:
    """Nothing was found is one thing to a cardiologist, perhaps there was something is another."""
    loops = [loop("1.1", probability=0.5), loop("1.2", View.A2C, probability=0.59), loop("1.3", View.PLAX)]

    prediction = aggregate(loops, None, INFO)

    lvef = abstention(prediction, Task.LVEF)
    assert lvef.kind is Absence.INDETERMINATE
    assert lvef.reason == (
        "no apical 4- or 2-chamber loop was found among 3 B-mode loops (1 PLAX, 2 not recognised);"
        " 2 loops may show one, but not surely enough (at best A2C with p=0.59, needed 0.60)"
    )
    assert [(one.view, one.uncertain, one.numbers) for one in prediction.loops[:2]] == [
        (None, View.A4C, ()), (None, View.A2C, ()),
    ]  # fmt: skip
    assert prediction.loops[0].reason == "view uncertain, A4C at best (p=0.50)"
    assert stills_wanted(loops, INFO) == ("1.3",)


@pytest.mark.parametrize("unsure", [loop("1.1", View.PLAX, probability=0.5), loop("1.1", probability=0.44),
                                    replace(loop("1.1", probability=0.5), header_view=View.PSAX)])  # fmt: skip
def test_a_loop_of_another_view_or_under_the_band_leaves_nothing_undetermined(unsure: Loop) -> None:
    assert abstention(aggregate([unsure], None, INFO), Task.LVEF).kind is Absence.NOT_ATTEMPTED


def test_a_loop_in_the_band_takes_nothing_from_one_that_is_recognised() -> None:
    both = aggregate([loop("1.1"), loop("1.2", lvef=(20.0, 20.0), probability=0.59)], None, INFO)

    assert result(both, Task.LVEF) == result(aggregate([loop("1.1")], None, INFO), Task.LVEF)


def test_the_temperature_makes_the_views_less_sure_and_nothing_else() -> None:
    raw = [4.0, 1.0, 0.0, 0.0, 0.0]

    cooled = decode(Task.VIEW, raw, view_temperature=2.0)

    assert cooled == pytest.approx(decode(Task.VIEW, [value / 2.0 for value in raw]))
    assert decode(Task.AORTIC_STENOSIS, raw, view_temperature=2.0) == decode(Task.AORTIC_STENOSIS, raw)
    assert decode(Task.LVEF, [0.5], view_temperature=2.0) == [50.0]


def test_a_loop_whose_header_names_another_view_does_not_speak_and_says_why() -> None:
    """One of the two is wrong; a number for the wrong loop is worse than none."""
    loops = [
        loop("1.1"),
        replace(loop("1.2", lvef=(20.0, 20.0)), header_view=View.PLAX),
        replace(loop("1.3", View.PLAX), header_view=View.OTHER),
    ]

    prediction = aggregate(loops, None, INFO)

    assert result(prediction, Task.LVEF).loops == ("1.1",)
    assert [(one.view, one.is_contradicted, one.numbers != ()) for one in prediction.loops] == [
        (View.A4C, False, True), (None, True, False), (None, True, False),
    ]  # fmt: skip
    assert prediction.loops[1].reason.startswith("the header names the view PLAX, the picture looks like the view A4C")
    assert prediction.loops[2].reason.startswith("the header names another view, the picture looks like the view PLAX")
    assert prediction.notes[-1] == "2 loops show another view than the header names; not used."
    assert stills_wanted(loops, INFO) == ("1.1",)


def test_a_loop_whose_header_agrees_speaks() -> None:
    agreed = aggregate([replace(loop("1.1"), header_view=View.A4C)], None, INFO)

    assert agreed == aggregate([loop("1.1")], None, INFO)


def test_a_header_gives_no_view_to_a_loop_that_is_not_recognised() -> None:
    unsure = replace(loop("1.1", probability=0.41), header_view=View.A4C)

    assert gate(unsure, INFO).view is None
    assert aggregate([unsure], None, INFO).notes == ()


def test_a_study_whose_loops_are_all_contradicted_says_so() -> None:
    lvef = abstention(aggregate([replace(loop("1.1"), header_view=View.PSAX)], None, INFO), Task.LVEF)

    assert lvef.reason.endswith("among 1 B-mode loop (1 contradicted by the header)")


def test_the_view_is_that_of_the_mean_over_the_members() -> None:
    split = Loop(key="1.1", outputs={Task.VIEW: view_outputs(View.A4C, 0.9, 1) + view_outputs(View.A2C, 0.5, 1)})

    gated = gate(split, replace(INFO, view_threshold=0.5))

    assert gated.view is View.A4C
    assert gated.probability == pytest.approx((0.9 + 0.125) / 2)


def test_a_probability_at_the_threshold_counts_as_recognised() -> None:
    assert gate(loop("1.1", probability=0.75), replace(INFO, view_threshold=0.75)).view is View.A4C


def test_without_an_apical_loop_the_report_says_what_was_there() -> None:
    loops = [loop("1.1", View.PLAX), loop("1.2", View.PLAX), loop("1.3", View.OTHER), loop("1.4", probability=0.3)]

    lvef = abstention(aggregate(loops, None, INFO), Task.LVEF)

    assert lvef.kind is Absence.NOT_ATTEMPTED
    assert lvef.reason == (
        "no apical 4- or 2-chamber loop was found among 4 B-mode loops (2 PLAX, 1 other, 1 not recognised)"
    )


def test_a_study_without_loops_abstains_from_everything() -> None:
    prediction = aggregate([], None, INFO)

    assert [one.task for one in prediction.abstentions] == list(REPORTED_TASKS)
    assert {one.reason for one in prediction.abstentions} == {"the study has no B-mode loop that could be analysed"}


def test_a_task_that_the_ensemble_lacks_is_not_attempted() -> None:
    info = replace(INFO, views={Task.VIEW: frozenset()})

    lvef = abstention(aggregate([loop("1.1")], None, info), Task.LVEF)

    assert lvef.kind is Absence.NOT_ATTEMPTED
    assert lvef.reason == "the ensemble has no network for this measurement"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_a_failure(value: float) -> None:
    prediction = aggregate([loop("1.1", lvef=(value, 60.0)), loop("1.2")], None, INFO)

    assert abstention(prediction, Task.LVEF).kind is Absence.FAILURE
    assert abstention(prediction, Task.LVEF).reason == "the network gave no finite number for 1 of 2 loops"
    assert result(prediction, Task.LVEDV).value == 100.0


def test_a_view_that_is_not_finite_is_not_recognised() -> None:
    broken = Loop(key="1.1", outputs={Task.VIEW: [[math.nan] * 5]})

    assert gate(broken, replace(INFO, view_threshold=0.0, view_floor=0.0)).view is None


def test_an_implausible_value_is_named_and_not_given() -> None:
    lvef = abstention(aggregate([loop("1.1", lvef=(97.0, 98.0))], None, INFO), Task.LVEF)

    assert lvef.kind is Absence.OUT_OF_RANGE
    assert lvef.reason == "the value 97.5 % is outside the plausible range 5.0 % to 90.0 %"


def test_members_that_disagree_give_no_value() -> None:
    lvef = abstention(aggregate([loop("1.1", lvef=(30.0, 70.0))], None, INFO), Task.LVEF)

    assert lvef.kind is Absence.INDETERMINATE
    assert "disagree (standard deviation 28.3 %, at most 10.0 %)" in lvef.reason


def test_an_ejection_fraction_that_contradicts_the_volumes_takes_all_three_down() -> None:
    prediction = aggregate([loop("1.1", lvef=(40.0, 40.0), lvedv=(100.0, 100.0), lvesv=(40.0, 40.0))], None, INFO)

    assert {one.task for one in prediction.results} == {Task.LVEF_REDUCED}
    for task in (Task.LVEF, Task.LVEDV, Task.LVESV):
        assert abstention(prediction, task).kind is Absence.INDETERMINATE
        assert "hence 60.0 %) differ by 20.0 points" in abstention(prediction, task).reason


def test_a_smaller_contradiction_is_noted() -> None:
    prediction = aggregate([loop("1.1", lvef=(50.0, 50.0))], None, INFO)

    assert result(prediction, Task.LVEF).value == 50.0
    assert prediction.notes == (
        "The LVEF (50.0 %) and the volumes (EDV 100 mL, ESV 40 mL, hence 60.0 %) differ by 10.0 points.",
    )


def test_values_that_agree_need_no_note() -> None:
    assert aggregate([loop("1.1")], None, INFO).notes == ()


@pytest.mark.parametrize(("probability", "value"), [(0.9, True), (0.1, False)])
def test_a_reduced_ejection_fraction_is_answered_with_its_probability(probability: float, value: bool) -> None:
    reduced = result(aggregate([loop("1.1", reduced=(probability, probability))], None, INFO), Task.LVEF_REDUCED)

    assert reduced.value is value
    assert reduced.probabilities == {"reduced": probability}


@pytest.mark.parametrize("probability", [0.4, 0.5, 0.6])
def test_a_probability_near_one_half_is_undetermined(probability: float) -> None:
    prediction = aggregate([loop("1.1", reduced=(probability, probability))], None, INFO)

    assert abstention(prediction, Task.LVEF_REDUCED).kind is Absence.INDETERMINATE


def test_the_grade_is_the_most_probable_by_the_mean_over_the_members() -> None:
    outputs = grades([0.0, 0.1, 0.1, 0.2, 0.6], [0.0, 0.1, 0.0, 0.5, 0.4])

    stenosis = result(aggregate([loop("1.1"), loop("1.2", View.OTHER)], outputs, INFO), Task.AORTIC_STENOSIS)

    assert stenosis.value == "severe"
    assert stenosis.probabilities is not None
    assert stenosis.probabilities["severe"] == 0.5
    assert stenosis.sd == pytest.approx(math.sqrt(0.02))
    assert stenosis.loops == ("1.1",)
    assert stenosis.per_loop == {}


def test_no_grade_is_given_when_none_is_probable_enough() -> None:
    outputs = grades([0.3, 0.2, 0.2, 0.2, 0.1])

    stenosis = abstention(aggregate([loop("1.1")], outputs, INFO), Task.AORTIC_STENOSIS)

    assert stenosis.kind is Absence.INDETERMINATE
    assert stenosis.reason == "no grade is probable enough (the most probable, no, has p = 0.30)"


def test_stills_that_were_not_analysed_are_a_failure() -> None:
    stenosis = abstention(aggregate([loop("1.1")], None, INFO), Task.AORTIC_STENOSIS)

    assert stenosis.kind is Absence.FAILURE


def test_the_stack_is_ordered_by_view_then_by_key() -> None:
    loops = [
        loop("1.5", View.PSAX),
        loop("1.4", View.A4C),
        loop("1.3", View.OTHER),
        loop("1.2", View.PLAX),
        loop("1.1", View.A2C),
        loop("1.0", View.A4C),
        loop("0.9", View.A4C, probability=0.2),
    ]

    assert stills_wanted(loops, INFO) == ("1.0", "1.4", "1.1", "1.2", "1.5")


def test_an_ensemble_without_a_study_task_wants_no_stills() -> None:
    info = replace(INFO, views={task: CATALOGUE[task].views for task in LOOP_TASKS})

    assert stills_wanted([loop("1.1")], info) == ()


numbers = st.one_of(st.floats(), st.floats(0.0, 1.0), st.floats(1.0, 200.0))


@st.composite
def studies(draw: st.DrawFn) -> tuple[list[Loop], LoopOutputs | None]:
    members = draw(st.integers(1, 3))

    def outputs(tasks: tuple[Task, ...]) -> LoopOutputs:
        return {
            task: [[draw(numbers) for _ in range(CATALOGUE[task].num_outputs)] for _ in range(members)]
            for task in tasks
            if draw(st.integers(0, 9))
        }

    def recognised() -> LoopOutputs:
        return {Task.VIEW: view_outputs(draw(st.sampled_from(View)), 1.0, members)} if draw(st.booleans()) else {}

    count = draw(st.integers(0, 5))
    loops = [Loop(key=f"1.{index}", outputs=outputs(LOOP_TASKS) | recognised()) for index in range(count)]
    study = outputs((Task.AORTIC_STENOSIS,)) if draw(st.booleans()) else None
    return loops, study


@given(study=studies(), seed=st.integers(0, 1000))
def test_the_order_of_arrival_changes_no_bit(study: tuple[list[Loop], LoopOutputs | None], seed: int) -> None:
    loops, study_outputs = study
    shuffled = list(loops)
    random.Random(seed).shuffle(shuffled)

    assert repr(aggregate(shuffled, study_outputs, INFO)) == repr(aggregate(loops, study_outputs, INFO))
    assert stills_wanted(shuffled, INFO) == stills_wanted(loops, INFO)


@given(study=studies())
def test_every_reported_task_is_either_answered_or_abstained_from(
    study: tuple[list[Loop], LoopOutputs | None],
) -> None:
    prediction = aggregate(*study, INFO)

    named = [one.task for one in prediction.results] + [one.task for one in prediction.abstentions]
    assert sorted(named) == sorted(REPORTED_TASKS)
    assert all(one.reason for one in prediction.abstentions)


@given(study=studies())
def test_every_value_that_is_given_is_finite_and_plausible(study: tuple[list[Loop], LoopOutputs | None]) -> None:
    for one in aggregate(*study, INFO).results:
        info = CATALOGUE[one.task]
        assert one.sd is None or math.isfinite(one.sd)
        assert isinstance(one.value, str) or info.low <= one.value <= info.high


@given(study=studies())
def test_outputs_survive_strict_json(study: tuple[list[Loop], LoopOutputs | None]) -> None:
    for one in study[0]:
        text = json.dumps(outputs_to_json(one.outputs), allow_nan=False)
        back = outputs_from_json(json.loads(text))
        finite = {
            task: [[v if math.isfinite(v) else math.nan for v in m] for m in ms] for task, ms in one.outputs.items()
        }
        assert repr(back) == repr(finite)


@pytest.mark.parametrize(
    ("task", "raw", "value"),
    [
        (Task.LVEF, [0.55], [55.00000000000001]),
        (Task.LVEDV, [math.log(120.0)], [120.0]),
        (Task.LVEF_REDUCED, [0.0], [0.5]),
        (Task.LVEF_REDUCED, [-1000.0], [0.0]),
        (Task.LVEF_REDUCED, [1000.0], [1.0]),
        (Task.LVESV, [1000.0], [math.inf]),
        (Task.VIEW, [1000.0, 0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_raw_outputs_are_decoded_to_the_unit_of_the_task(task: Task, raw: list[float], value: list[float]) -> None:
    assert decode(task, raw) == pytest.approx(value)


def test_a_softmax_over_nan_is_nan() -> None:
    assert all(math.isnan(value) for value in decode(Task.VIEW, [math.nan, 0.0, 0.0, 0.0, 0.0]))


@given(task=st.sampled_from([Task.LVEF, Task.LVEDV, Task.LVESV]), value=st.floats(5.0, 90.0))
def test_decoding_inverts_the_encoding_of_targets(task: Task, value: float) -> None:
    assert decode(task, [encode_target(task, value)])[0] == pytest.approx(value)
