"""Every report read back by dcmtk: each number, code, reference and word is what went in, no more and no less."""

import re
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread

from dicom_node.report.document import Document, Evidence
from dicom_node.report.findings import (
    Abstained,
    CartValue,
    EvaluatedFinding,
    Evaluation,
    Findings,
    LoopFinding,
    LoopNumber,
    MeasuredValue,
    Measurement,
    NotMeasured,
    PictureKind,
    Predecessor,
    RefusedInstance,
)
from dicom_node.report.header import read_header
from dicom_node.report.pictures import Picture
from tests.node.report.dcmtk_reader import Item, read
from tests.node.report.samples import (
    ALGORITHM,
    APICAL,
    AXIAL,
    EMPTY,
    EVIDENCE,
    MEASURED,
    REFUSED,
    STILL,
    STUDY,
    UNSEEN,
    US_IMAGE,
    US_MULTIFRAME,
    loop,
    origin,
    patient,
    pictures,
    report,
)
from tests.node.report.told import comments, told
from tests.system.validators import assert_valid_report

OTHER_SERIES = "1.2.10"
GRADES = ("no", "mild", "mildtomod", "moderate", "severe")

CONTRADICTED = "the header names the view PLAX, the picture looks like the view A4C (p=0.93): not used"
APART = "the LVEF (60.0 %) and the volumes (EDV 60 mL, ESV 48 mL, hence 20.0 %) differ by 40.0 points"

SEVERAL_LOOPS = replace(
    MEASURED,
    measurements=tuple(
        replace(one, loops=(APICAL, AXIAL), members=members, sd=sd)
        for one, members, sd in zip(MEASURED.measurements, (3, 1, 1), (0.04, None, None), strict=True)
    ),
    loops=(
        replace(
            loop(APICAL, 12, "A4C", *(LoopNumber(task=task, value=49.95, sd=None) for task in Measurement)),
            view_probability=0.9996,
        ),
        replace(loop(AXIAL, 4, "A2C", LoopNumber(task=Measurement.LVEDV, value=119.5, sd=0.26)), frames_used=(7,)),
        replace(loop("1.2.3.4", 4, "PSAX"), series_number=None, instance_number=None, num_frames=8, box=(0, 0, 1, 1)),
    ),
)
MIXED = replace(
    SEVERAL_LOOPS,
    measurements=SEVERAL_LOOPS.measurements[:1],
    evaluations=(),
    abstentions=(
        Abstained(task=Measurement.LVEDV, kind=NotMeasured.OUT_OF_RANGE, reason="a volume of 900 mL is not plausible"),
        Abstained(task=Measurement.LVESV, kind=NotMeasured.FAILURE, reason="the network gave no number"),
        Abstained(task=Evaluation.LVEF_REDUCED, kind=NotMeasured.INDETERMINATE, reason="p=0.52: a coin would do"),
        Abstained(task=Evaluation.AORTIC_STENOSIS, kind=NotMeasured.NOT_ATTEMPTED, reason="no loop shows the valve"),
    ),
    loops=(
        *SEVERAL_LOOPS.loops,
        replace(loop("1.2.3.5", 30, None), uncertain_view="PSAX", view_probability=0.449),
        replace(loop("1.2.3.6", 31, None), contradiction=CONTRADICTED),
        replace(loop("1.2.3.7", 32, "other"), view_probability=0.5),
    ),
)
BY_VOLUMES = replace(
    EMPTY,
    abstentions=tuple(Abstained(task=task, kind=NotMeasured.INDETERMINATE, reason=APART) for task in Measurement),
    loops=(loop(APICAL, 1, "A4C"),),
)
REASONS = replace(
    EMPTY,
    refused=(
        replace(
            REFUSED, reason="Größe der Bilder; 画像が小さい; снимок мал; <b>&amp;</b> \"quoted\" 'twice'", num_frames=1
        ),
        replace(REFUSED, reason="long " * 400 + "end", series_number=None, num_frames=60),
        replace(REFUSED, reason="back\\slash", series_number=None, instance_number=None),
        replace(REFUSED, reason="two\nlines", series_number=0, instance_number=0, num_frames=0),
    ),
    cart=tuple(
        CartValue(measurement=task, value=value, unit=unit, method=method, sop_instance_uid="1.2.3.90")
        for task, value, unit, method in (
            (Measurement.LVEF, 54.4, "%", "biplane"),
            (Measurement.LVEDV, 119.6, "mL", ""),
            (Measurement.LVESV, 55.0, "mL", "4-chamber"),
            (Measurement.LVEF, 54.0, "%", "biplane"),
        )
    ),
    notes=(
        "The LVEF and the volumes differ by 9 points.",
        "2 loops show another view than the header names; not used.",
    ),
)
SILENT = replace(MEASURED, algorithm=replace(ALGORITHM, statement=""), refused=(), notes=())
LONG_NAMES = replace(
    MEASURED,
    algorithm=replace(
        ALGORITHM, name="Echo-Vision-FM (" + "n" * 80 + ")", version="1.0+" + "v" * 60, statement="s" * 200
    ),
)


