"""Phantoms in the layout of EchoNet-Dynamic: FileList.csv, VolumeTracings.csv, Videos/*.avi of 112 x 112 pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from model.phantom.scan import chords
from model.phantom.screen import Screen
from model.tasks import View
from trainer.phantom.case import Case, Plan, bare, make_case
from trainer.phantom.tables import Row, Tables
from trainer.video import write_avi

SIDE = 112
_DRAWN = Screen(rows=2 * SIDE, columns=2 * SIDE, apex_row=0.03, bottom_row=0.98, pixel_ratio=1.25)
_SPLITS = ("TRAIN",) * 6 + ("VAL",) * 2 + ("TEST",) * 2
_FRAMES_A_SECOND = 50
_NAME = "0X{:016X}"


def case(plan: Plan, number: int) -> Case:
    """Return a patient under a scanner whose pictures were cut out and made small."""
    made = make_case(plan, number, base=_DRAWN)
    return replace(made, screen=bare(made.screen))


def write_case(patient: Case, root: Path) -> Tables:
    """Write the video of a patient."""
    film = patient.film(View.A4C, 0, num_frames=(40, 90))
    small_THWC = np.stack([np.asarray(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX))
                           for frame in film.frames_THWC])  # fmt: skip
    name = _NAME.format(int(patient.random(1).integers(2**62)))
    folder = root / "Videos"
    folder.mkdir(parents=True, exist_ok=True)
    write_avi(folder / f"{name}.avi", small_THWC, 1000.0 / _FRAMES_A_SECOND)
    heart = patient.heart
    listed: Row = {
        "FileName": name,
        "EF": f"{heart.lvef_percent:.6f}",
        "ESV": f"{heart.esv_ml:.6f}",
        "EDV": f"{heart.edv_ml:.6f}",
        "FrameHeight": str(SIDE),
        "FrameWidth": str(SIDE),
        "FPS": str(_FRAMES_A_SECOND),
        "NumberOfFrames": str(len(small_THWC)),
        "Split": _SPLITS[patient.number % len(_SPLITS)],
    }
    traced: list[Row] = []
    for frame, time_ms in ((0, heart.systole_ms), (1, 0.0)):  # smaller first, as the data set has it
        for x1, y1, x2, y2 in chords(heart, film.view, time_ms, screen=film.screen, pose=film.pose):
            traced.append(
                {
                    "FileName": f"{name}.avi",
                    "X1": f"{x1 / 2:.6f}",
                    "Y1": f"{y1 / 2:.6f}",
                    "X2": f"{x2 / 2:.6f}",
                    "Y2": f"{y2 / 2:.6f}",
                    "Frame": str(frame),
                }
            )
    return {
        "FileList.csv": [listed],
        "VolumeTracings.csv": traced,
        "truth.csv": [{"name": name} | patient.truth],
    }
