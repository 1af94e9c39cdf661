"""The JSON of a study has the contract's names and shapes."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from dicom_node.completion import tick
from dicom_node.errors import UnknownStudy
from dicom_node.identity import UID
from dicom_node.ledger import outbox
from dicom_node.ledger.claims import NotAnalysed
from dicom_node.ledger.engine import Sessions
from dicom_node.ledger.schema import StudyState
from dicom_node.ledger.views import count_by_state, studies_json, study_json
from tests.doubles.analyst import Analyst
from tests.doubles.arrivals import STUDY, Arrivals
from tests.doubles.clock import ManualClock

RESULT = {"task": "lvef", "value": 57.3, "unit": "%", "sd": 2.1, "loops": ["1.2"], "members": 3}
CONTRACT = [
    "study_instance_uid",
    "state",
    "received_at",
    "completed_at",
    "instances",
    "loops",
    "loops_analysed",
    "not_analysed",
    "results",
    "reports",
    "deliveries",
    "error",
]


def test_a_delivered_study_shows_all_that_the_contract_names(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    loop, still = arrivals.new_uid(), arrivals.new_uid()
    arrivals.send(sop_uid=loop)
    study_id = arrivals.send(sop_uid=still, num_frames=None)
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    first, second = analyst.claim(study_id)
    analyst.answer(first)
    analyst.answer(second, NotAnalysed(code="still", reason="still image"))
    job = analyst.begin(study_id)
    assert job is not None
    analyst.write(job, ["pacs"], [RESULT])
    (item,) = outbox.due(sessions, "pacs", limit=1, lease=timedelta(minutes=1), clock=clock)
    outbox.delivered(sessions, item, clock)

    study = study_json(sessions, STUDY)

    uid = item.sop_instance_uid
    assert list(study)[:12] == CONTRACT
    assert json.loads(json.dumps(study)) == study
    assert {name: study[name] for name in CONTRACT if name != "reports"} == {  # type: ignore[literal-required]
        "study_instance_uid": STUDY,
        "state": "delivered",
        "received_at": "2026-03-01T12:00:00.000Z",
        "completed_at": "2026-03-01T12:00:31.000Z",
        "instances": 2,
        "loops": 1,
        "loops_analysed": 1,
        "not_analysed": [{"sop_instance_uid": still, "reason": "still image"}],
        "results": [RESULT],
        "deliveries": [
            {"peer": "pacs", "report": uid, "state": "delivered", "attempts": 1, "error": None, "commitment": None}
        ],
        "error": None,
    }
    assert study["reports"] == [
        {
            "sop_instance_uid": uid,
            "path": f"reports/{uid}.dcm",
            "supersedes": None,
            "revision": 1,
            "created_at": "2026-03-01T12:00:31.000Z",
            "pictures": [],
        }
    ]
    assert [line["event"] for line in study["history"]] == [
        "receiving",
        "analysing",
        "reporting",
        "delivering",
        "report_delivered",
        "delivered",
    ]


def test_paths_are_given_below_the_data_folder_when_it_is_known(
    arrivals: Arrivals, analyst: Analyst, sessions: Sessions, clock: ManualClock
) -> None:
    study_id = arrivals.send()
    clock.pass_by(31)
    tick(sessions, clock, timedelta(seconds=30))
    analyst.report(study_id)

    (report,) = study_json(sessions, STUDY, data_dir=Path("/data"))["reports"]

    assert report["path"].startswith("/data/reports/2.25.")


def test_an_unknown_study_is_named(sessions: Sessions) -> None:
    with pytest.raises(UnknownStudy, match=r"1\.2\.3"):
        study_json(sessions, UID("1.2.3"))


def test_studies_come_newest_first_and_by_state(arrivals: Arrivals, sessions: Sessions, clock: ManualClock) -> None:
    uids = [UID(f"1.2.826.0.3.{number}") for number in range(3)]
    for uid in uids:
        arrivals.send(uid)
        clock.pass_by(1)
    clock.pass_by(28)
    tick(sessions, clock, timedelta(seconds=30))

    everything = [study["study_instance_uid"] for study in studies_json(sessions)]
    analysing = [study["study_instance_uid"] for study in studies_json(sessions, StudyState.ANALYSING)]
    newest = [study["study_instance_uid"] for study in studies_json(sessions, limit=1)]

    assert (everything, analysing, newest) == (uids[::-1], uids[1::-1], uids[:1:-1])
    assert count_by_state(sessions) == dict.fromkeys(StudyState, 0) | {
        StudyState.ANALYSING: 2,
        StudyState.RECEIVING: 1,
    }
