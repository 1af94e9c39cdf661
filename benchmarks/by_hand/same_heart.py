"""One and the same heart on other screens: by how much does an ensemble's LVEF of it change?

Each phantom heart is filmed once (views, beats, speckle and pose fixed) and shown as several scanners would show that
film: nothing beside the fan; text, ECG, marks, a logo; the geometry of other vendors; other depths; all at once. The
heart's LVEF is the mean over its apical loops and the members, as the node's, without the view gate, which would hide
a change. What is printed is the mean absolute difference to the bare screen over the hearts, in points.

    python benchmarks/by_hand/same_heart.py ENSEMBLE [ENSEMBLE ...] [--hearts 50]

Each ensemble reads the loops by its own recipe, so one that keeps the whole screen stands beside one that cuts the
sector out. Loops that a recipe refuses are counted. The LVEF on the bare screen itself is off by MAE: an ensemble that
always says the same would not change at all.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator

from model.clip.scale import Scale
from model.clip.source import Frames
from model.clip.spec import frame_indices
from model.clip.transform import make_clip
from model.ensemble import Ensemble
from model.errors import NotALoop
from model.phantom.anatomy import Pose, random_pose
from model.phantom.heart import Heart, random_heart
from model.phantom.ranges import MIXED_DEPTHS_MM, TRAINING, Vendor, between
from model.phantom.scan import render
from model.phantom.screen import VENDORS, Screen
from model.tasks import Task, View

FRAMES, FRAME_TIME_MS = 40, 32.0
LOOPS = (View.A4C, View.A4C, View.A2C)
BARE = replace(VENDORS[Vendor.GE], depth_mm=160.0, has_ecg=False, has_marks=False)


def screens(rng: Generator) -> Mapping[str, Screen]:
    """Return the screens that one heart is shown on, the bare one first."""
    beside = {"has_ecg": True, "has_marks": True, "has_text": True, "has_logo": True}
    vendors = [Vendor.PHILIPS, Vendor.SIEMENS, Vendor.CANON]
    other = VENDORS[vendors[int(rng.integers(len(vendors)))]]
    factor = float(rng.choice([1.0, 1.5, 2.0]))
    other = replace(other, rows=round(other.rows * factor), columns=round(other.columns * factor))
    other = replace(other, depth_mm=BARE.depth_mm, has_ecg=False, has_marks=False)
    depth = between(rng, MIXED_DEPTHS_MM)
    return {
        "bare": BARE,
        "text, ECG, marks, logo": replace(BARE, **beside),
        "another vendor's geometry": other,
        "another depth": replace(BARE, depth_mm=depth),
        "all of it": replace(other, depth_mm=depth, **beside),
    }


def film(heart: Heart, screen: Screen, pose: Pose, view: View, seed: int, number: int) -> Frames:
    """Return the same film, whatever the screen."""
    rng = np.random.default_rng([seed, number])
    begin_ms = float(rng.uniform(0.0, heart.beat_ms))
    return render(heart, view, num_frames=FRAMES, frame_time_ms=FRAME_TIME_MS, rng=rng, screen=screen, pose=pose,
                  begin_ms=begin_ms)  # fmt: skip


def lvef(ensemble: Ensemble, films: Sequence[Frames], screen: Screen) -> float | None:
    """Return the LVEF of a heart in %, None if the recipe refuses one of its loops."""
    spec = ensemble.spec
    indices = frame_indices(FRAMES, spec.num_frames)
    scale = Scale(screen.row_mm, screen.column_mm)
    try:
        clips = [make_clip(frames_THWC[list(indices)], spec, scale) for frames_THWC in films]
    except NotALoop:
        return None
    outputs = ensemble.predict_loops(torch.stack(clips), torch.tensor([indices] * len(clips)))
    return statistics.fmean(value for loop in outputs for (value,) in loop[Task.LVEF])


def main() -> None:
    """Print a table an ensemble."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ensembles", nargs="+", type=Path)
    parser.add_argument("--hearts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=20261125)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    ensembles = {path: Ensemble.load(path) for path in asked.ensembles}
    said: dict[Path, dict[str, list[float | None]]] = {path: {} for path in ensembles}
    truth: list[float] = []
    for number in range(asked.hearts):
        rng = np.random.default_rng([asked.seed, number])
        heart = random_heart(rng, TRAINING)
        poses = [random_pose(rng, TRAINING) for _ in LOOPS]
        truth.append(heart.lvef_percent)
        for name, screen in screens(rng).items():
            films = [
                film(heart, screen, pose, view, asked.seed + 1, number * len(LOOPS) + place)
                for place, (pose, view) in enumerate(zip(poses, LOOPS, strict=True))
            ]
            for path, ensemble in ensembles.items():
                said[path].setdefault(name, []).append(lvef(ensemble, films, screen))
    for path, ensemble in ensembles.items():
        report(path, ensemble, said[path], truth)


def report(path: Path, ensemble: Ensemble, said: Mapping[str, Sequence[float | None]], truth: Sequence[float]) -> None:
    """Print what changed."""
    spec = ensemble.spec
    print(f"{path}: {ensemble.info.name} {ensemble.info.version}, crop {spec.crop}, depth {spec.depth_mm}")
    bare = said["bare"]
    for name, values in said.items():
        pairs = [(own, first) for own, first in zip(values, bare, strict=True) if own is not None and first is not None]
        changes = [abs(own - first) for own, first in pairs]
        errors = [abs(own - true) for own, true in zip(values, truth, strict=True) if own is not None]
        print(
            f"  {name:26s} hearts {len(changes):3d}  changes by {statistics.fmean(changes):5.2f} points on average,"
            f" {max(changes):5.2f} at most; MAE {statistics.fmean(errors):5.2f}"
        )


if __name__ == "__main__":
    main()
