"""MIMIC-IV-ECHO's layout: what is a loop, labels from measurements, stacks of stills as the node makes them."""

import csv
import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.clip.loop import load_clips, load_still
from model.clip.select import Reason
from model.clip.spec import ClipSpec
from model.clip.transform import normalise
from model.errors import NotALoop
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.tasks import Grade, Task, View
from tests.doubles.loops import write_native
from tests.trainer.data.conftest import Layouts
from trainer.data.mimic import StackReel, open_reel, survey
from trainer.data.prepare import prepare
from trainer.data.store import ClipStore
from trainer.errors import DataError

SPEC = ClipSpec(size=48)


@pytest.fixture
def root(phantoms: Layouts, tmp_path: Path) -> Path:
    return shutil.copytree(phantoms("mimic"), tmp_path / "mimic")


def truth(root: Path) -> dict[str, dict[str, str]]:
    """Return the truth by subject."""
    with (root / "truth.csv").open() as stream:
        return {row["subject_id"]: row for row in csv.DictReader(stream)}


def test_labels_are_the_truth(root: Path) -> None:
    true = truth(root)

    listing = survey(root)

    loops = [one for one in listing.origins if one.kind == "loop"]
    assert len(loops) == 3 * 10
    for one in loops:
        row = true[one.subject]
        assert float(one.targets[Task.LVEF]) == pytest.approx(float(row["lvef_percent"]), abs=0.051)
        assert float(one.targets[Task.LVEDV]) == pytest.approx(float(row["edv_ml"]), abs=0.051)
        assert float(one.targets[Task.LVESV]) == pytest.approx(float(row["esv_ml"]), abs=0.051)
        assert one.targets.get(Task.VIEW) == (one.view.value if one.view else None)
    stacks = [one for one in listing.origins if one.kind == "stack"]
    assert [one.targets[Task.AORTIC_STENOSIS] for one in stacks] == [
        list(Grade)[int(true[one.subject]["stenosis"])].value for one in stacks
    ]


def test_the_files_say_what_is_no_loop(root: Path) -> None:
    refused: list[Reason] = []
    for one in survey(root).origins:
        try:
            reel = open_reel(root, one, SPEC)
            reel.read(range(reel.num_frames))
        except NotALoop as error:
            assert one.view is None
            refused.append(error.reason)

    assert sorted(refused) == sorted([Reason.STILL, Reason.SPECTRAL_DOPPLER, Reason.COLOUR_DOPPLER] * 3)


@pytest.mark.parametrize("recipe", [{}, {"sampling": "beat"}, {"resize": "fit"}])
def test_the_store_holds_what_the_node_computes_bit_for_bit(root: Path, tmp_path: Path, recipe: dict[str, str]) -> None:
    spec = SPEC.model_validate(SPEC.model_dump() | recipe)
    prepare("mimic", root, tmp_path / "store", clip=spec, pixels="raw", jobs=1)

    store = ClipStore.open(tmp_path / "store")
    for sample in store.samples:
        stored = normalise(torch.from_numpy(store.read(sample).copy()), spec)
        if sample.kind == "loop":
            clip = load_clips(root / sample.source, spec)
            assert torch.equal(stored.transpose(0, 1), clip.pixels_BCTSS[sample.beat])
            assert sample.indices == clip.indices[sample.beat]
        else:
            views = {one.source: one.view for one in store.samples if one.study == sample.study and one.view}
            order = [View.A4C, View.A2C, View.PLAX, View.PSAX]
            files = sorted(
                (file for file, view in views.items() if view in order),
                key=lambda file: (order.index(views[file]), file),
            )
            assert sample.num_frames == len(files)
            for place, index in enumerate(sample.indices):
                assert torch.equal(stored[place], load_still(root / files[index], spec, None))
    beats = {sample.loop_key: sample.beat + 1 for sample in sorted(store.samples, key=lambda one: one.beat)}
    assert sum(beats.values()) == len(store.samples)
    assert (max(beats.values()) > 1) == (spec.sampling == "beat")


def test_version_0_1_has_no_labels(phantoms: Layouts) -> None:
    listing = survey(phantoms("mimic-0.1"))

    assert len(listing.origins) == 10
    assert {task for one in listing.origins for task in one.targets} == {Task.VIEW}


def test_without_a_list_of_views_nobody_knows_them(root: Path) -> None:
    (root / "view-labels.csv").unlink()

    listing = survey(root)

    assert {one.view for one in listing.origins} == {None}
    assert all(len(one.files) == 10 for one in listing.origins if one.kind == "stack")


@pytest.mark.parametrize("name", ["structured_measurement.csv", "structured-measurement.csv"])
def test_measurements_are_found_under_each_of_their_names(root: Path, name: str) -> None:
    before = survey(root)
    packed = root / "structured-measurement.csv.gz"
    (root / name).write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()

    assert survey(root) == before


