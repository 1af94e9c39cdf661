"""Pictures for the page, taken out of their files as they are."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from dicom_node import cine_file
from dicom_node.cine_file import document, open_cine, preview_file, still
from dicom_node.errors import UnreadableCine
from dicom_node.report.findings import PictureKind
from dicom_node.report.pictures import Cine
from tests.node.report.samples import origin, pictures

FRAMES = tuple(b"\xff\xd8\xff" + bytes([number]) * (20 + number) for number in range(5))
CINE = Cine(frames=FRAMES, rows=30, columns=40, frame_time_ms=50.0, source_frames=(1, 4, 7, 10, 13))


def kept(folder: Path, content: bytes) -> Path:
    """Return the path of a file with this content."""
    path = folder / "one.dcm"
    path.write_bytes(content)
    return path


def test_the_frames_of_a_preview_come_back_as_they_were(tmp_path: Path) -> None:
    found = open_cine(kept(tmp_path, preview_file(CINE)))

    assert (found.rows, found.columns, found.frame_time_ms, found.source_frames) == (30, 40, 50.0, (1, 4, 7, 10, 13))
    assert [found.frame(number).rstrip(b"\0").rstrip() for number in range(5)] == [
        frame.rstrip(b"\0").rstrip() for frame in FRAMES
    ]


def test_a_preview_of_one_frame_is_one_too(tmp_path: Path) -> None:
    one = Cine(frames=FRAMES[:1], rows=1, columns=1, frame_time_ms=None, source_frames=(9,))

    found = open_cine(kept(tmp_path, preview_file(one)))

    assert (found.num_frames, found.source_frames, found.frame_time_ms) == (1, (9,), 40.0)


def test_a_preview_says_nothing_of_patient_study_and_loop(tmp_path: Path) -> None:
    found = dcmread(kept(tmp_path, preview_file(CINE)))

    assert [element.keyword for element in found if element.tag.group in (0x10, 0x20, 0x32, 0x40)] == []
    assert {"SOPInstanceUID", "SOPClassUID"} == {one.keyword for one in found if one.VR == "UI"}


def test_the_pictures_of_a_report_give_their_frames_and_pages(tmp_path: Path) -> None:
    by_kind = {one.kind: one.part10 for one in pictures(whence=origin())}
    attention = open_cine(kept(tmp_path, by_kind[PictureKind.SALIENCY]))
    frame = attention.frame(attention.num_frames - 1)
    page = still(kept(tmp_path, by_kind[PictureKind.SUMMARY]))
    pdf = document(kept(tmp_path, by_kind[PictureKind.SUMMARY_PDF]))

    assert frame.startswith(b"\xff\xd8\xff")
    assert page.startswith(b"\xff\xd8\xff")
    assert pdf.startswith(b"%PDF-")


@pytest.mark.parametrize("index", [-1, 5, 10**9])
def test_a_frame_that_is_not_there_is_refused(tmp_path: Path, index: int) -> None:
    found = open_cine(kept(tmp_path, preview_file(CINE)))

    with pytest.raises(UnreadableCine):
        found.frame(index)


def test_a_frame_that_is_no_jpeg_is_refused(tmp_path: Path) -> None:
    other = Cine(frames=(b"<svg onload=alert(1)>",), rows=1, columns=1, frame_time_ms=None, source_frames=(1,))
    found = open_cine(kept(tmp_path, preview_file(other)))

    with pytest.raises(UnreadableCine, match="no JPEG"):
        found.frame(0)


def test_a_file_that_is_too_large_or_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kept(tmp_path, preview_file(CINE))
    monkeypatch.setattr(cine_file, "MAX_BYTES", path.stat().st_size - 1)

    for read in (open_cine, still, document):
        for one in (path, tmp_path / "none.dcm"):
            with pytest.raises(UnreadableCine):
                read(one)


@given(cut=st.integers(0, 900), place=st.integers(0, 900), byte=st.integers(0, 255))
def test_a_damaged_file_is_refused_or_read_and_never_more(
    tmp_path_factory: pytest.TempPathFactory, cut: int, place: int, byte: int
) -> None:
    whole = bytearray(preview_file(CINE))
    whole[place % len(whole)] = byte
    path = kept(tmp_path_factory.getbasetemp(), bytes(whole[: len(whole) - cut]))

    try:
        found = open_cine(path)
        frames = [found.frame(number) for number in range(min(found.num_frames, 5))]
    except UnreadableCine:
        return
    assert all(frame.startswith(b"\xff\xd8\xff") for frame in frames)
