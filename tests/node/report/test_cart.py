"""What carts write in their reports, and what of it is read."""

import io
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.sr._concepts_dict import concepts as dictionary
from pydicom.sr._snomed_dict import mapping
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.report import cart
from dicom_node.report.cart import read_cart
from dicom_node.report.findings import CartValue
from dicom_node.report.text import render_text
from tests.node.report.carts import (
    A2C,
    A4C,
    A4C_SRT,
    BIPLANE,
    CART_REPORT,
    CM3,
    DERIVATION,
    EDV,
    ESV,
    GROUP,
    LITRE,
    LVEF,
    MEAN,
    MEAN_CHOSEN,
    MEAN_SRT,
    METHOD,
    METHOD_SRT,
    ML,
    ONE,
    PERCENT,
    SELECTION,
    SINGLE_PLANE,
    TEICHHOLZ,
    USER_CHOSEN,
    VIEW,
    Code,
    cart_report,
    coded,
    container,
    modifier,
    number,
    section,
    write,
)
from tests.node.report.samples import MEASURED, report

Read = tuple[str, float, str, str]


def words(values: tuple[CartValue, ...]) -> list[Read]:
    """Return what was read, without the report that it was read from."""
    return [(one.measurement.value, one.value, one.unit, one.method) for one in values]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a report may be written."""
    return tmp_path / "cart.dcm"


def read(file: Path, *sections: Dataset, **attributes: object) -> list[Read]:
    """Return what is read from a report."""
    return words(read_cart(write(file, cart_report(*sections, **attributes))))


SCT_STYLE = section(
    number(LVEF, "54", PERCENT, (METHOD, BIPLANE)),
    number(EDV, "120.4", ML, (METHOD, BIPLANE)),
    number(ESV, "55", ML, (METHOD, BIPLANE)),
)


def test_ef_and_volumes_are_read_with_their_method_and_their_report(file: Path) -> None:
    values = read_cart(write(file, cart_report(SCT_STYLE)))

    assert words(values) == [
        ("lvef", 54.0, "%", "biplane"),
        ("lvedv", 120.4, "mL", "biplane"),
        ("lvesv", 55.0, "mL", "biplane"),
    ]
    assert {one.sop_instance_uid for one in values} == {CART_REPORT}


@pytest.mark.parametrize("scheme", ["SRT", "SNM3", "99SDM"])
def test_codes_of_snomed_rt_are_those_of_snomed_ct(file: Path, scheme: str) -> None:
    plane = ((scheme, "G-C036"), SINGLE_PLANE), (VIEW, (scheme, "G-A19C"))

    assert read(file, section(number(EDV, "110", ML, *plane))) == [("lvedv", 110.0, "mL", "4-chamber")]


@pytest.mark.parametrize(
    ("modifiers", "method"),
    [
        ((), ""),
        (((METHOD_SRT, TEICHHOLZ),), "Teichholz"),
        (((METHOD, ("DCM", "125206")),), "cube"),
        (((METHOD, SINGLE_PLANE),), "single plane"),
        (((METHOD, SINGLE_PLANE), (VIEW, A2C)), "2-chamber"),
        (((METHOD, ("DCM", "125205")), (VIEW, A4C_SRT)), "4-chamber area-length"),
        (((METHOD, ("DCM", "125227")),), "modified Simpson"),
        (((METHOD, ("DCM", "125227")), (VIEW, A4C)), "modified Simpson 4-chamber"),
        (((METHOD, BIPLANE), (VIEW, A4C)), "biplane"),
        (((VIEW, A4C),), "4-chamber"),
        (((("SRT", "G-0373"), ("SRT", "P0-02242")),), "3D"),
        (((DERIVATION, ("SRT", "R-41D27")),), "visual"),
        (((METHOD, ("99VENDOR", "125207")),), ""),
        (((METHOD, BIPLANE), (("99VENDOR", "STAGE"), ("SCT", "434161005"))), "biplane, peak stress"),
    ],
)
def test_the_method_is_said_in_words(file: Path, modifiers: tuple[tuple[Code, Code], ...], method: str) -> None:
    on_the_number = read(file, section(number(LVEF, "54", PERCENT, *modifiers)))
    on_the_group = read(file, section(number(LVEF, "54", PERCENT), group=modifiers))

    assert on_the_number == on_the_group == [("lvef", 54.0, "%", method)]


def test_a_modifier_of_the_number_wins_over_that_of_its_group(file: Path) -> None:
    values = read(file, section(number(LVEF, "54", PERCENT, (METHOD, BIPLANE)), group=[(METHOD, TEICHHOLZ)]))

    assert values == [("lvef", 54.0, "%", "biplane")]


def test_a_modifier_of_one_group_says_nothing_of_the_next(file: Path) -> None:
    values = read(
        file,
        section(number(LVEF, "54", PERCENT), group=[(METHOD, BIPLANE)]),
        section(number(LVEF, "61", PERCENT)),
    )

    assert values == [("lvef", 54.0, "%", "biplane"), ("lvef", 61.0, "%", "")]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (("LN", "10230-1"), ("lvef", 54.0, "%", "")),
        (("LN", "79991-6"), ("lvef", 54.0, "%", "biplane")),
        (("LN", "79993-2"), ("lvef", 54.0, "%", "4-chamber")),
        (("LN", "8821-1"), None),  # a volume: not in %
        (("99VENDOR", "18043-0"), None),
        (("LN", "8815-3"), None),  # of the right ventricle
    ],
)
def test_the_code_of_the_number_decides_what_it_is(file: Path, code: Code, expected: Read | None) -> None:
    assert read(file, section(number(code, "54", PERCENT))) == ([] if expected is None else [expected])


# --- Several values of one quantity ---
SELECTED = (SELECTION, USER_CHOSEN)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        pytest.param([("51", ()), ("57", ()), ("54", ())], 54.0, id="the last"),
        pytest.param([("54", ((DERIVATION, MEAN),)), ("51", ()), ("57", ())], 54.0, id="the mean"),
        pytest.param([("54", ((DERIVATION, MEAN_SRT),)), ("51", ())], 54.0, id="the mean, SRT"),
        pytest.param([("54", (SELECTED,)), ("51", ()), ("57", ())], 54.0, id="the selected one"),
        pytest.param([("51", (SELECTED,)), ("54", ((DERIVATION, MEAN),))], 51.0, id="selected before mean"),
        pytest.param([("54", (SELECTED,)), ("54", ())], 54.0, id="written twice"),
        pytest.param([("54", ((SELECTION, ("99V", "X")),)), ("57", ())], 57.0, id="private status"),
        pytest.param(
            [("54", ((DERIVATION, MEAN), (SELECTION, MEAN_CHOSEN))), ("6", ((DERIVATION, ("SRT", "R-10047")),))],
            54.0,
            id="a standard deviation is no value",
        ),
    ],
)
def test_of_several_values_one_is_read(
    file: Path, written: list[tuple[str, tuple[tuple[Code, Code], ...]]], value: float
) -> None:
    numbers = [number(LVEF, text, PERCENT, (METHOD, BIPLANE), *modifiers) for text, modifiers in written]

    assert read(file, section(*numbers)) == [("lvef", value, "%", "biplane")]


def test_each_method_keeps_its_own_value(file: Path) -> None:
    values = read(
        file,
        section(
            number(LVEF, "54", PERCENT, (METHOD, BIPLANE), SELECTED), number(LVEF, "61", PERCENT, (METHOD, TEICHHOLZ))
        ),
    )

    assert values == [("lvef", 54.0, "%", "biplane"), ("lvef", 61.0, "%", "Teichholz")]


# --- Units and plausibility ---
@pytest.mark.parametrize(
    ("name", "text", "unit", "value"),
    [
        (EDV, "120", CM3, 120.0),
        (EDV, "0.12", LITRE, 120.0),
        (EDV, "120", ("UCUM", "mL"), 120.0),
        (EDV, "120", ("UCUM", "ml/m2"), None),
        (EDV, "120", ("99VENDOR", "ml"), None),
        (EDV, "120", PERCENT, None),
        (EDV, "120", None, None),
        (EDV, "0", ML, None),
        (EDV, "1200", ML, None),
        (LVEF, "0.55", ONE, 55.0),
        (LVEF, "0.55", ("UCUM", "{ratio}"), 55.0),
        (LVEF, "55", ONE, None),
        (LVEF, "0.55", PERCENT, None),
        (LVEF, "95", PERCENT, None),
        (LVEF, "-54", PERCENT, None),
        (LVEF, "NaN", PERCENT, None),
        (LVEF, "inf", PERCENT, None),
        (LVEF, "54,5", PERCENT, None),
        (LVEF, "54\\55", PERCENT, None),
        (LVEF, "", PERCENT, None),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_a_value_counts_with_a_unit_that_it_can_have(
    file: Path, name: Code, text: str, unit: Code | None, value: float | None
) -> None:
    item = number(name, "54", unit)
    placeholder = b"DS\x02\x0054"
    report = write(file, cart_report(section(item))).read_bytes()
    padded = text + " " * (len(text) % 2)
    file.write_bytes(report)
    item.MeasuredValueSequence[0].add_new("NumericValue", "SH", padded)  # pydicom writes no DS that is none
    part10 = write(file, cart_report(section(item))).read_bytes()
    file.write_bytes(part10.replace(b"\x40\x00\x0a\xa3SH", b"\x40\x00\x0a\xa3DS"))

    assert placeholder in report
    assert [one.value for one in read_cart(file)] == ([] if value is None else [value])


# --- Damage ---
def test_a_damaged_item_costs_itself_alone(file: Path) -> None:
    empty, nothing, strange = number(EDV, "120", ML), number(EDV, "120", ML), number(EDV, "120", ML)
    empty.MeasuredValueSequence = []
    del nothing.MeasuredValueSequence
    strange.ConceptNameCodeSequence = []

    values = read(file, section(empty, nothing, strange, Dataset(), number(LVEF, "54", PERCENT)))

    assert values == [("lvef", 54.0, "%", "")]


def test_a_report_without_content_holds_nothing(file: Path) -> None:
    assert read(file) == []


@pytest.mark.parametrize("depth", [12, 50])
def test_a_tree_is_read_to_a_limit_of_depth(file: Path, depth: int) -> None:
    nested = number(EDV, "120", ML)
    for _ in range(depth):
        nested = container(GROUP, [nested])

    assert read(file, section(number(LVEF, "54", PERCENT)), nested) == [("lvef", 54.0, "%", "")]


@pytest.mark.parametrize("depth", [200, 3000])
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_tree_that_is_deeper_than_pydicom_can_go_holds_nothing(file: Path, depth: int, is_closed: bool) -> None:
    opened = b"\x40\x00\x30\xa7SQ\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\x00\x00\x00\x00\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    report = cart_report()
    del report.ContentSequence
    file.write_bytes(write(file, report).read_bytes() + opened * depth + closed * depth * is_closed)

    assert read_cart(file) == ()


@pytest.mark.parametrize("is_open", [False, True])
def test_a_report_of_more_items_than_a_cart_writes_is_not_read(file: Path, is_open: bool) -> None:
    """pydicom takes half a minute for four megabytes of them."""
    crowd = Dataset()
    crowd.ValueType, crowd.ContentSequence = "CONTAINER", [Dataset()] * cart._MAX_ITEMS
    crowd["ContentSequence"].is_undefined_length = is_open
    few = Dataset()
    few.ValueType, few.ContentSequence = "CONTAINER", [Dataset()] * (cart._MAX_ITEMS // 2)

    assert read(file, section(number(LVEF, "54", PERCENT)), crowd) == []
    assert read(file, section(number(LVEF, "54", PERCENT)), few) == [("lvef", 54.0, "%", "")]


def test_a_deflated_report_that_grows_beyond_measure_is_not_read(file: Path) -> None:
    report = cart_report(section(number(LVEF, "54", PERCENT)))
    report.add_new(0x00420011, "OB", bytes(cart._MAX_BYTES))
    report.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    write(file, report)

    assert file.stat().st_size < 100_000
    assert read_cart(file) == ()


def test_a_file_that_is_no_report_holds_nothing(file: Path) -> None:
    assert read_cart(file) == ()
    file.write_bytes(b"paper")
    assert read_cart(file) == ()
    with file.open("wb") as huge:
        huge.truncate(cart._MAX_BYTES + 1)
    assert read_cart(file) == ()


@pytest.mark.parametrize(
    ("charset", "valid"),
    [("ISO_IR 192", True), ("ISO_IR 100", True), ("ISO-IR 100", False), ("ISO_IR 9", False), ("ISO 2022 IR 87", True)],
)
@pytest.mark.filterwarnings("ignore")
def test_numbers_are_read_whatever_the_character_set(file: Path, charset: str, valid: bool) -> None:
    name = "Müller^Jörg" if charset in ("ISO_IR 192", "ISO_IR 100") else "Mueller"
    report = cart_report(SCT_STYLE, PatientName=name, SpecificCharacterSet=charset if valid else "ISO_IR 100")
    part10 = write(file, report).read_bytes()
    if not valid:
        file.write_bytes(part10.replace(b"ISO_IR 100", charset.ljust(10).encode()))

    assert len(read_cart(file)) == 3


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_numbers_are_read_in_every_transfer_syntax(file: Path, syntax: str) -> None:
    report = cart_report(SCT_STYLE)
    report.file_meta.TransferSyntaxUID = syntax

    assert len(read_cart(write(file, report))) == 3


VALID = io.BytesIO()
dcmwrite(VALID, cart_report(SCT_STYLE, SpecificCharacterSet="ISO_IR 100"), enforce_file_format=True)


@given(
    st.lists(st.tuples(st.integers(132, len(VALID.getvalue()) - 1), st.integers(0, 255)), min_size=1, max_size=12),
    st.integers(0, 800),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_fewer_values_and_never_an_error(
    file: Path, changes: list[tuple[int, int]], cut: int
) -> None:
    damaged = bytearray(VALID.getvalue())
    for position, value in changes:
        damaged[position] = value
    file.write_bytes(damaged[: len(damaged) - cut])

    assert len(read_cart(file)) <= 3


# --- What is no cart's ---
def test_a_report_of_this_node_is_no_carts(file: Path) -> None:
    file.write_bytes(report(MEASURED).part10)

    assert "Left Ventricular Ejection Fraction by US: 57.3 %" in render_text(dcmread(file))
    assert read_cart(file) == ()


def test_a_number_that_names_its_algorithm_is_no_carts(file: Path) -> None:
    algorithm = Dataset()
    algorithm.RelationshipType, algorithm.ValueType, algorithm.TextValue = "HAS CONCEPT MOD", "TEXT", "EchoNet"
    algorithm.ConceptNameCodeSequence = coded(("DCM", "111001"))
    group = container(GROUP, [algorithm, number(LVEF, "54", PERCENT)])

    assert read(file, group, section(number(EDV, "120", ML))) == [("lvedv", 120.0, "mL", "")]


REAL = {  # reports of other makers: none is a cart's, so that none holds a number of the left ventricle
    "clunie_basic_text_consult.dcm": "Basic Text SR: a consultation in words, no number",
    "clunie_enhanced_deflated.dcm": "Enhanced SR, deflated: a consultation with one diameter in cm",
    "dcmjs_sample-sr.dcm": "Enhanced SR, TID 1500: a long and a short axis in unit 1",
    "dcmjs_tid1500_enhanced.dcm": "Enhanced SR, TID 1500: areas in mm2, and a number without a value",
    "dcmqi_tid1500_petct.dcm": "Comprehensive SR, TID 1500: statistics of a PET region",
    "dwv_basic_ruler.dcm": "Basic Text SR whose root is a measurement group: lengths in mm",
    "dwv_tid1500_ruler.dcm": "Comprehensive 3D SR, TID 1500: lengths in mm",
    "highdicom_tid1500_comp3d.dcm": "Comprehensive 3D SR, TID 1500: an area in cm2",
    "highdicom_tid1500_multi.dcm": "Comprehensive 3D SR, TID 1500: a mean in Hounsfield units, diameters",
    "latin2_basic_text.dcm": "Basic Text SR: Polish in Latin-2, no number",
    "offis_basic_text_reportsi.dcm": "Basic Text SR: no number",
    "offis_comprehensive_test-SR.dcm": "Comprehensive SR with every value type: diameters in cm",
    "osirix_annotations_sr.dcm": "Basic Text SR: annotations of a viewer, no number",
    "synthetic_kos.dcm": "Key Object Selection: no report",
    "synthetic_tid1500_minimal.dcm": "Enhanced SR, TID 1500: a length in mm",
}


@pytest.mark.filterwarnings("ignore")
def test_no_report_of_another_maker_is_taken_for_a_carts(shared_data: Path) -> None:
    files = sorted((shared_data / "sr").iterdir())

    assert {one.name: read_cart(one) for one in files} == dict.fromkeys(REAL, ())


@pytest.mark.filterwarnings("ignore")
def test_real_files_with_damage_give_nothing_and_never_an_error(shared_data: Path, file: Path) -> None:
    damage = random.Random(7)
    for source in sorted((shared_data / "sr").iterdir()):
        for _ in range(10):
            content = bytearray(source.read_bytes())
            for position in damage.choices(range(132, len(content)), k=8):
                content[position] = damage.randrange(256)
            file.write_bytes(content[: damage.randrange(132, len(content) + 1)])

            assert read_cart(file) == ()


# --- Codes ---
def known(code: Code) -> bool:
    """Return whether a code stands in pydicom's tables of PS3.16."""
    scheme, value = code
    return any(value in meanings for meanings in dictionary[scheme].values())


def test_every_code_is_the_standards() -> None:
    tables = [cart._QUANTITIES, cart._METHODS, cart._VIEWS, cart._MODES, cart._STAGES, cart._NO_VALUE, cart._SELECTED]
    names = [cart._METHOD, cart._IMAGE_VIEW, cart._IMAGE_MODE, cart._DERIVATION, cart._MEAN, cart._VISUAL]
    names += [cart._SELECTION, cart._ALGORITHM]

    unknown = [code for table in (*tables, names) for code in table if code is not None and not known(code)]  # type: ignore[attr-defined]

    assert unknown == [("LN", "10230-1")]  # LOINC's own, in no context group
    assert {old: mapping["SRT"][old] for old in cart._CT_OF_RT} == dict(cart._CT_OF_RT)


def test_a_modifier_that_is_contained_counts_as_well(file: Path) -> None:
    group = container(GROUP, [modifier(METHOD, BIPLANE, "CONTAINS"), number(LVEF, "54", PERCENT)])

    assert read(file, group) == [("lvef", 54.0, "%", "biplane")]