def test_lists_may_be_packed_and_have_their_columns_in_any_order(root: Path) -> None:
    before = survey(root)
    plain = root / "echo-record-list.csv"
    with plain.open() as stream:
        rows = [dict(reversed(row.items())) for row in csv.DictReader(stream)]
    with gzip.open(root / "echo-record-list.csv.gz", "wt") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plain.unlink()

    assert survey(root) == before


def measure(root: Path, *rows: tuple[str, str, str]) -> dict[Task, float | str]:
    """Replace the first study's measurements by rows of (test type, name, result); return its loops' labels."""
    with gzip.open(root / "structured-measurement.csv.gz", "rt") as stream:
        before = list(csv.DictReader(stream))
    own = [before[0] | dict(test_type=kind, measurement=name, result=result) for kind, name, result in rows]
    with gzip.open(root / "structured-measurement.csv.gz", "wt") as stream:
        writer = csv.DictWriter(stream, list(before[0]))
        writer.writeheader()
        writer.writerows(own)
    first = min(one.subject for one in survey(root).origins)
    found = next(one.targets for one in survey(root).origins if one.subject == first and one.kind == "loop")
    return {task: value for task, value in found.items() if task is not Task.VIEW}


@pytest.mark.parametrize(
    ("rows", "targets"),
    [
        ([("tte", "lvef", "55"), ("tte", "lvef_3d", "57.1")], {Task.LVEF: 57.1}),
        ([("tte", "lvef", "55"), ("tte", "biplane_lvef", "n/a")], {Task.LVEF: 55.0}),
        ([("tte", "biplane_lvef", "7"), ("tte", "lvef", "55")], {Task.LVEF: 55.0}),
        ([("tee", "lvef", "55")], {}),
        ([("stress", "biplane_lvedv", "90")], {}),
        ([("tte", "biplane_lvedv", "90.5")], {Task.LVEDV: 90.5}),
    ],
)
def test_the_best_measurement_at_rest_counts(
    root: Path, rows: list[tuple[str, str, str]], targets: dict[Task, float]
) -> None:
    assert measure(root, *rows) == targets


def test_volumes_that_cannot_be_are_left_out(root: Path) -> None:
    assert measure(root, ("tte", "biplane_lvedv", "60"), ("tte", "biplane_lvesv", "80")) == {}
    (skip,) = survey(root).skipped
    assert skip.is_bad
    assert "ESV 80.0 above EDV 60.0" in skip.reason


@pytest.mark.parametrize(
    ("words", "grade"),
    [
        ("No AS", Grade.NONE), ("Aortic sclerosis", Grade.NONE), ("Mild aortic stenosis", Grade.MILD),
        ("Mild-moderate AS", Grade.MILD_TO_MODERATE), ("MODERATE AS", Grade.MODERATE),
        ("Moderate to severe AS", Grade.SEVERE), ("Severe", Grade.SEVERE), ("Prosthetic valve", None), ("", None),
    ],
)  # fmt: skip
def test_words_become_grades(root: Path, words: str, grade: Grade | None) -> None:
    measure(root, ("tte", "aortic_stenosis", words))

    found = [one.targets[Task.AORTIC_STENOSIS] for one in survey(root).origins if one.kind == "stack"]

    assert found == ([] if grade is None else [grade.value])


def test_a_missing_file_is_left_out_and_counts_as_bad(root: Path) -> None:
    first = survey(root).origins[0]
    (root / first.source).unlink()

    listing = survey(root)

    (skip,) = listing.skipped
    assert (skip.path, skip.reason, skip.is_bad) == (first.source, "file is missing", True)


def test_a_column_that_is_missing_is_named(root: Path) -> None:
    table = root / "echo-study-list.csv"
    table.write_text(table.read_text().replace("measurement_id", "measure", 1))

    with pytest.raises(DataError, match=r"echo-study-list\.csv: has no column measurement_id"):
        survey(root)


def test_an_unknown_view_is_named(root: Path) -> None:
    table = root / "view-labels.csv"
    table.write_text(table.read_text().replace("PLAX", "A5C", 1))

    with pytest.raises(DataError, match=r"view A5C of .* is none of A4C"):
        survey(root)


def test_a_study_of_doppler_alone_gives_no_stack(root: Path) -> None:
    (stack,) = [one for one in survey(root).origins if one.kind == "stack"][:1]
    files = [
        one.source for one in survey(root).origins if one.study == stack.study and one.kind == "loop" and not one.view
    ]
    with pytest.raises(NotALoop):
        open_reel(root, replace(stack, files=tuple(files)), SPEC)


def test_the_repeats_of_a_short_loop_keep_no_still_out_of_a_stack(tmp_path: Path) -> None:
    """As in the node: a sample of 16 of 10 frames shows some of them twice, and is no frozen picture."""
    frames = render(Heart(edv_ml=120.0, esv_ml=50.0), View.A4C, num_frames=10, frame_time_ms=90.0,
                    rng=np.random.default_rng(0))  # fmt: skip
    write_native(tmp_path / "a.dcm", frames)

    assert StackReel.open(tmp_path, ["a.dcm"], ClipSpec()).num_frames == 1
