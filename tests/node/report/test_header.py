"""Headers of real carts, repaired: the table of what breaks a report."""

import io
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.errors import ReportError
from dicom_node.report.header import SourceHeader, common_header, read_header, sanitise
from tests.node.report.samples import EMPTY, patient, report


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


def named(patient_id: str, name: str, birth_date: str) -> SourceHeader:
    """Return the repaired header of one instance of a patient."""
    raw = Dataset()
    raw.PatientID, raw.PatientName, raw.PatientBirthDate = patient_id, name, birth_date
    return sanitise(raw)


@pytest.mark.parametrize("other_id", ["SECRET-1", ""])
def test_two_persons_under_one_patient_id_are_a_mix(other_id: str) -> None:
    one, other = named("SECRET-1", "Doe^Jane", "19500101"), named(other_id, "Roe^Richard", "19800202")

    with pytest.raises(ReportError, match="mixes patients") as caught:
        common_header([one, other])

    assert not any(word in str(caught.value) for word in ("SECRET", "Doe", "Roe", "1950", "1980"))


@pytest.mark.parametrize(
    ("name", "birth_date"),
    [("Roe^Jane", "19500101"), ("Doe^Jane", "19500110"), ("DOE^JANE^", "19500110"), ("", "19800202"), ("Roe^Ann", "")],
)
def test_a_new_name_or_a_corrected_date_is_still_one_person(name: str, birth_date: str) -> None:
    one, other = named("1", "Doe^Jane", "19500101"), named("1", name, birth_date)

    assert common_header([one, other]).PatientID == "1"


def test_a_back_slash_does_not_make_two_patient_ids_one() -> None:
    with pytest.raises(ReportError, match="has no Patient ID"):
        common_header([named("A\\1", "Doe^Jane", ""), named("A\\2", "Doe^Jane", "")])


def test_an_ideographic_name_without_an_alphabetic_one_stays_in_its_group() -> None:
    assert header(PatientName="=山田^太郎=やまだ^たろう").PatientName == "=山田^太郎=やまだ^たろう"


@given(st.lists(st.tuples(st.integers(132, 2000), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 2000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_make_an_emptier_header_and_never_an_error(
    tmp_path: Path, changes: list[tuple[int, int]], cut: int
) -> None:
    instance = patient(StudyDate="20260101", StudyTime="120000", StudyDescription="Echo " * 12)
    instance.SpecificCharacterSet, instance.Rows, instance.NumberOfFrames = "ISO_IR 192", 480, 60
    instance.SOPClassUID, instance.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.3"
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dcmwrite(buffer, instance, enforce_file_format=True)
    damaged = bytearray(buffer.getvalue())
    for position, value in changes:
        damaged[min(position, len(damaged) - 1)] = value
    path = tmp_path / "damaged.dcm"
    path.write_bytes(damaged[: max(132, len(damaged) - cut)])

    assert read_header(path).patient_id in damaged.decode("utf-8", "replace")


NUMBER = b"\x20\x00\x11\x00IS\x04\x001234"
ITEM = b"\xfe\xff\x00\xe0"


@pytest.mark.parametrize(
    "instead",
    [
        pytest.param(b"IS\x04\x00inf ", id="an infinite number"),
        pytest.param(b"SQ\0\0\x08\0\0\0" + ITEM + bytes(4), id="an item"),
        pytest.param(b"SQ\0\0\x10\0\0\0" + ITEM + b"\x08\0\0\0" + ITEM + b"ZZ\0\0", id="an item that is none"),
    ],
)
def test_what_stands_in_the_place_of_a_number_costs_itself_alone(tmp_path: Path, instead: bytes) -> None:
    """Files 275 and 308 of tests/system/test_fuzz_files.py: no report was written of a study that held one of them."""
    path = tmp_path / "a.dcm"
    source = Dataset()
    source.PatientID, source.SeriesNumber = "P1", "1234"
    source.file_meta = FileMetaDataset()
    source.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    source.file_meta.MediaStorageSOPClassUID = source.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dcmwrite(path, source, enforce_file_format=True)
    assert NUMBER in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(NUMBER, NUMBER[:4] + instead))

    read = read_header(path)

    assert (read.patient_id, read.series_number) == ("P1", None)


def test_a_file_that_the_disk_does_not_give_back_is_said(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="cannot be read again"):
        read_header(tmp_path / "lost.dcm")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("P1", "P1"),
        (" P 1 ", "P 1"),
        ("P1\0", "P1"),
        ("P\n1", ""),
        ("P1\\P2", ""),
        ("P" * 64, "P" * 64),
        ("P" * 65, ""),
    ],
)
def test_a_patient_id_that_would_have_to_be_repaired_is_none(written: str, read: str) -> None:
    """Repaired or cut it could be another patient's; without one the study has no report, and the reason is said."""
    raw = Dataset()
    with warnings.catch_warnings(action="ignore"):
        raw.PatientID = written

    assert sanitise(raw).patient_id == read