def graded(grade: str) -> Findings:
    """Return findings with this grade of aortic stenosis."""
    probabilities = {one: 0.6125 if one == grade else 0.096875 for one in GRADES}
    valve = replace(MEASURED.evaluations[1], value=grade, probabilities=probabilities, members=1, loops=(AXIAL,))
    depressed = replace(MEASURED.evaluations[0], value="present", probabilities={"reduced": 0.999})
    return replace(MEASURED, evaluations=(depressed, valve))


FINDINGS = {
    "measured": MEASURED,
    "several loops": SEVERAL_LOOPS,
    "some measured, some not": MIXED,
    "nothing measured": EMPTY,
    "views not recognised": UNSEEN,
    "refused because of the volumes": BY_VOLUMES,
    "long and foreign reasons": REASONS,
    "no statement": SILENT,
    "long names": LONG_NAMES,
    **{f"grade {grade}": graded(grade) for grade in GRADES},
}


def evidence_of(findings: Findings) -> tuple[Evidence, ...]:
    """Return the study that such findings are made from: two series, a document, and a private object."""
    listed = {one.sop_instance_uid for one in EVIDENCE}
    more = [one.sop_instance_uid for one in findings.loops if one.sop_instance_uid not in listed]
    document = Evidence(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33",
        sop_instance_uid="1.2.3.90",
        series_instance_uid="1.2.11",
        rows=None,
        columns=None,
    )
    private = replace(document, sop_class_uid="1.3.46.670589.2.5.1.1", sop_instance_uid="1.2.3.91")
    loops = [
        replace(EVIDENCE[0], sop_instance_uid=uid, series_instance_uid=OTHER_SERIES) for uid in dict.fromkeys(more)
    ]
    return (document, private, *EVIDENCE, *loops)


def with_made_up_uids_hidden(item: Item) -> Item:
    """Return the tree with `<uid>` for every UID that is an item's value."""
    value = "<uid>" if item.kind == "UIDREF" else item.value
    return replace(item, value=value, children=tuple(map(with_made_up_uids_hidden, item.children)))


def every(item: Item) -> list[Item]:
    """Return the item and all below it, in the order of the document."""
    return [item, *(one for child in item.children for one in every(child))]


def file(folder: Path, document: Document) -> Path:
    """Return the file of a report."""
    path = folder / "report.dcm"
    path.write_bytes(document.part10)
    return path


def assert_says(
    path: Path, findings: Findings, evidence: tuple[Evidence, ...], pictures: Sequence[Picture] = ()
) -> None:
    """Fail unless dcmtk reads what the findings say, line by line."""
    assert with_made_up_uids_hidden(read(path).content).lines() == told(findings, evidence, pictures).lines()


@pytest.mark.parametrize("name", FINDINGS)
def test_the_report_says_what_was_found_and_nothing_else(name: str, tmp_path: Path) -> None:
    findings = FINDINGS[name]
    evidence = evidence_of(findings)

    path = file(tmp_path, report(findings, evidence=evidence))

    assert_says(path, findings, evidence)


@pytest.mark.parametrize("name", FINDINGS)
def test_the_report_refers_to_its_pictures_where_they_belong(name: str, tmp_path: Path) -> None:
    findings = FINDINGS[name]
    evidence = evidence_of(findings)
    shown = [made for one in findings.loops for made in pictures([PictureKind.SALIENCY], shown=one)]
    made = [*shown, *pictures([PictureKind.SUMMARY, PictureKind.SUMMARY_PDF])]

    path = file(tmp_path, report(findings, evidence=evidence, pictures=made))

    assert_says(path, findings, evidence, made)
    assert {one.sop_instance_uid for one in made} <= {instance for *_, instance in read(path).evidence}
    assert_valid_report(path.read_bytes(), pixelmed=False)


