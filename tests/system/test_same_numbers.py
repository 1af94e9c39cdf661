"""One study, three roads: the network, the files, and the model alone. The numbers are the same to the last bit."""

import io
from pathlib import Path

import pytest
import torch
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from model.aggregate import aggregate, stills_wanted
from model.clip.loop import load_clips, load_still
from model.ensemble import SHIPPED, Ensemble, stack_stills
from model.errors import NotALoop
from model.prediction import Loop, StudyPrediction
from tests.doubles.pacs import DOCUMENTS, running_pacs
from tests.system.nodes import configured, running
from tests.system.studies import analysed, part10, phantom_study, written
from tests.system.validators import assert_valid_report

pytestmark = pytest.mark.timeout(600)

PATIENTS = {
    "german": {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg", "StudyDescription": "Größe Herz"},
    "japanese": {
        "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
        "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
    },
}


def by_model_alone(folder: Path) -> StudyPrediction:
    """Return what the model says, with nothing of node and worker."""
    ensemble = Ensemble.load(SHIPPED)
    loops, paths, sectors = [], {}, {}
    for path in folder.iterdir():
        try:
            clip = load_clips(path, ensemble.spec)
        except NotALoop:
            continue
        key = str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)
        (outputs,) = ensemble.predict_loops(clip.pixels_BCTSS, torch.tensor(clip.indices))
        loops.append(Loop(key=key, outputs=outputs))
        paths[key], sectors[key] = path, clip.sector
    stills = [load_still(paths[key], ensemble.spec, sectors[key]) for key in stills_wanted(loops, ensemble.info)]
    stack, positions = stack_stills(stills, ensemble.spec)
    return aggregate(loops, ensemble.predict_study(stack, positions), ensemble.info)


def test_the_network_the_files_and_the_model_give_the_same_bits(tmp_path: Path) -> None:
    study = phantom_study(seed=6)
    folder = written(study, tmp_path / "files")
    with running_pacs(classes=DOCUMENTS, syntaxes=[JPEGBaseline8Bit, ExplicitVRLittleEndian]) as pacs:
        node = configured(tmp_path / "node", pacs_port=pacs.port, pacs_ae="PACS")
        with running(node):
            assert node.send(study) == [0] * len(study)
            by_network = node.wait_for(study[0].StudyInstanceUID)
    (by_files,) = analysed(folder, tmp_path / "out", "--pictures")["studies"]
    by_model = by_model_alone(folder)
    (report,) = by_files["reports"]
    files = [one["path"] for one in (*report["pictures"], report)]

    assert by_network["results"]
    assert by_network["results"] == by_files["results"]
    assert [(one["task"], one["value"], one["sd"]) for one in by_files["results"]] == [
        (one.task.value, one.value, one.sd) for one in by_model.results
    ]
    assert by_network["not_measured"] == by_files["not_measured"]
    assert by_network["reports"][0]["sop_instance_uid"] == by_files["reports"][0]["sop_instance_uid"]
    assert [one["kind"] for one in report["pictures"]][-2:] == ["summary", "summary_pdf"]
    for sent, file in zip(pacs.stored, files, strict=True):
        assert undated(dcmread(io.BytesIO(sent), force=True)) == undated(dcmread(file))


def undated(document: Dataset) -> Dataset:
    """Return a document without the dates in which two runs differ."""
    for keyword in ("ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime"):
        del document[keyword]
    return document


@pytest.mark.parametrize("patient", PATIENTS)
def test_the_report_of_any_patient_is_valid_and_keeps_the_name(tmp_path: Path, patient: str) -> None:
    study = phantom_study(seed=7)[2:4]
    for instance in study:
        for keyword, value in PATIENTS[patient].items():  # type: ignore[attr-defined]
            setattr(instance, keyword, value)

    content = analysed(written(study, tmp_path / "files"), tmp_path / "out")

    report = dcmread(content["studies"][0]["reports"][0]["path"])
    assert report.SpecificCharacterSet == "ISO_IR 192"
    assert str(report.PatientName) == PATIENTS[patient]["PatientName"]
    assert_valid_report(report)


def test_every_file_is_counted_once(tmp_path: Path) -> None:
    study = phantom_study(seed=8)[2:3]
    folder = written(study, tmp_path / "files")
    (folder / "twin.dcm").write_bytes(part10(study[0]))
    (folder / "notes.txt").write_text("no DICOM")
    (folder / "cut.dcm").write_bytes(part10(study[0])[:200])

    content = analysed(folder, tmp_path / "out")

    assert [one["instances"] for one in content["studies"]] == [1]
    assert len(content["refused"]) == 3
    assert all(one["reason"] for one in content["refused"])


def test_an_unreadable_loop_takes_no_neighbour_down(tmp_path: Path) -> None:
    good, bad = phantom_study(seed=9)[2:4]
    bad.PixelData = bad.PixelData[:3000] + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    bad.NumberOfFrames = 48

    content = analysed(written([good, bad], tmp_path / "files"), tmp_path / "out")

    (one,) = content["studies"]
    assert (one["instances"], one["loops_analysed"]) == (2, 1)
    assert [refused["sop_instance_uid"] for refused in one["not_analysed"]] == [bad.SOPInstanceUID]
    assert one["reports"]
