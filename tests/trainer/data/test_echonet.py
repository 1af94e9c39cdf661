"""EchoNet-Dynamic's layout: names with and without a suffix, its own split, rows that cannot be used."""

import csv
import shutil
from pathlib import Path

import pytest

from model.clip.spec import ClipSpec
from model.tasks import Task, View
from tests.trainer.data.conftest import Layouts
from trainer.data.echonet import open_reel, survey
from trainer.errors import DataError


@pytest.fixture
def root(phantoms: Layouts, tmp_path: Path) -> Path:
    return shutil.copytree(phantoms("echonet"), tmp_path / "echonet")


def change(root: Path, column: str, value: str, row: int = 0) -> str:
    """Change a cell of FileList.csv; return the file name of the row."""
    with (root / "FileList.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    name = rows[row]["FileName"]
    rows[row][column] = value
    with (root / "FileList.csv").open("w") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return name


def test_every_row_is_a_loop_with_its_labels(root: Path) -> None:
    with (root / "FileList.csv").open() as stream:
        rows = {row["FileName"]: row for row in csv.DictReader(stream)}

    listing = survey(root)

    assert [one.key for one in listing.origins] == sorted(rows)
    assert not listing.skipped
    for one in listing.origins:
        row = rows[one.key]
        assert one.view is View.A4C
        assert one.split == row["Split"].lower()
        assert one.targets == {
            Task.LVEF: float(row["EF"]), Task.LVEDV: float(row["EDV"]), Task.LVESV: float(row["ESV"])
        }  # fmt: skip
        assert one.frame_time_ms == pytest.approx(20.0)
        reel = open_reel(root, one, ClipSpec())
        assert reel.num_frames == int(row["NumberOfFrames"])
        assert reel.read([0])[0].shape == (112, 112, 3)


def test_the_tracings_name_every_video_twice_with_the_smaller_frame_first(root: Path) -> None:
    with (root / "VolumeTracings.csv").open() as stream:
        rows = list(csv.DictReader(stream))

    assert list(rows[0]) == ["FileName", "X1", "Y1", "X2", "Y2", "Frame"]
    first = rows[0]["FileName"]
    assert first.endswith(".avi")
    own = [row for row in rows if row["FileName"] == first]
    assert len(own) == 2 * 21
    widths = [sum(abs(float(row["X2"]) - float(row["X1"])) for row in own[start + 1 : start + 21]) for start in (0, 21)]
    assert widths[0] < widths[1]


def test_a_file_name_may_stand_with_its_suffix(root: Path) -> None:
    plain = survey(root)
    with (root / "FileList.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for number, row in enumerate(rows):
        change(root, "FileName", f"{row['FileName']}.avi", number)

    assert survey(root) == plain


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("EF", "140", "label out of range: EF 140"),
        ("EF", "nan", "label out of range: EF nan"),
        ("EDV", "-3", "label out of range: EDV -3"),
        ("ESV", "999", "label out of range: ESV 999"),
        ("EF", "high", "label is no number: EF high"),
        ("Split", "HOLDOUT", "unknown split: HOLDOUT"),
        ("FileName", "0XNOBODY", "file is missing"),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out_with_its_reason(
    root: Path, column: str, value: str, reason: str
) -> None:
    change(root, column, value)

    listing = survey(root)

    (skip,) = listing.skipped
    assert skip.reason.startswith(reason)
    assert skip.is_bad
    assert len(listing.origins) == 11


def test_a_missing_column_is_named(root: Path) -> None:
    text = (root / "FileList.csv").read_text()
    (root / "FileList.csv").write_text(text.replace("ESV", "Esv", 1))

    with pytest.raises(DataError, match=r"FileList\.csv: has no column ESV"):
        survey(root)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"FileList\.csv: is missing"):
        survey(tmp_path)