def test_a_study_without_a_patient_id_is_refused() -> None:
    with pytest.raises(ReportError, match="no Patient ID"):
        common_header([sanitise(Dataset())])


def test_each_attribute_is_of_the_first_header_that_has_it() -> None:
    report, loop = Dataset(), Dataset()
    report.PatientID = loop.PatientID = "P1"
    report.PatientName = "Doe^Jane"
    loop.PatientName, loop.PatientSex, loop.StudyDescription = "Doe^J", "F", "Echo"
    nobody = Dataset()
    nobody.PatientBirthDate = "19600102"

    found = common_header([sanitise(nobody), sanitise(report), sanitise(loop)])

    assert (found.PatientName, found.PatientSex, found.StudyDescription) == ("Doe^Jane", "F", "Echo")
    assert found.PatientBirthDate == ""


@given(st.text(), st.text(), st.text())
def test_any_text_makes_a_valid_header(name: str, description: str, time: str) -> None:
    raw = Dataset()
    raw.PatientID = "P1"
    raw.add_new(0x00100010, "LO", name)
    raw.add_new(0x00081030, "LO", description)
    raw.add_new(0x00080030, "LO", time)

    clean = sanitise(raw).attributes
    document = report(EMPTY, header=clean)

    assert document.part10[128:132] == b"DICM"


def test_every_real_header_gives_a_report(shared_data: Path) -> None:
    for path in sorted((shared_data / "us").iterdir()):
        found = read_header(path).attributes
        found.PatientID = found.PatientID or "P1"
        document = report(EMPTY, header=found)
        assert document.part10


@pytest.mark.parametrize("day", ["19990229", "20230230", "20230431", "20231301", "00000101"])
def test_a_day_that_no_calendar_has_is_none(day: str) -> None:
    raw = Dataset()
    raw.PatientID = "P1"
    raw.add_new(0x00100030, "LO", day)
    raw.add_new(0x00080020, "LO", day)

    clean = sanitise(raw).attributes

    assert (clean.PatientBirthDate, clean.StudyDate) == ("", "")
    assert sanitise(with_birth_date("20000229")).attributes.PatientBirthDate == "20000229"
    assert report(EMPTY, header=clean).part10


def with_birth_date(day: str) -> Dataset:
    """Return a header that says when the patient was born."""
    raw = Dataset()
    raw.PatientBirthDate = day
    return raw


@pytest.mark.parametrize(
    ("sent", "time", "kept"), [("+0530", "083405", "+0530"), ("-0800", "190405", "-0800"), ("UTC+1", "030405", "+0000")]
)
def test_content_times_are_in_the_time_zone_of_the_study(sent: str, time: str, kept: str) -> None:
    raw = Dataset()
    raw.PatientID = "P1"
    raw.add_new(0x00080201, "SH", sent)

    written = dcmread(io.BytesIO(report(EMPTY, header=sanitise(raw).attributes).part10))

    assert written.TimezoneOffsetFromUTC == kept
    assert written.ContentTime.startswith(time)
