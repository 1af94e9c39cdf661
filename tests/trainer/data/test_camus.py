"""CAMUS in both forms: the two dialects of its cfg files, reversed halves, volumes from outlines."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from model.clip.spec import ClipSpec
from model.clip.transform import resize
from model.tasks import Task, View
from tests.trainer.data.conftest import Layouts
from trainer.data.camus import open_reel, survey
from trainer.data.images import read_images
from trainer.data.prepare import prepare
from trainer.data.store import ClipStore
from trainer.errors import DataError

SPEC = ClipSpec(size=48)
Truth = dict[str, dict[str, str]]


@pytest.fixture(params=["camus", "camus-challenge"])
def root(request: pytest.FixtureRequest, phantoms: Layouts, tmp_path: Path) -> Path:
    return shutil.copytree(phantoms(request.param), tmp_path / request.param)


def truth(root: Path) -> Truth:
    """Return the truth by the end of the subject's name."""
    with (root / "truth.csv").open() as stream:
        return {row["patient"]: row for row in csv.DictReader(stream)}


def true_of(table: Truth, subject: str) -> dict[str, str]:
    """Return a patient's row."""
    return table.get(subject) or table[subject.rpartition("/")[2]]


def test_both_views_of_every_patient_with_the_truth(root: Path) -> None:
    table = truth(root)

    listing = survey(root)

    assert len(listing.origins) == 20
    assert not listing.skipped
    assert len({one.subject for one in listing.origins}) == 10
    for one in listing.origins:
        row = true_of(table, one.subject)
        assert one.view is (View.A2C if one.key.endswith("2CH") else View.A4C)
        assert float(one.targets[Task.LVEF]) == pytest.approx(float(row["lvef_percent"]), abs=0.51)
        assert float(one.targets[Task.LVEDV]) == pytest.approx(float(row["edv_ml"]), rel=0.03)
        assert float(one.targets[Task.LVESV]) == pytest.approx(float(row["esv_ml"]), rel=0.03)


def test_the_notes_say_how_far_outlines_and_files_are_apart(root: Path) -> None:
    notes = survey(root).notes

    assert notes["lvef_outlines_and_file"] == (10 if root.name == "camus" else 9)
    assert abs(notes["lvef_outlines_minus_file_mean"]) < 0.5
    assert notes["lvef_outlines_minus_file_max"] < 1.5


def test_a_reversed_half_is_turned_round(root: Path, tmp_path: Path) -> None:
    """Every clip begins at end-diastole, wherever in the file that stands."""
    assert {one.is_reversed for one in survey(root).origins} == {True, False}
    prepare("camus", root, tmp_path / "store", clip=SPEC, pixels="raw", jobs=1)
    store = ClipStore.open(tmp_path / "store")
    for sample in store.samples:
        file = root / sample.source
        short = sample.key[-3:]
        info = (file.parent / f"Info_{short}.cfg").read_text()
        diastole = int(re.search(r"^ED: (\d+)$", info, re.MULTILINE)[1]) - 1  # type: ignore[index]
        frame_HW = read_images(file).frames_THW[diastole]
        expected = resize(np.repeat(frame_HW[None, ..., None], 3, axis=-1), SPEC).numpy()
        assert np.array_equal(store.read(sample)[0], expected[0])
        assert not np.array_equal(store.read(sample)[-1], expected[0])


def test_the_official_groups_are_the_split(phantoms: Layouts) -> None:
    root = phantoms("camus")
    listed = {
        name: group
        for group in ("training", "validation", "testing")
        for name in (root / "database_split" / f"subgroup_{group}.txt").read_text().split()
    }
    names = {"training": "train", "validation": "val", "testing": "test"}

    for one in survey(root).origins:
        assert one.split == names[listed[one.subject.rpartition("/")[2]]]


def test_the_folder_of_the_images_will_do_as_root(phantoms: Layouts) -> None:
    root = phantoms("camus")

    inner = survey(root / "database_nifti")

    assert [one.split for one in inner.origins] == [one.split for one in survey(root).origins]
    assert open_reel(root / "database_nifti", inner.origins[0], SPEC).num_frames > 10


def test_the_challenge_has_its_lists_of_subgroups(phantoms: Layouts, tmp_path: Path) -> None:
    root = shutil.copytree(phantoms("camus-challenge"), tmp_path / "camus")
    assert {one.split for one in survey(root).origins} == {None}
    names = sorted(path.name for path in (root / "training").iterdir())
    (root / "listSubGroups").mkdir()
    for group, own in (("training", names[:6]), ("validation", names[6:8]), ("testing", names[8:])):
        (root / "listSubGroups" / f"subGroup1_{group}.txt").write_text("\n".join(own))

    splits = {one.subject: one.split for one in survey(root).origins}

    assert splits[f"training/{names[0]}"] == "train"
    assert splits[f"training/{names[7]}"] == "val"
    assert splits["testing/patient0001"] == "test"  # not the patient of that number in training


def test_a_patient_in_two_lists_is_refused(phantoms: Layouts, tmp_path: Path) -> None:
    root = shutil.copytree(phantoms("camus"), tmp_path / "camus")
    lists = root / "database_split"
    with (lists / "subgroup_testing.txt").open("a") as stream:
        stream.write((lists / "subgroup_training.txt").read_text().split()[0])

    with pytest.raises(DataError, match="patient0001 stands in another list too"):
        survey(root)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("Info_2CH.cfg", b"ES: 9\nNbFrame: 9\n", "Info_2CH.cfg has no number for ED"),
        ("Info_4CH.cfg", b"ED: 1\nES: 9\nLVef: 400\nEF: 400\n", "label out of range: EF 400"),
        ("{}_2CH_ED_gt{}", b"broken", "unreadable"),
    ],
)
def test_a_patient_that_cannot_be_used_is_left_out(root: Path, name: str, content: bytes, reason: str) -> None:
    suffix = ".nii.gz" if root.name == "camus" else ".mhd"
    folder = next(root.rglob("patient0001"))
    (folder / name.format("patient0001", suffix)).write_bytes(content)

    listing = survey(root)

    (skip,) = [one for one in listing.skipped if reason in one.reason]
    assert skip.is_bad
    assert len(listing.origins) == 18


def test_a_damaged_sequence_is_a_bad_file(root: Path, tmp_path: Path) -> None:
    first = survey(root).origins[0]
    (root / first.source).write_bytes(b"broken")

    info = prepare("camus", root, tmp_path / "store", clip=SPEC, pixels="raw", jobs=1)

    assert info.counts["skipped, unreadable"] == 1
    assert info.counts["kept"] == 19


def test_a_folder_without_patients_is_no_camus(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no patient of CAMUS"):
        survey(tmp_path)
