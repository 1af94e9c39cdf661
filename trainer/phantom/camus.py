"""Phantoms in the two layouts of CAMUS: NIfTI with official subgroups, and the MetaImage files of the challenge."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from model.phantom.anatomy import random_pose
from model.phantom.scan import outlines, render
from model.phantom.screen import Screen
from model.tasks import View
from trainer.phantom.case import Case, Plan, bare, make_case
from trainer.phantom.tables import Row, Tables

Image = NDArray[np.uint8]

_DRAWN = Screen(rows=480, columns=330, apex_row=0.01, bottom_row=0.99, pixel_ratio=2.0)  # pixels twice as wide as high
_GROUPS = ("training",) * 8 + ("validation", "testing")
_VIEWS = {"2CH": View.A2C, "4CH": View.A4C}
_QUALITIES = ("Good", "Medium", "Poor")
_REVERSED = 7  # one patient of so many is stored from end-systole to end-diastole


def case(plan: Plan, number: int) -> Case:
    """Return a patient under the one kind of scanner that the data set knows."""
    made = make_case(plan, number, base=_DRAWN)
    return replace(made, screen=bare(made.screen))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Half:
    """Half a beat in one view: pictures and outlines (T, H, W)."""

    frames: Image
    labels: Image
    frame_time_ms: float


def write_case(patient: Case, root: Path) -> Tables:
    """Write a patient in the NIfTI layout."""
    name = f"patient{patient.number + 1:04d}"
    folder = root / "database_nifti" / name
    folder.mkdir(parents=True, exist_ok=True)
    row, column = patient.screen.row_mm, patient.screen.column_mm
    is_reversed = patient.number % _REVERSED == _REVERSED - 1
    for number, (short, view) in enumerate(_VIEWS.items()):
        half = _half(patient, view, number, is_reversed=is_reversed)
        count = len(half.frames)
        ends = {"ED": count - 1 if is_reversed else 0, "ES": 0 if is_reversed else count - 1}
        for instant, index in ends.items():
            _write_nifti(folder / f"{name}_{short}_{instant}.nii.gz", half.frames[index], row, column)
            _write_nifti(folder / f"{name}_{short}_{instant}_gt.nii.gz", half.labels[index], row, column)
        _write_nifti(folder / f"{name}_{short}_half_sequence.nii.gz", half.frames, row, column)
        _write_nifti(folder / f"{name}_{short}_half_sequence_gt.nii.gz", half.labels, row, column)
        _write_info(
            folder / f"Info_{short}.cfg",
            _described(patient, ends, count)
            | {"EF": f"{patient.heart.lvef_percent:.0f}", "FrameRate": f"{1000.0 / half.frame_time_ms:.1f}"},
        )
    group = _GROUPS[patient.number % len(_GROUPS)]
    return {f"database_split/subgroup_{group}.txt": [{"": name}], "truth.csv": [{"patient": name} | patient.truth]}


def write_case_of_the_challenge(patient: Case, root: Path) -> Tables:
    """Write a patient in the layout of the challenge: training with outlines, testing without."""
    is_testing = _GROUPS[patient.number % len(_GROUPS)] == "testing"
    part = "testing" if is_testing else "training"
    rank = patient.number // len(_GROUPS) if is_testing else patient.number - patient.number // len(_GROUPS)
    name = f"patient{rank + 1:04d}"  # both parts count from 1
    folder = root / part / name
    folder.mkdir(parents=True, exist_ok=True)
    spacing = (patient.screen.column_mm, patient.screen.row_mm)
    is_reversed = patient.number % _REVERSED == _REVERSED - 1
    for number, (short, view) in enumerate(_VIEWS.items()):
        half = _half(patient, view, number, is_reversed=is_reversed)
        count = len(half.frames)
        ends = {"ED": count - 1 if is_reversed else 0, "ES": 0 if is_reversed else count - 1}
        images = {f"{short}_{instant}": half.frames[index] for instant, index in ends.items()}
        images[f"{short}_sequence"] = half.frames
        if not is_testing:
            images |= {f"{short}_{instant}_gt": half.labels[index] for instant, index in ends.items()}
            images[f"{short}_sequence_gt"] = half.labels
        for kind, image in images.items():
            _write_metaimage(folder / f"{name}_{kind}.mhd", image, spacing)
        heart = patient.heart
        volumes = {"LVedv": f"{heart.edv_ml:.1f}", "LVesv": f"{heart.esv_ml:.1f}", "LVef": f"{heart.lvef_percent:.1f}"}
        _write_info(folder / f"Info_{short}.cfg", _described(patient, ends, count) | volumes)
    return {"truth.csv": [{"patient": f"{part}/{name}"} | patient.truth]}


def _half(patient: Case, view: View, number: int, *, is_reversed: bool) -> _Half:
    """Return the frames from end-diastole to end-systole, both at their exact time."""
    rng = patient.random(number)
    pose = random_pose(rng, patient.plan.ranges)
    count = int(rng.integers(14, 24, endpoint=True))
    step = patient.heart.systole_ms / (count - 1)
    frames = render(
        patient.heart, view, num_frames=count, frame_time_ms=step, rng=rng, screen=patient.screen, pose=pose
    )[..., 0]
    labels = np.stack(
        [outlines(patient.heart, view, index * step, screen=patient.screen, pose=pose) for index in range(count)]
    )
    order = slice(None, None, -1) if is_reversed else slice(None)
    return _Half(frames=frames[order], labels=labels[order], frame_time_ms=step)


def _described(patient: Case, ends: Mapping[str, int], count: int) -> Row:
    rng = patient.random(9)
    return {
        "ED": str(ends["ED"] + 1),
        "ES": str(ends["ES"] + 1),
        "NbFrame": str(count),
        "Sex": "FM"[int(rng.integers(2))],
        "Age": str(int(rng.integers(20, 90))),
        "ImageQuality": _QUALITIES[int(rng.integers(3))],
    }


def _write_info(path: Path, values: Row) -> None:
    path.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))


def _write_nifti(path: Path, image: Image, row_mm: float, column_mm: float) -> None:
    """Write (H, W) or (T, H, W) as NIfTI, whose first axis is the column."""
    affine = np.diag([column_mm, row_mm, 1.0, 1.0])
    written = nib.Nifti1Image(np.ascontiguousarray(image.T), affine)  # type: ignore[no-untyped-call]  # typed in part
    path.write_bytes(gzip.compress(written.to_bytes(), mtime=0, compresslevel=4))


def _write_metaimage(path: Path, image: Image, spacing: tuple[float, float]) -> None:
    """Write (H, W) or (T, H, W) as a MetaImage header and its raw bytes."""
    sizes = " ".join(str(size) for size in reversed(image.shape))
    steps = " ".join(f"{step:.6f}" for step in (*spacing, 1.0)[: image.ndim])
    raw = path.with_suffix(".raw")
    raw.write_bytes(np.ascontiguousarray(image).tobytes())
    header = {
        "ObjectType": "Image",
        "NDims": str(image.ndim),
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "Offset": " ".join(["0"] * image.ndim),
        "ElementSpacing": steps,
        "DimSize": sizes,
        "ElementType": "MET_UCHAR",
        "ElementDataFile": raw.name,
    }
    path.write_text("".join(f"{key} = {value}\n" for key, value in header.items()))
