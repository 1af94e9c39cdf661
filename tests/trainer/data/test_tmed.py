"""TMED-2's layout: one stack a study, stills of known views, one fold of the development set."""

import csv
import gzip
import shutil
from pathlib import Path

import pytest
from PIL import Image

from model.clip.spec import ClipSpec
from model.errors import UnreadableLoop
from model.tasks import Grade, Task, View
from tests.trainer.data.conftest import Layouts
from trainer.data.split import divide
from trainer.data.tmed import open_reel, survey
from trainer.errors import DataError

TABLE = "approved_users_only/DEV479/TMED2_fold1_labeledpart.csv"
Rows = list[dict[str, str]]


@pytest.fixture
def root(phantoms: Layouts, tmp_path: Path) -> Path:
    return shutil.copytree(phantoms("tmed"), tmp_path / "tmed")


def rows_of(root: Path) -> Rows:
    with (root / TABLE).open() as stream:
        return list(csv.DictReader(stream))


def write_rows(root: Path, rows: Rows) -> None:
    with (root / TABLE).open("w") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_a_stack_for_each_study_and_a_clip_for_each_still(root: Path) -> None:
    rows = rows_of(root)

    listing = survey(root)

    assert not listing.skipped
    stacks = [one for one in listing.origins if one.kind == "stack"]
    stills = [one for one in listing.origins if one.kind == "still"]
    assert len(stacks) == len({row["query_key"].partition("_")[0] for row in rows})
    assert len(stills) == len(rows)
    grades = {"no_AS": Grade.NONE, "mild_AS": Grade.MILD, "mildtomod_AS": Grade.MILD_TO_MODERATE,
              "moderate_AS": Grade.MODERATE, "severe_AS": Grade.SEVERE}  # fmt: skip
    for one in stacks:
        own = [row for row in rows if row["query_key"].startswith(f"{one.study}_")]
        assert one.targets == {Task.AORTIC_STENOSIS: grades[own[0]["diagnosis_label"]].value}
        assert one.split == own[0]["diagnosis_classifier_split"]
        assert len(one.files) == len(own)
        # The order of the node: by view, then by number.
        order = ["A4C", "A2C", "PLAX", "PSAX", "A4CorA2CorOther"]
        views = {f"approved_users_only/{row['SourceFolder']}/{row['query_key']}": row["view_label"] for row in own}
        places = [(order.index(views[file]), int(file.rpartition("_")[2].removesuffix(".png"))) for file in one.files]
        assert places == sorted(places)
    assert {one.view for one in stills} == set(View)
    divide(listing.origins, seed=0, only=None)  # no patient is on two sides


def test_stills_are_read_as_rgb(root: Path) -> None:
    stack = next(one for one in survey(root).origins if one.kind == "stack")

    reel = open_reel(root, stack, ClipSpec())

    assert reel.num_frames == len(stack.files)
    assert [frame.shape for frame in reel.read([0, 1])] == [(112, 112, 3)] * 2


def test_the_inner_folder_and_packed_tables_will_do(root: Path) -> None:
    before = survey(root)
    with gzip.open(root / f"{TABLE}.gz", "wb") as stream:
        stream.write((root / TABLE).read_bytes())
    (root / TABLE).unlink()

    assert survey(root) == before
    assert [one.key for one in survey(root / "approved_users_only").origins] == [one.key for one in before.origins]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("view_label", "A3C", "label out of range: view_label A3C"),
        ("diagnosis_label", "some_AS", "label out of range: diagnosis_label some_AS"),
        ("query_key", "scan.png", "name is not of the form 12s1_0.png: scan.png"),
        ("query_key", "999s1_0.png", "file is missing"),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out(root: Path, column: str, value: str, reason: str) -> None:
    rows = rows_of(root)
    rows[0][column] = value
    write_rows(root, rows)

    (skip,) = survey(root).skipped

    assert skip.reason == reason
    assert skip.is_bad


def test_stills_of_one_study_must_agree(root: Path) -> None:
    rows = rows_of(root)
    study = rows[0]["query_key"].partition("_")[0]
    rows[0]["diagnosis_label"] = "severe_AS" if rows[0]["diagnosis_label"] != "severe_AS" else "no_AS"
    write_rows(root, rows)

    listing = survey(root)

    assert [(skip.path, skip.is_bad) for skip in listing.skipped] == [(study, True)]
    assert f"stack/{study}" not in {one.key for one in listing.origins}


def test_the_diagnosis_decides_on_which_side_a_patient_is(root: Path) -> None:
    rows = rows_of(root)
    other = "test" if rows[0]["view_classifier_split"] != "test" else "train"
    rows[0]["view_classifier_split"] = other
    write_rows(root, rows)

    listing = survey(root)

    assert [skip.reason for skip in listing.skipped] == ["the patient's diagnosis is on another side"]
    divide(listing.origins, seed=0, only=None)


def test_labels_that_were_not_provided_are_no_labels(root: Path) -> None:
    rows = rows_of(root)
    first = rows[0]["query_key"]
    rows[0]["view_label"] = rows[0]["diagnosis_label"] = "Not_Provided"
    write_rows(root, rows)

    listing = survey(root)

    assert not listing.skipped
    assert f"still/{first.removesuffix('.png')}" not in {one.key for one in listing.origins}
    assert all(not file.endswith(first) for one in listing.origins for file in one.files)


def test_a_damaged_picture_is_unreadable(root: Path) -> None:
    stack = next(one for one in survey(root).origins if one.kind == "stack")
    (root / stack.files[0]).write_bytes(b"no picture")

    with pytest.raises(UnreadableLoop, match="is no image"):
        open_reel(root, stack, ClipSpec()).read([0])


def test_pictures_in_colour_are_taken_too(root: Path) -> None:
    stack = next(one for one in survey(root).origins if one.kind == "stack")
    Image.new("RGB", (112, 112), (1, 2, 3)).save(root / stack.files[0])

    assert open_reel(root, stack, ClipSpec()).read([0])[0][0, 0].tolist() == [1, 2, 3]


def test_a_missing_fold_is_named(root: Path) -> None:
    (root / TABLE).unlink()

    with pytest.raises(DataError, match=r"TMED2_fold1_labeledpart\.csv: is missing"):
        survey(root)