@pytest.mark.parametrize("name", FINDINGS)
def test_no_validator_finds_an_error(name: str) -> None:
    findings = FINDINGS[name]
    document = report(findings, evidence=evidence_of(findings))

    assert_valid_report(document.part10, pixelmed=findings is MIXED)


def test_the_evidence_is_the_study_without_its_private_objects(tmp_path: Path) -> None:
    evidence = evidence_of(MIXED)

    read_back = read(file(tmp_path, report(MIXED, evidence=evidence)))

    assert read_back.evidence == sorted(
        (STUDY, one.series_instance_uid, one.sop_class_uid, one.sop_instance_uid)
        for one in evidence
        if one.sop_instance_uid != "1.2.3.91"
    )
    assert read_back.predecessors == []


def test_a_study_that_begins_with_a_loop_of_the_retired_class_is_reported_too(tmp_path: Path) -> None:
    retired = replace(MEASURED.loops[0], sop_class_uid="1.2.840.10008.5.1.4.1.1.3")
    findings = replace(MEASURED, loops=(retired, MEASURED.loops[1]))
    evidence = (replace(EVIDENCE[0], sop_class_uid=retired.sop_class_uid), *EVIDENCE[1:])

    assert_says(file(tmp_path, report(findings, evidence=evidence)), findings, evidence)


def test_the_first_instance_may_be_of_a_class_that_nothing_here_knows(tmp_path: Path) -> None:
    unknown = replace(EVIDENCE[0], sop_class_uid="1.2.840.10008.5.1.4.1.1.999", sop_instance_uid="1.2.2", rows=None)

    read_back = read(file(tmp_path, report(evidence=(unknown, *EVIDENCE))))

    assert read_back.evidence[0] == (STUDY, "1.2.9", "1.2.840.10008.5.1.4.1.1.3.1", APICAL)
    assert (STUDY, "1.2.9", unknown.sop_class_uid, "1.2.2") in read_back.evidence


@pytest.mark.parametrize("evidence", [EVIDENCE[::-1], EVIDENCE[2:]], ids=["a still, then loops", "a still alone"])
def test_a_study_that_begins_with_a_still_is_reported_too(evidence: tuple[Evidence, ...], tmp_path: Path) -> None:
    path = file(tmp_path, report(EMPTY, evidence=evidence))

    assert_says(path, EMPTY, evidence)
    assert_valid_report(path.read_bytes(), pixelmed=False)


def test_control_characters_of_a_damaged_header_do_not_reach_the_report(tmp_path: Path) -> None:
    quoted = replace(EMPTY, refused=(replace(REFUSED, reason="RGB\x00\x01\t\x0c\x1b$)A\x7f with 3 samples"),))
    plain = replace(EMPTY, refused=(replace(REFUSED, reason="RGB     $)A  with 3 samples"),))

    path = file(tmp_path, report(quoted))

    assert_says(path, plain, EVIDENCE)
    assert_valid_report(path.read_bytes(), pixelmed=False)


def test_what_is_said_of_the_study_stands_in_its_order(tmp_path: Path) -> None:
    content = read(file(tmp_path, report(REASONS))).content

    words = content.children[-1]
    assert words.name == "C0034375 UMLS Qualitative Evaluations"
    assert [one.value for one in words.children[:-1]] == comments(REASONS)
    assert words.children[-1].name == "121077 DCM Conclusion"


def test_loops_are_numbered_as_a_person_counts_them(tmp_path: Path) -> None:
    content = read(file(tmp_path, report(SEVERAL_LOOPS, evidence=evidence_of(SEVERAL_LOOPS)))).content

    labels = [one.value for one in every(content) if one.name == "112039 DCM Tracking Identifier"]
    library = [one.value.split()[1] for one in every(content) if one.name == "260753009 SCT Source"]
    assert labels == ["Study: left ventricle", "Study: aortic valve", "Loop 1", "Loop 2", "Loop 3"]
    assert library == ["1.2.3.4", AXIAL, APICAL]  # without a number, instance 4, instance 12


