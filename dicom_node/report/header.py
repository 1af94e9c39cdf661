"""What a report takes over from the study: a white list of attributes, repaired, in a data set of our own.

A received data set is never handed on: real headers break the standard in a dozen ways (missing type 2 attributes,
dates as 1994.01.30, character sets by wrong names), and private attributes are nobody's business.
"""

import copy
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.errors import BytesLengthException, InvalidDicomError

from dicom_node.errors import ReportError

_DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
_TIME = re.compile(r"([01]\d|2[0-3]):?([0-5]\d)(?::?([0-5]\d)(\.\d{1,6})?\d*)?")
DAMAGE = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom raises on damaged bytes [seen on mutated real headers]; the node keeps any data set that is whole."""

_OFFSET = re.compile(r"[+-](0\d|1[0-4])[0-5]\d")  # PS3.3 C.12.1.1.8
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
# pydicom leaves the designator of ISO 2022 IR 58 (simplified Chinese) in the text (PS3.5 6.1.2.5.1).
_ESCAPE = re.compile(r"\x1b[ -/]+[0-~]")

# Names that real carts write for the standard's terms (PS3.3 C.12.1.1.2).
_CHARSET = re.compile(r"ISO[ _-]?(IR)[ _-]?(\d+)$", re.IGNORECASE)

_READ: list[Any] = [
    "SpecificCharacterSet",
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
    "AccessionNumber",
    "ReferringPhysicianName",
    "InstitutionName",
    "TimezoneOffsetFromUTC",
    "SeriesNumber",
    "InstanceNumber",
    "NumberOfFrames",
    "Rows",
    "Columns",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceHeader:
    """What one instance of the study says, repaired."""

    patient_id: str
    """Empty: the header has none."""
    attributes: Dataset
    """Patient and study attributes for the report, each valid or empty."""
    series_number: int | None
    instance_number: int | None
    num_frames: int | None
    rows: int | None
    columns: int | None


def read_header(path: Path, what: str = "an instance of the study") -> SourceHeader:
    """Return what the file says about its patient and study; what cannot be read is empty.

    A damaged header costs its own instance alone: the report names it as refused, its neighbours keep their report.

    Raises:
        ReportError: the disk does not give the file back.
    """
    try:
        content: Dataset = dcmread(path, stop_before_pixels=True, specific_tags=_READ)
    except DAMAGE:
        content = Dataset()
    except OSError as error:
        if error.errno is not None:
            raise ReportError(f"{what} cannot be read again") from error
        content = Dataset()  # pydicom's own, on bytes that end too early
    return sanitise(content)


def sanitise(dataset: Dataset) -> SourceHeader:
    """Return the white-listed attributes of a header, repaired."""
    _drop_damaged(dataset)
    _repair_charset(dataset)
    clean = Dataset()
    clean.PatientID = _patient_id(dataset)
    clean.PatientName = _person(dataset, "PatientName")
    clean.PatientBirthDate = _date(dataset, "PatientBirthDate")
    sex = _text(dataset, "PatientSex", 16).upper()
    clean.PatientSex = sex if sex in ("M", "F", "O") else ""
    if issuer := _text(dataset, "IssuerOfPatientID", 64):
        clean.IssuerOfPatientID = issuer
    clean.StudyDate = _date(dataset, "StudyDate")
    clean.StudyTime = _time(dataset, "StudyTime")
    clean.StudyID = _text(dataset, "StudyID", 16)
    clean.AccessionNumber = _text(dataset, "AccessionNumber", 16)
    clean.ReferringPhysicianName = _person(dataset, "ReferringPhysicianName")
    if _OFFSET.fullmatch(offset := _text(dataset, "TimezoneOffsetFromUTC", 16)):
        clean.TimezoneOffsetFromUTC = offset
    for keyword in ("StudyDescription", "InstitutionName"):
        if value := _text(dataset, keyword, 64):
            setattr(clean, keyword, value)
    return SourceHeader(
        patient_id=clean.PatientID,
        attributes=clean,
        series_number=_integer(dataset, "SeriesNumber"),
        instance_number=_integer(dataset, "InstanceNumber"),
        num_frames=_integer(dataset, "NumberOfFrames"),
        rows=_integer(dataset, "Rows"),
        columns=_integer(dataset, "Columns"),
    )


def common_header(headers: Sequence[SourceHeader]) -> Dataset:
    """Return the patient and study attributes of a study: each from the first header that names the patient and has it.

    A cart's report, or a converted still, often says less of the patient than the loops beside it.

    Raises:
        ReportError: the instances name different patients, or none names one.
    """
    persons = {_identity(header.attributes) for header in headers}
    known = {header.patient_id for header in headers if header.patient_id}
    if not known:
        raise ReportError("the study has no Patient ID: a report could be filed under nobody or anybody; correct it")
    if len(known) > 1:
        raise ReportError(f"the study mixes {len(known)} patients under one Study Instance UID; split it")
    if any(_are_two_persons(one, other) for one, other in combinations(persons, 2)):
        raise ReportError("the study mixes patients of other names and birth dates under one Patient ID; split it")
    first, *others = (header.attributes for header in headers if header.patient_id)
    common = copy.deepcopy(first)
    for attributes in others:
        for element in attributes:
            if not common.get(element.keyword):
                common[element.tag] = copy.deepcopy(element)
    return common


def _identity(attributes: Dataset) -> tuple[str, str]:
    """Return name and birth date, so that spelling and punctuation of the name do not count."""
    name = str(attributes.PatientName).partition("=")[0]
    return re.sub(r"[\W_]+", "", name).casefold(), attributes.PatientBirthDate


def _are_two_persons(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Return whether name and birth date are known of both and both differ: people marry, and typing errors happen."""
    return all(one) and all(other) and one[0] != other[0] and one[1] != other[1]


