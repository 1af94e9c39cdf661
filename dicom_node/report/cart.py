"""What the ultrasound cart measured itself: LVEF and LV volumes out of the report that it sent with the study.

A cart's report (PS3.16 TID 5200) is a tree: Findings of a site > Measurement Group > NUM. Method, view and derivation
of a number stand in modifiers of the number or of any container above it; the nearer one wins (TID 5202, 5203, 300).
Newer reports (TID 5300) name the method in the code of the number. Nothing is known of the sender: codes decide, never
their meanings, and a code that is not listed here says nothing.
"""

import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydicom import Dataset, dcmread
from pydicom import Sequence as ItemSequence
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedSRStorage,
    ExtensibleSRStorage,
    SimplifiedAdultEchoSRStorage,
)

from dicom_node.errors import InvalidUID
from dicom_node.identity import UID, parse_uid
from dicom_node.report.findings import UNITS, CartValue, Measurement
from dicom_node.report.header import DAMAGE

CART_SOP_CLASSES = frozenset(
    str(one)
    for one in (
        BasicTextSRStorage,
        EnhancedSRStorage,
        ComprehensiveSRStorage,
        Comprehensive3DSRStorage,
        ExtensibleSRStorage,
        SimplifiedAdultEchoSRStorage,
    )
)
"""What a cart may send its measurements as; most send Comprehensive SR."""

Code = tuple[str, str]
"""Coding scheme designator and code value; SNOMED codes as SCT."""

Modifiers = Mapping[Code, Code | None]
"""What a number or container is modified by; None: by something that is not coded."""

# A cart's report has some hundred numbers, four levels deep, in less than 1 MB.
_MAX_BYTES = 2 << 20
_MAX_ITEMS = 10_000
_MAX_DEPTH = 12
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # little and big endian
_PREAMBLE_AND_GROUP_LENGTH = 132 + 12

# pydicom reads sequences when they are asked for, and raises OSError if one ends too early. A disk that loses the file
# is not said here: the header of the same file was read before (`report.header`), and says it.
_UNREADABLE = (*DAMAGE, OSError)

_READ: list[Any] = ["SOPInstanceUID", "ValueType", "ContentSequence"]

_QUANTITIES: Mapping[Code, tuple[Measurement, str]] = MappingProxyType(
    {
        # CID 12202; the method stands beside the number
        ("LN", "18043-0"): (Measurement.LVEF, ""),  # Left Ventricular Ejection Fraction by US
        ("LN", "18026-5"): (Measurement.LVEDV, ""),  # Left Ventricular End Diastolic Volume
        ("LN", "18148-7"): (Measurement.LVESV, ""),  # Left Ventricular End Systolic Volume
        # CID 3468, 3469, and LOINC: of no modality, seen in reports of carts
        ("LN", "10230-1"): (Measurement.LVEF, ""),  # Left ventricular Ejection fraction
        ("LN", "8821-1"): (Measurement.LVEDV, ""),  # Left Ventricular ED Volume
        ("LN", "8823-7"): (Measurement.LVESV, ""),  # Left Ventricular ES Volume
        # CID 12300: the code names the method
        ("LN", "79990-8"): (Measurement.LVEF, "3D"),
        ("LN", "79991-6"): (Measurement.LVEF, "biplane"),
        ("LN", "79992-4"): (Measurement.LVEF, "2-chamber"),
        ("LN", "79993-2"): (Measurement.LVEF, "4-chamber"),
        ("LN", "77891-0"): (Measurement.LVEF, "Teichholz"),  # 2D
        ("LN", "18049-7"): (Measurement.LVEF, "Teichholz"),  # M-mode
        ("LN", "79995-7"): (Measurement.LVEDV, "3D"),
        ("LN", "79996-5"): (Measurement.LVEDV, "biplane"),
        ("LN", "79998-1"): (Measurement.LVEDV, "2-chamber"),
        ("LN", "79999-9"): (Measurement.LVEDV, "4-chamber"),
        ("LN", "80000-3"): (Measurement.LVESV, "3D"),
        ("LN", "80001-1"): (Measurement.LVESV, "biplane"),
        ("LN", "80003-7"): (Measurement.LVESV, "2-chamber"),
        ("LN", "80004-5"): (Measurement.LVESV, "4-chamber"),
    }
)