def test_every_group_has_a_uid_of_its_own_and_every_report_other_ones(tmp_path: Path) -> None:
    again = replace(MIXED, algorithm=replace(ALGORITHM, ensemble_digest="cd" * 32))
    evidence = evidence_of(MIXED)
    documents = (
        report(MIXED, evidence=evidence),
        report(MIXED, evidence=evidence, revision=2),
        report(again, evidence=evidence),
    )

    found = [read(file(tmp_path, one)) for one in documents]

    uids = [
        one.value for each in found for one in every(each.content) if one.name.startswith("112040 DCM")
    ] + [each.header["SOPInstanceUID"] for each in found]  # fmt: skip
    assert len(uids) == len(set(uids)) == 3 * (2 + len(MIXED.loops)) + 3
    assert all(re.fullmatch(r"2\.25\.[1-9][0-9]{1,38}", uid) for uid in uids)
    assert len({each.header["SeriesInstanceUID"] for each in found}) == 1


# --- The header ---

MADE = {
    "SpecificCharacterSet": "ISO_IR 192",
    "InstanceCreationDate": "20261124",
    "InstanceCreationTime": "030405.000000",
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33",
    "ContentDate": "20261124",
    "ContentTime": "030405.000000",
    "Modality": "SR",
    "Manufacturer": "Echo AI node",
    "TimezoneOffsetFromUTC": "+0000",
    "SeriesDescription": "Echo AI (research): untrained weights: numbers have no meaning",
    "ManufacturerModelName": "Echo AI node",
    "DeviceSerialNumber": "abababababababab",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1",
    "SeriesNumber": "9000",
    "InstanceNumber": "1",
    "ValueType": "CONTAINER",
    "ContinuityOfContent": "SEPARATE",
    "CompletionFlag": "COMPLETE",
    "VerificationFlag": "UNVERIFIED",
    "PreliminaryFlag": "PRELIMINARY",
}
"""What the node writes of itself into the report of the samples."""

NOBODY = dict.fromkeys(
    (
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyID",
    ),
    "",
)
"""Attributes of type 2: always there."""

TAGS = {
    "SpecificCharacterSet": (0x0008, 0x0005, b"CS"),
    "StudyDate": (0x0008, 0x0020, b"DA"),
    "StudyTime": (0x0008, 0x0030, b"TM"),
    "AccessionNumber": (0x0008, 0x0050, b"SH"),
    "InstitutionName": (0x0008, 0x0080, b"LO"),
    "ReferringPhysicianName": (0x0008, 0x0090, b"PN"),
    "StudyDescription": (0x0008, 0x1030, b"LO"),
    "PatientName": (0x0010, 0x0010, b"PN"),
    "PatientID": (0x0010, 0x0020, b"LO"),
    "IssuerOfPatientID": (0x0010, 0x0021, b"LO"),
    "PatientBirthDate": (0x0010, 0x0030, b"DA"),
    "PatientSex": (0x0010, 0x0040, b"CS"),
    "StudyID": (0x0020, 0x0010, b"SH"),
}

