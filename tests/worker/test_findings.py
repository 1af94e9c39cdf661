"""From the model's words to the node's: nothing is added, and what the study abstains from stays unsaid."""

from dataclasses import replace

from model.aggregate import aggregate
from model.clip.sector import Sector, Side
from model.prediction import Loop
from model.tasks import Task, View
from tests.doubles.ensembles import INFO
from worker.findings import Screen, to_findings, to_ledger
from worker.loops import AnalysedLoop, RefusedLoop

APICAL, STILL = "1.2.1", "1.2.2"


def picture(number: int) -> Screen:
    """Return what a header says."""
    return Screen(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.3.1",
        rows=480,
        columns=640,
        num_frames=30,
        series_number=1,
        instance_number=number,
    )


def found(*, edv: float):  # type: ignore[no-untyped-def]
    """Return findings and prediction of a study with one apical loop of LVEF 60 % and ESV 48 mL."""
    outputs = {
        Task.VIEW: [[0.9, 0.025, 0.025, 0.025, 0.025]],
        Task.LVEF: [[60.0]],
        Task.LVEDV: [[edv]],
        Task.LVESV: [[48.0]],
        Task.LVEF_REDUCED: [[0.1]],
    }
    prediction = aggregate([Loop(key=APICAL, outputs=outputs)], None, INFO)
    findings = to_findings(
        prediction,
        {APICAL: AnalysedLoop(outputs=outputs, frames=(0, 0, 2))},
        {STILL: RefusedLoop(code="still", reason="still image, not a cine loop")},
        {APICAL: picture(1), STILL: picture(2)},
    )
    return findings, prediction


def test_a_loop_that_its_header_contradicts_says_so_and_no_number() -> None:
    outputs = {Task.VIEW: [[0.9, 0.025, 0.025, 0.025, 0.025]], Task.LVEF: [[60.0]]}
    prediction = aggregate([Loop(key=APICAL, outputs=outputs, header_view=View.PLAX)], None, INFO)

    findings = to_findings(
        prediction, {APICAL: AnalysedLoop(outputs=outputs, frames=(0, 0, 2))}, {}, {APICAL: picture(1)}
    )

    assert (findings.loops[0].view, findings.loops[0].numbers) == (None, ())
    assert findings.loops[0].contradiction.startswith("the header names the view PLAX, the picture looks like")
    assert findings.notes == ("1 loop shows another view than the header names; not used.",)


def test_a_loop_of_an_uncertain_view_says_which_it_may_be() -> None:
    outputs = {Task.VIEW: [[0.45, 0.3, 0.1, 0.1, 0.05]], Task.LVEF: [[60.0]]}
    prediction = aggregate([Loop(key=APICAL, outputs=outputs)], None, INFO)

    findings = to_findings(prediction, {APICAL: AnalysedLoop(outputs=outputs, frames=(0,))}, {}, {APICAL: picture(1)})

    assert (findings.loops[0].view, findings.loops[0].uncertain_view, findings.loops[0].numbers) == (None, "A4C", ())


def test_an_answer_keeps_its_numbers_and_its_loop() -> None:
    findings, _ = found(edv=120.0)

    assert [(one.task, one.value, one.loops) for one in findings.measurements] == [
        ("lvef", 60.0, (APICAL,)),
        ("lvedv", 120.0, (APICAL,)),
        ("lvesv", 48.0, (APICAL,)),
    ]
    assert [number.value for number in findings.loops[0].numbers] == [60.0, 120.0, 48.0]
    assert findings.loops[0].frames_used == (1, 3)


def test_a_loop_s_region_is_what_was_cut_out_of_its_screen() -> None:
    rows, columns = picture(1).rows, picture(1).columns
    sector = Sector(rows=rows, columns=columns, step=1, sides=(Side(1.0, 0.0, 10.0), Side(0.0, 1.0, 20.0)), arc=None)
    outputs = {Task.VIEW: [[0.9, 0.025, 0.025, 0.025, 0.025]], Task.LVEF: [[60.0]]}
    prediction = aggregate([Loop(key=APICAL, outputs=outputs)], None, INFO)

    boxes = [
        to_findings(
            prediction, {APICAL: AnalysedLoop(outputs=outputs, frames=(0,), sector=one)}, {}, {APICAL: picture(1)}
        )
        .loops[0]
        .box
        for one in (None, sector, replace(sector, box_shape=(30, 40)))
    ]

    assert boxes[0] == (0, 0, columns, rows)
    left, top, right, bottom = boxes[1]
    assert (top, bottom) == (20, rows)
    assert 0 <= left <= 10
    assert right == columns
    middle = (10 + columns) / 2
    assert boxes[2] == (round(middle - 20), 20, round(middle - 20) + 40, 50)


def test_what_the_study_abstains_from_no_loop_says_alone() -> None:
    findings, _ = found(edv=60.0)  # (60-48)/60 = 20 %, against an LVEF of 60 %

    assert findings.measurements == ()
    assert findings.loops[0].numbers == ()


def test_a_refused_instance_keeps_its_reason() -> None:
    findings, _ = found(edv=120.0)

    assert [(one.sop_instance_uid, one.reason) for one in findings.refused] == [(STILL, "still image, not a cine loop")]


def test_every_reported_task_is_answered_or_abstained_from() -> None:
    _, prediction = found(edv=120.0)

    ledger = to_ledger(prediction)

    said = [one["task"] for one in ledger["results"]] + [one["task"] for one in ledger["not_measured"]]
    assert sorted(said) == sorted(["lvef", "lvedv", "lvesv", "lvef_reduced", "aortic_stenosis"])
    assert ledger["ensemble"]["statement"] == "for a test"