_METHOD: Code = ("SCT", "370129005")  # Measurement Method
_METHODS: Mapping[Code | None, str] = MappingProxyType(  # CID 12228; the plane of a method in one plane is its view
    {
        ("DCM", "125204"): "biplane area-length",
        ("DCM", "125205"): "{plane} area-length",
        ("DCM", "125206"): "cube",
        ("DCM", "125207"): "biplane",  # Method of Disks, Biplane
        ("DCM", "125208"): "{plane}",  # Method of Disks, Single Plane
        ("DCM", "125209"): "Teichholz",
        ("DCM", "125211"): "biplane ellipse",
        ("DCM", "125226"): "{plane} ellipse",
        ("DCM", "125227"): "modified Simpson {view}",
        ("DCM", "125228"): "bullet",
    }
)
_IMAGE_VIEW: Code = ("DCM", "111031")
_VIEWS: Mapping[Code | None, str] = MappingProxyType(  # CID 12226
    {
        ("SCT", "399214001"): "4-chamber",
        ("SCT", "399232001"): "2-chamber",
        ("SCT", "399339008"): "apical long axis",
    }
)
_IMAGE_MODE: Code = ("SCT", "399264008")
_MODES: Mapping[Code | None, str] = MappingProxyType({("SCT", "426865009"): "3D"})  # CID 12224
_STAGES: Mapping[Code | None, str] = MappingProxyType(  # CID 12002: another state of the heart than that of rest
    {
        ("SCT", "432655005"): "stress",
        ("SCT", "434161005"): "peak stress",
        ("SCT", "432554001"): "recovery",
    }
)

_DERIVATION: Code = ("DCM", "121401")
_MEAN: Code = ("SCT", "373098007")
_VISUAL: Code = ("SCT", "258083009")  # Visual estimation
_NO_VALUE = frozenset(  # extremes and spread of several measurements
    {
        ("SCT", "255605001"),  # Minimum
        ("SCT", "56851009"),  # Maximum
        ("SCT", "386136009"),  # Standard Deviation
        ("DCM", "113061"),  # Standard Deviation
        ("DCM", "121414"),  # Standard deviation of population
    }
)
_SELECTION: Code = ("DCM", "121404")  # Selection Status
_SELECTED = frozenset(  # CID 12301
    {
        ("DCM", "121410"),  # User chosen value
        ("DCM", "121411"),  # Most recent value chosen
        ("DCM", "121412"),  # Mean value chosen
        ("SCT", "255605001"),  # Minimum
        ("SCT", "56851009"),  # Maximum
    }
)
_ALGORITHM: Code = ("DCM", "111001")  # Algorithm Name (TID 4019)

_FACTORS: Mapping[Measurement, Mapping[Code | None, float]] = MappingProxyType(
    {
        Measurement.LVEF: {("UCUM", "%"): 1.0, ("UCUM", "1"): 100.0, ("UCUM", "{ratio}"): 100.0},
        **{
            volume: {
                ("UCUM", "ml"): 1.0,
                ("UCUM", "mL"): 1.0,
                ("UCUM", "cm3"): 1.0,
                ("UCUM", "l"): 1000.0,
                ("UCUM", "L"): 1000.0,
            }
            for volume in (Measurement.LVEDV, Measurement.LVESV)
        },
    }
)
"""What a number of each unit is multiplied with to be in % or mL."""

_PLAUSIBLE = MappingProxyType(
    {Measurement.LVEF: (5.0, 90.0), Measurement.LVEDV: (1.0, 1000.0), Measurement.LVESV: (1.0, 1000.0)}
)

_SNOMED_RT = frozenset({"SRT", "SNM3", "99SDM"})  # PS3.16 table 8-1: the older names of one scheme
_CT_OF_RT = MappingProxyType(  # PS3.16 table O-1
    {
        "G-C036": "370129005",
        "G-0373": "399264008",
        "P0-02242": "426865009",
        "G-A19C": "399214001",
        "G-A19B": "399232001",
        "G-0395": "399339008",
        "R-00317": "373098007",
        "R-41D27": "258083009",
        "R-404FB": "255605001",
        "G-A437": "56851009",
        "R-10047": "386136009",
    }
)


def read_cart(path: Path) -> tuple[CartValue, ...]:
    """Return what a report says of LVEF and LV volumes, one value a quantity and method, in % and mL.

    Of several the selected one counts (Selection Status), or else the mean, or else the last. A number that names the
    algorithm which computed it is no cart's: reports of this node, and of its like, give none. A damaged item costs
    itself alone, and a file that is no report, or is damaged as a whole, gives none: nothing is raised.
    """
    try:
        if not _is_moderate(path):
            return ()
        report = dcmread(path, stop_before_pixels=True, specific_tags=_READ)
        sop_instance_uid = parse_uid(report.get("SOPInstanceUID", ""))
    except (*_UNREADABLE, InvalidUID):
        return ()
    chosen: dict[tuple[Measurement, str], tuple[int, CartValue]] = {}
    for number, modifiers in _numbers(report):
        if (found := _cart_value(number, modifiers, sop_instance_uid)) is not None:
            key, rank = (found.measurement, found.method), _rank(modifiers)
            if key not in chosen or rank >= chosen[key][0]:
                chosen[key] = (rank, found)
    return tuple(one for task in Measurement for _, one in chosen.values() if one.measurement is task)