# A term as carts write it -> a name and a description, with the codec of their bytes.
CHARACTER_SETS = {
    "ISO_IR 100": (("Müller^Jörg", "latin-1"), ("Größe Herz", "latin-1")),
    "ISO-IR 100": (("Müller^Jörg", "latin-1"), ("Größe Herz", "latin-1")),
    "ISO_IR 101": (("Wałęsa^Łucja", "iso8859_2"), ("Wada serca, część", "iso8859_2")),
    "ISO_IR 109": (("Ħal^Ġorġ", "iso8859_3"), ("Ċ", "iso8859_3")),
    "ISO_IR 110": (("Bērziņš^Jānis", "iso8859_4"), ("šķērslis", "iso8859_4")),
    "ISO_IR 144": (("Люкceмбypг^Иван", "iso8859_5"), ("ЭхоКГ сердца", "iso8859_5")),
    "ISO_IR 127": (("قباني^لنزار", "iso8859_6"), ("صدى القلب", "iso8859_6")),
    "ISO_IR 126": (("Διονυσιος", "iso8859_7"), ("Καρδιά", "iso8859_7")),
    "ISO_IR 138": (("שרון^דבורה", "iso8859_8"), ("לב", "iso8859_8")),
    "ISO_IR 148": (("Çavuşoğlu^Işık", "iso8859_9"), ("Kalp", "iso8859_9")),
    "ISO_IR 166": (("ใจดี^สมชาย", "iso8859_11"), ("หัวใจ", "iso8859_11")),
    "ISO_IR 192": (("Wang^XiaoDong=王^小東=", "utf-8"), ("Größe 心臓 сердце \U0001fac0", "utf-8")),
    "GB18030": (("Wang^XiaoDong=王^小东=", "gb18030"), ("心脏超声", "gb18030")),
    "GBK": (("Wang^XiaoDong=王^小东=", "gbk"), ("心脏超声", "gbk")),
}
# Terms -> the bytes and the text of a name: the examples of PS3.5 annexes H, I and K.
IDEOGRAPHIC = {
    "\\ISO 2022 IR 87": (
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
    ),
    "ISO 2022 IR 13\\ISO 2022 IR 87": (
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    "\\ISO 2022 IR 149": (
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    "\\ISO 2022 IR 58": (
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
        "Zhang^XiaoDong=张^小东",
    ),
    " ISO 2022 IR 6\\ISO 2022 IR 87": (b"=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", "=山田^太郎"),
}


def sent(folder: Path, attributes: dict[str, bytes]) -> Path:
    """Write an instance with these bytes in its header, by no library."""
    encoded = b"".join(element(*TAGS[name], value) for name, value in sorted(attributes.items(), key=_by_tag))
    path = folder / "sent.dcm"
    path.write_bytes(bytes(128) + b"DICM" + element(0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2.1") + encoded)
    return path


def _by_tag(attribute: tuple[str, bytes]) -> tuple[int, int, bytes]:
    return TAGS[attribute[0]]


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """Return a data element in Explicit VR Little Endian (PS3.5 7.1.2)."""
    padded = value if len(value) % 2 == 0 else value + (b"\0" if vr == b"UI" else b" ")
    return b"".join(
        (*(one.to_bytes(2, "little") for one in (group, number)), vr, len(padded).to_bytes(2, "little"), padded)
    )


def header_of(path: Path) -> dict[str, str]:
    """Return what the report says of patient and study; fail if what the node says of itself is something else."""
    header = read(path).header
    assert {name: header.pop(name) for name in MADE} == MADE
    made_up = {header.pop(name) for name in ("SOPInstanceUID", "SeriesInstanceUID")}
    assert len(made_up) == 2
    assert re.fullmatch(r"[0-9][^\\ ]*\\Echo-Vision-FM \(phantom\) 0\.1\.0", header.pop("SoftwareVersions"))
    return header


def report_of(folder: Path, attributes: dict[str, bytes]) -> Path:
    """Return the report of a study whose instances have this header."""
    return file(folder, report(EMPTY, header=read_header(sent(folder, attributes)).attributes))


@pytest.mark.parametrize("charset", CHARACTER_SETS)
def test_text_survives_its_character_set(charset: str, tmp_path: Path) -> None:
    (name, codec), (description, _) = CHARACTER_SETS[charset]
    attributes = {
        "SpecificCharacterSet": charset.encode(),
        "PatientName": name.encode(codec),
        "ReferringPhysicianName": name.encode(codec),
        "PatientID": b"P-1",
        "StudyDescription": description.encode(codec),
        "InstitutionName": description.encode(codec),
    }

    path = report_of(tmp_path, attributes)

    assert header_of(path) == NOBODY | {
        "PatientID": "P-1",
        "PatientName": name.rstrip("="),
        "ReferringPhysicianName": name.rstrip("="),
        "StudyDescription": description,
        "InstitutionName": description,
    }
    assert_valid_report(path.read_bytes(), pixelmed=False)


@pytest.mark.parametrize("charset", IDEOGRAPHIC)
def test_ideographic_and_phonetic_names_survive_their_escape_sequences(charset: str, tmp_path: Path) -> None:
    encoded, name = IDEOGRAPHIC[charset]

    path = report_of(tmp_path, {"SpecificCharacterSet": charset.encode(), "PatientName": encoded, "PatientID": b"P-1"})

    assert header_of(path) == NOBODY | {"PatientID": "P-1", "PatientName": name}
    assert_valid_report(path.read_bytes(), pixelmed=False)


def test_every_attribute_of_patient_and_study_is_taken_over(tmp_path: Path) -> None:
    said = {
        "StudyDate": "20261123",
        "StudyTime": "235959.5",
        "AccessionNumber": "A-0123456789-XYZ",
        "ReferringPhysicianName": "Roe^Jane^M^Dr^PhD",
        "PatientName": "Doe^John",
        "PatientID": "0001",
        "IssuerOfPatientID": "HOSPITAL",
        "PatientBirthDate": "19490228",
        "PatientSex": "M",
        "StudyID": "17",
        "StudyDescription": "Echo, transthoracic",
        "InstitutionName": "General Hospital",
    }

    path = report_of(tmp_path, {name: value.encode() for name, value in said.items()})

    assert header_of(path) == said
    assert_valid_report(path.read_bytes(), pixelmed=False)


@pytest.mark.parametrize("letter", ["x", "ü", "心", "\U0001fac0"])
def test_values_of_the_greatest_length_stay_whole(letter: str, tmp_path: Path) -> None:
    said = {
        "AccessionNumber": letter * 16,
        "PatientName": f"{letter * 64}={letter * 64}={letter * 64}",
        "PatientID": letter * 64,
        "IssuerOfPatientID": letter * 64,
        "StudyID": letter * 16,
        "StudyDescription": letter * 64,
        "InstitutionName": letter * 64,
    }

    path = report_of(
        tmp_path, {name: value.encode() for name, value in (said | {"SpecificCharacterSet": "ISO_IR 192"}).items()}
    )

    assert header_of(path) == NOBODY | said
    assert_valid_report(path.read_bytes(), pixelmed=False)


def test_a_header_that_says_nothing_leaves_the_attributes_of_type_2_empty(tmp_path: Path) -> None:
    path = report_of(tmp_path, {})

    assert header_of(path) == NOBODY
    assert_valid_report(path.read_bytes(), pixelmed=False)


# --- Revisions ---


def test_a_partial_revision_names_its_predecessor(tmp_path: Path) -> None:
    predecessor = Predecessor(
        study_instance_uid=STUDY,
        series_instance_uid="1.2.8",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.88.33",
        sop_instance_uid="1.2.8.1",
    )

    path = file(tmp_path, report(revision=17, predecessor=predecessor, is_complete=False))

    read_back = read(path)
    assert read_back.predecessors == [(STUDY, "1.2.8", "1.2.840.10008.5.1.4.1.1.88.33", "1.2.8.1")]
    assert (read_back.header["CompletionFlag"], read_back.header["InstanceNumber"]) == ("PARTIAL", "17")
    assert_says(path, MEASURED, EVIDENCE)
    assert_valid_report(path.read_bytes(), pixelmed=False)


# --- Any findings ---

WORDS = (
    st.text(st.characters(exclude_categories=("C", "Z")) | st.just(" "), min_size=1, max_size=200)
    .map(str.strip)
    .filter(bool)
)
PROBABILITY = st.floats(0, 1)
SD = st.none() | st.floats(0, 200)
NUMBER = st.none() | st.integers(0, 2**31 - 1)
MEMBERS = st.integers(1, 9)
VALUES = {
    Measurement.LVEF: st.floats(0, 100),
    Measurement.LVEDV: st.floats(0, 999),
    Measurement.LVESV: st.floats(0, 999),
}


@st.composite
def loops(draw: st.DrawFn, uid: str) -> LoopFinding:
    """Return any analysed loop."""
    view = draw(st.sampled_from(["A4C", "A2C", "PLAX", "PSAX", "other", None]))
    left, right = sorted(draw(st.tuples(*[st.integers(0, 2048)] * 2)))
    top, bottom = sorted(draw(st.tuples(*[st.integers(0, 2048)] * 2)))
    return LoopFinding(
        sop_instance_uid=uid,
        sop_class_uid=US_MULTIFRAME,
        rows=draw(st.integers(1, 65535)),
        columns=draw(st.integers(1, 65535)),
        num_frames=2000,
        box=(left, top, right, bottom),
        frames_used=tuple(sorted(draw(st.sets(st.integers(1, 2000), min_size=1, max_size=40)))),
        series_number=draw(NUMBER),
        instance_number=draw(NUMBER),
        view=view,
        view_probability=draw(PROBABILITY),
        uncertain_view=None if view else draw(st.sampled_from(["A4C", "PSAX", None])),
        contradiction="" if view else draw(st.just("") | WORDS),
        numbers=tuple(
            LoopNumber(task=task, value=draw(VALUES[task]), sd=draw(SD)) for task in Measurement if draw(st.booleans())
        ),
    )


@st.composite
def any_findings(draw: st.DrawFn) -> Findings:
    """Return findings in which each task is answered or abstained from."""
    uids = [f"1.2.4.{number}" for number in range(draw(st.integers(0, 4)))]
    some = st.lists(st.sampled_from(uids), min_size=1, unique=True).map(tuple) if uids else st.just(())
    answered = {task for task in (*Measurement, *Evaluation) if uids and draw(st.booleans())}
    probabilities = {
        Evaluation.LVEF_REDUCED: st.fixed_dictionaries({"reduced": PROBABILITY}),
        Evaluation.AORTIC_STENOSIS: st.fixed_dictionaries(dict.fromkeys(GRADES, PROBABILITY)),
    }
    answers = {Evaluation.LVEF_REDUCED: ("present", "absent"), Evaluation.AORTIC_STENOSIS: GRADES}
    return Findings(
        algorithm=replace(ALGORITHM, statement=draw(st.just("") | WORDS.filter(lambda text: "\\" not in text))),
        measurements=tuple(
            MeasuredValue(
                task=task,
                value=draw(VALUES[task]),
                unit="%" if task is Measurement.LVEF else "mL",
                sd=draw(SD),
                members=draw(MEMBERS),
                loops=draw(some),
            )
            for task in Measurement
            if task in answered
        ),
        evaluations=tuple(
            EvaluatedFinding(
                task=task,
                value=draw(st.sampled_from(answers[task])),
                probabilities=draw(probabilities[task]),
                members=draw(MEMBERS),
                loops=draw(some),
            )
            for task in Evaluation
            if task in answered
        ),
        abstentions=tuple(
            Abstained(task=task, kind=draw(st.sampled_from(NotMeasured)), reason=draw(WORDS))
            for task in (*Measurement, *Evaluation)
            if task not in answered
        ),
        loops=tuple(draw(loops(uid)) for uid in uids),
        refused=tuple(
            RefusedInstance(
                sop_instance_uid=STILL,
                sop_class_uid=US_IMAGE,
                series_number=draw(NUMBER),
                instance_number=draw(NUMBER),
                num_frames=draw(NUMBER),
                reason=draw(WORDS),
            )
            for _ in range(draw(st.integers(0, 3)))
        ),
        notes=tuple(draw(st.lists(WORDS, max_size=2))),
    )


@given(any_findings())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_findings_are_said_whole(tmp_path: Path, findings: Findings) -> None:
    evidence = evidence_of(findings)

    path = file(tmp_path, report(findings, evidence=evidence))

    assert_says(path, findings, evidence)
    assert_valid_report(path.read_bytes(), pixelmed=False)


@pytest.mark.parametrize(
    ("name", "note", "charset"),
    [
        ("Müller^Jörg", "größer als gewöhnlich", "ISO_IR 100"),
        ("Mueller^Joerg", "", "ISO_IR 100"),
        ("Müller^Jörg", "心", "ISO_IR 192"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "", "ISO_IR 192"),
        ("Иванова^Анна", "", "ISO_IR 192"),
    ],
)
def test_latin_1_is_written_where_it_is_wanted_and_has_every_letter(
    tmp_path: Path, name: str, note: str, charset: str
) -> None:
    findings = replace(MEASURED, notes=(note,) if note else ())
    whence = {"header": patient(PatientName=name), "character_set": "ISO_IR 100"}

    path = file(tmp_path, report(findings, **whence))

    assert read(path).header["SpecificCharacterSet"] == charset
    assert_says(path, findings, EVIDENCE)
    assert str(dcmread(path).PatientName) == name
    assert_valid_report(path.read_bytes(), pixelmed=False)
    for one in pictures(whence=origin(**whence)):
        document = dcmread(BytesIO(one.part10))
        assert document.PatientName == name
        assert document.SpecificCharacterSet == ("ISO_IR 192" if max(name) > "\xff" else "ISO_IR 100")
