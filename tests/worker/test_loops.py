"""A verdict is kept in the ledger and comes back as it was."""

import json
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.sequence import Sequence

from model.clip.sector import Arc, Sector, Side
from model.ensemble import SHIPPED
from model.phantom.dicom import region
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.phantom.screen import Screen
from model.tasks import Task, View
from tests.doubles.loops import US_MULTI_FRAME, write_native
from worker.compose import Subject, predict
from worker.engine import load_engine
from worker.loops import AnalysedLoop, analyse_files

SECTOR = Sector(rows=600, columns=800, step=2, sides=(Side(0.8, 0.6, 1 / 3), Side(-0.8, 0.6, -0.1)),
                arc=Arc(200.1, 10.7, 250 / 7))  # fmt: skip


def test_a_result_comes_back_with_its_sector_to_the_last_bit() -> None:
    loop = AnalysedLoop(outputs={Task.LVEF: [[1 / 3]]}, frames=(0, 2, 4), sector=SECTOR, header_view=View.PLAX)

    assert AnalysedLoop.from_json(json.loads(json.dumps(loop.to_json()))) == loop


def test_a_result_of_an_older_version_has_no_sector_and_no_view_of_its_header() -> None:
    document = AnalysedLoop(outputs={}, frames=(0,), sector=None).to_json()
    del document["sector"], document["header_view"]

    kept = AnalysedLoop.from_json(document)

    assert (kept.sector, kept.header_view) == (None, None)


def test_a_file_s_view_goes_with_its_verdict_and_silences_it(tmp_path: Path) -> None:
    """From the header of the file to what the study says: the shipped networks see four chambers, the header two."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "399232001", "SCT", "Apical two chamber"
    frames = render(Heart(edv_ml=120.0, esv_ml=50.0), View.A4C, num_frames=20, frame_time_ms=50.0,
                    rng=np.random.default_rng(0))  # fmt: skip
    regions = Sequence([region(Screen(), spatial_format=1, data_type=1)])
    loops = {
        "1.1": write_native(tmp_path / "a.dcm", frames, SequenceOfUltrasoundRegions=regions),
        "1.2": write_native(
            tmp_path / "b.dcm", frames, SequenceOfUltrasoundRegions=regions, ViewCodeSequence=Sequence([item])
        ),
    }
    engine = load_engine(SHIPPED, device="cpu")

    verdicts = list(analyse_files(list(loops.values()), engine))
    subjects = [
        Subject(
            sop_instance_uid=uid, sop_class_uid=US_MULTI_FRAME, series_instance_uid="1.9", path=path, verdict=verdict
        )
        for (uid, path), verdict in zip(loops.items(), verdicts, strict=True)
    ]
    prediction = predict(subjects, engine)

    assert [(one.key, one.view, one.is_contradicted) for one in prediction.loops] == [
        ("1.1", View.A4C, False), ("1.2", None, True),
    ]  # fmt: skip
    assert {result.loops for result in prediction.results} == {("1.1",)}