def _is_moderate(path: Path) -> bool:
    """Return whether a report is as large as one of a cart may be, and holds as many items.

    pydicom takes 20 microseconds for an item, wherever it is, and inflates whatever is deflated.
    """
    if path.stat().st_size > _MAX_BYTES:
        return False
    content = path.read_bytes()
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        start = _PREAMBLE_AND_GROUP_LENGTH + int(meta.FileMetaInformationGroupLength)
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content[start:], _MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            return False
    return sum(content.count(item) for item in _ITEMS) <= _MAX_ITEMS


def _numbers(report: Dataset) -> Iterator[tuple[Dataset, Modifiers]]:
    """Yield the numbers of a report in its order, each with all that modifies it.

    Numbers below numbers are not looked at: they are ranges, deviations and what a number was computed from.
    """
    waiting: list[tuple[Dataset, Modifiers, int]] = [(report, {}, 0)]
    while waiting:
        item, inherited, depth = waiting.pop()
        kind = _text(item, "ValueType")
        if kind not in ("CONTAINER", "NUM") or depth > _MAX_DEPTH:
            continue
        children = _items(item, "ContentSequence")
        modifiers = {**inherited, **_modifiers(children)}
        if kind == "NUM":
            yield item, modifiers
        else:
            waiting += [(child, modifiers, depth + 1) for child in reversed(children)]


def _cart_value(number: Dataset, modifiers: Modifiers, sop_instance_uid: UID) -> CartValue | None:
    quantity = _QUANTITIES.get(_code(number, "ConceptNameCodeSequence") or ("", ""))
    if quantity is None or _ALGORITHM in modifiers or modifiers.get(_DERIVATION) in _NO_VALUE:
        return None
    measurement, method = quantity
    value = _measured(number, measurement)
    if value is None:
        return None
    stages = [_STAGES[state] for state in modifiers.values() if state in _STAGES]
    return CartValue(
        measurement=measurement,
        value=value,
        unit=UNITS[measurement],
        method=", ".join(word for word in (method or _method(modifiers), *stages[:1]) if word),
        sop_instance_uid=sop_instance_uid,
    )


def _measured(number: Dataset, measurement: Measurement) -> float | None:
    """Return the number in % or mL; None: it has none, or no unit that can be one, or no patient has it."""
    for measured in _items(number, "MeasuredValueSequence")[:1]:
        factor = _FACTORS[measurement].get(_code(measured, "MeasurementUnitsCodeSequence"))
        try:
            # Rounded: 0.55 of a ratio are 55 %, not 55.00000000000001 %.
            value = round(float(_text(measured, "NumericValue")) * (factor or 0.0), 6)
        except ValueError:
            return None
        lowest, highest = _PLAUSIBLE[measurement]
        return value if lowest <= value <= highest else None
    return None


def _method(modifiers: Modifiers) -> str:
    view = _VIEWS.get(modifiers.get(_IMAGE_VIEW), "")
    named = _METHODS.get(modifiers.get(_METHOD))
    if named is not None:
        return named.format(view=view, plane=view or "single plane").strip()
    if modifiers.get(_DERIVATION) == _VISUAL:
        return "visual"
    return _MODES.get(modifiers.get(_IMAGE_MODE), view)


def _rank(modifiers: Modifiers) -> int:
    """Return what a value comes before its like by: selected, mean, single."""
    if modifiers.get(_SELECTION) in _SELECTED:
        return 2
    return 1 if modifiers.get(_DERIVATION) == _MEAN else 0


def _modifiers(items: Iterable[Dataset]) -> dict[Code, Code | None]:
    named = ((_code(one, "ConceptNameCodeSequence"), _code(one, "ConceptCodeSequence")) for one in items)
    return {name: value for name, value in named if name is not None}


def _code(dataset: Dataset, keyword: str) -> Code | None:
    for item in _items(dataset, keyword)[:1]:
        scheme, value = _text(item, "CodingSchemeDesignator"), _text(item, "CodeValue")
        if scheme in _SNOMED_RT:
            return ("SCT", _CT_OF_RT.get(value, value))
        return (scheme, value)
    return None


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; none if it is missing or damaged."""
    try:
        value = dataset.get(keyword)
    except _UNREADABLE:
        return []
    return list(value) if isinstance(value, ItemSequence) else []


def _text(dataset: Dataset, keyword: str) -> str:
    """Return a value as text; empty if it is missing or damaged."""
    try:
        return str(dataset.get(keyword, "")).strip()
    except _UNREADABLE:
        return ""
