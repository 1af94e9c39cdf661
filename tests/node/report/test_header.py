"""Headers of real carts, repaired: the table of what breaks a report."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.errors import ReportError
from dicom_node.report.document import build_report
from dicom_node.report.header import common_header, read_header, sanitise
from tests.node.report.samples import EMPTY, EVIDENCE, MOMENT, STUDY


def header(**attributes: object) -> Dataset:
    """Return the repaired attributes of a header that says this."""
    raw = Dataset()
    for keyword, value in attributes.items():
        setattr(raw, keyword, value)
    return sanitise(raw).attributes


@pytest.mark.parametrize(
    ("written", "read"),
    [("19940130", "19940130"), ("1994.01.30", "19940130"), ("19500000", ""), ("30.01.1994", ""), ("", "")],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_dates_are_repaired_or_left_out(written: str, read: str) -> None:
    assert header(PatientBirthDate=written).PatientBirthDate == read


@pytest.mark.parametrize(
    ("written", "read"),
    [("134500", "134500"), ("13:45:00", "134500"), ("134500.123456789", "134500.123456"), ("250000", ""), ("13", "")],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_times_are_repaired_or_left_out(written: str, read: str) -> None:
    assert header(StudyTime=written).StudyTime == read


@pytest.mark.parametrize(("written", "read"), [("M", "M"), ("f", "F"), ("U", ""), ("", "")])
def test_the_sex_is_one_of_the_standard(written: str, read: str) -> None:
    assert header(PatientSex=written).PatientSex == read


def test_missing_attributes_are_empty() -> None:
    clean = header()

    assert [clean[keyword].value for keyword in ("PatientID", "PatientSex", "StudyDate", "AccessionNumber")] == [""] * 4


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO-IR 100", "Müller^Jörg"),
        ("ISO_IR100", "Müller^Jörg"),
        ("ISO_IR 192", "Михайлов^Иван"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ],
)
def test_names_survive_their_character_set(tmp_path: Path, charset: str | list[str], name: str) -> None:
    raw = Dataset()
    valid = "ISO_IR 100" if isinstance(charset, str) and charset.startswith(("ISO-", "ISO_IR1")) else charset
    raw.SpecificCharacterSet = valid
    raw.PatientID, raw.PatientName = "P1", name
    raw.SOPClassUID, raw.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.3"
    raw.file_meta = FileMetaDataset()
    raw.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = tmp_path / "source.dcm"
    dcmwrite(path, raw, enforce_file_format=True)
    if charset != valid:  # write the vendor's name of the character set over the standard's
        assert isinstance(charset, str)
        path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", charset.ljust(10).encode()))

    assert str(read_header(path).attributes.PatientName) == name


def test_a_mix_of_patients_is_refused_without_naming_them() -> None:
    one, other = sanitise(Dataset()), sanitise(Dataset())
    first, second = Dataset(), Dataset()
    first.PatientID, second.PatientID = "SECRET-1", "SECRET-2"

    with pytest.raises(ReportError, match="mixes 2 patients") as caught:
        common_header([one, sanitise(first), other, sanitise(second)])

    assert "SECRET" not in str(caught.value)


def test_a_study_without_a_patient_id_is_refused() -> None:
    with pytest.raises(ReportError, match="no Patient ID"):
        common_header([sanitise(Dataset())])


@given(st.text(), st.text(), st.text())
def test_any_text_makes_a_valid_header(name: str, description: str, time: str) -> None:
    raw = Dataset()
    raw.PatientID = "P1"
    raw.add_new(0x00100010, "LO", name)
    raw.add_new(0x00081030, "LO", description)
    raw.add_new(0x00080030, "LO", time)

    clean = sanitise(raw).attributes
    document = build_report(
        EMPTY,
        study_uid=STUDY,
        revision=1,
        evidence=EVIDENCE,
        header=clean,
        predecessor=None,
        is_complete=True,
        created_at=MOMENT,
    )

    assert document.part10[128:132] == b"DICM"


def test_every_real_header_gives_a_report(shared_data: Path) -> None:
    for path in sorted((shared_data / "us").iterdir()):
        found = read_header(path).attributes
        found.PatientID = found.PatientID or "P1"
        document = build_report(
            EMPTY,
            study_uid=STUDY,
            revision=1,
            evidence=EVIDENCE,
            header=found,
            predecessor=None,
            is_complete=True,
            created_at=MOMENT,
        )
        assert document.part10