def _drop_damaged(dataset: Dataset) -> None:
    """Decode element by element, so that one that cannot be decoded costs itself alone; none of them is a sequence."""
    for tag in list(dataset.keys()):
        try:
            is_sound = dataset[tag].VR != "SQ"
        except DAMAGE:
            is_sound = False
        if not is_sound:
            del dataset[tag]


def _repair_charset(dataset: Dataset) -> None:
    raw = dataset.get("SpecificCharacterSet")
    names = [raw] if raw is None or isinstance(raw, str) else list(raw)
    repaired = [_charset(str(name or "")) for name in names]
    if repaired == [""]:
        return
    dataset.add_new("SpecificCharacterSet", "CS", repaired)  # whatever VR the damaged one had
    dataset.decode()


def _charset(name: str) -> str:
    match = _CHARSET.match(name.strip())
    return f"ISO_IR {match[2]}" if match and not name.upper().startswith("ISO 2022") else name.strip()


def _values(dataset: Dataset, keyword: str) -> list[str]:
    value = dataset.get(keyword)
    if value is None:
        return []
    if not isinstance(value, str) and isinstance(value, Iterable) and not hasattr(value, "components"):
        return [str(one) for one in value]
    return [str(value)]


def _value(dataset: Dataset, keyword: str) -> str:
    """Return the first value: real headers have several where one is allowed."""
    return next(iter(_values(dataset, keyword)), "")


def _words(dataset: Dataset, keyword: str) -> str:
    """Return the whole text; a back-slash in it was none that separates values."""
    return _CONTROL.sub(" ", _ESCAPE.sub("", " ".join(_values(dataset, keyword)))).strip()


def _text(dataset: Dataset, keyword: str, longest: int) -> str:
    return _words(dataset, keyword)[:longest].strip()


def _patient_id(dataset: Dataset) -> str:
    """Return the Patient ID as it stands; one that would have to be repaired is none, for it could be another's."""
    values = _values(dataset, "PatientID")
    found = values[0].strip(" \0") if len(values) == 1 else ""
    return "" if len(found) > 64 or _CONTROL.search(found) else found


def _person(dataset: Dataset, keyword: str) -> str:
    """Return a name with at most three groups of at most 64 characters and five components (PS3.5 6.2)."""
    groups = _words(dataset, keyword).split("=")[:3]
    # An empty first group says that the next one is ideographic: it stays.
    return "=".join("^".join(group.split("^")[:5])[:64] for group in groups).rstrip("= ")


def _date(dataset: Dataset, keyword: str) -> str:
    match = _DATE.fullmatch(_value(dataset, keyword).strip())
    if match is None:
        return ""
    year, month, day = match.groups()
    try:
        date(int(year), int(month), int(day))
    except ValueError:  # such as 29 February of a year that has none
        return ""
    return f"{year}{month}{day}"


def _time(dataset: Dataset, keyword: str) -> str:
    match = _TIME.fullmatch(_value(dataset, keyword).strip())
    if match is None:
        return ""
    hours, minutes, seconds, fraction = match.groups()
    return f"{hours}{minutes}{seconds or ''}{fraction or ''}"


def _integer(dataset: Dataset, keyword: str) -> int | None:
    return _parsed(_value(dataset, keyword), int)


def _parsed(value: str, parse: Callable[[str], int]) -> int | None:
    try:
        return parse(value)
    except ValueError:
        return None
