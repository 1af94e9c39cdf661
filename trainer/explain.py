"""Explain a run on one loop: where its encoder looked, over the frames, and what it says.

    explanation.json the answers, the recipe and how the picture was made
    contact.png      every frame of the clip beside its overlay
    frame_00.png     each overlay on its own, in the clip's size times `SCALE`

Legend: T frames of a clip, S side of a clip, C = 3 RGB, H, W pixels.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from model.clip.dicom import open_loop
from model.clip.sampling import clips_of, distinct
from model.clip.sector import Sector
from model.clip.select import Verdict, inspect, select
from model.clip.source import Frames, LoopSource
from model.clip.spec import ClipSpec
from model.clip.transform import cut_out, locate_by_header, pixels_of, resize
from model.clip.video import open_video
from model.errors import NotALoop, UnreadableLoop
from model.overlay import COLOURS, veil
from model.prediction import decode
from model.rollout import ROW, HeadFusion, Saliency, saliency
from model.tasks import CATALOGUE, Kind, Scope, Task
from trainer.errors import DataError, UsageError
from trainer.evaluate import write_json
from trainer.run import open_finished

EXPLANATION = "explanation.json"
CONTACT = "contact.png"

SCALE = 2
"""Pixels of an overlay for one of the clip, each way."""

_COLUMNS = 8


def explain(
    run: Path, loop: Path, out: Path, *, head_fusion: HeadFusion = "min", row: int | None = None, all_rows: bool = False
) -> dict[str, Any]:
    """Return what a run says about a loop, and draw the attention rollout of its encoder over the frames.

    Args:
        run: of `trainer finetune`.
        loop: a DICOM or video file.
        out: folder to write to; what an earlier explanation wrote there is replaced.
        head_fusion: how the heads of a layer become one matrix.
        row: token whose attention is followed; None: the paper's, or the middle one of a smaller clip.
        all_rows: follow all tokens and show the mean, instead of one of them.

    Raises:
        RunError: the run is not finished.
        DataError: the file gives no clip.
        UsageError: `row` is no token of the clip or stands beside `all_rows`, or `out` cannot be written.
    """
    finished = open_finished(run)
    spec, network = finished.config.clip, finished.network()
    chosen = _row(row, all_rows=all_rows, num_tokens=len(network.encoder.positions))
    frames_THWC, indices, sector, note = _read(loop, spec)
    clip_CTSS = pixels_of(frames_THWC, sector, spec).transpose(0, 1)
    found = saliency(network.encoder, clip_CTSS, row=chosen, head_fusion=head_fusion)
    with torch.inference_mode():
        raw = network(clip_CTSS[None], torch.tensor(indices)[None])
    at = finished.view_temperature
    answers = {Task(name): decode(Task(name), values[0].tolist(), at) for name, values in raw.items()}
    shown_TSSC = resize(cut_out(frames_THWC, sector), spec).permute(0, 2, 3, 1).numpy()
    document: dict[str, Any] = {
        "run": str(run),
        "loop": str(loop),
        "note": note,
        "frames": list(indices),
        "tasks": {task.value: _answer(task, values) for task, values in answers.items()},
        "rollout": {
            "head_fusion": head_fusion,
            "row": chosen,
            "grid": list(network.encoder.grid),
            "cells": [round(value, 4) for value in found.cells_thw.flatten().tolist()],
        },
    }
    _write(out, shown_TSSC, found, indices, _title(loop, document["tasks"]))
    write_json(out / EXPLANATION, document)
    return document


def _row(row: int | None, *, all_rows: bool, num_tokens: int) -> int | None:
    """Return the token to ask, None for all of them."""
    if all_rows:
        if row is not None:
            raise UsageError("--row: has no effect beside --all-rows: give one of the two")
        return None
    if row is None:
        return ROW if num_tokens > ROW else num_tokens // 2
    if not 0 <= row < num_tokens:
        raise UsageError(f"--row {row}: the clip has tokens 0 to {num_tokens - 1}: give one of them")
    return row


def _read(loop: Path, spec: ClipSpec) -> tuple[Frames, tuple[int, ...], Sector | None, str]:
    """Return the frames of the first clip, their places in the loop, what is cut out, and what speaks against it."""
    if not loop.is_file():
        raise DataError(f"{loop}: is no file: give a DICOM or video file")
    try:
        source, is_dicom = _open(loop)
        clips = clips_of(source.header, spec)
        seen = distinct(clips)
        frames_NHWC = source.read(seen)
        sector = locate_by_header(frames_NHWC, spec, source.header)
    except NotALoop as error:
        raise DataError(f"{loop}: gives no clip by the run's recipe ({error}): explain another loop") from error
    except UnreadableLoop as error:
        raise DataError(f"{loop}: cannot be read as a loop ({error}): give a DICOM or video file") from error
    # The node would not look at such a loop; who asks for a picture of it is shown it, and told.
    verdicts = ([select(source.header)] if is_dicom else []) + [inspect(frames_NHWC)]
    indices = clips[0]
    frames_THWC = frames_NHWC[[seen.index(index) for index in indices]]
    return frames_THWC, indices, sector, next((_words(one) for one in verdicts if not one.is_accepted), "")


def _open(loop: Path) -> tuple[LoopSource, bool]:
    """Return the open file and whether it is DICOM (PS3.10 7.1: DICM behind 128 bytes)."""
    with loop.open("rb") as stream:
        head = stream.read(132)
    if head[128:] == b"DICM":
        return open_loop(loop), True
    return open_video(loop), False


def _words(verdict: Verdict) -> str:
    assert verdict.reason is not None, "only what is refused has a reason"
    detail = f" ({verdict.detail})" if verdict.detail else ""
    return f"the node would not analyse this loop: {verdict.reason.text}{detail}"


def _answer(task: Task, values: list[float]) -> dict[str, Any]:
    """Return a task's answer to one loop as JSON."""
    info = CATALOGUE[task]
    if info.kind is Kind.REGRESSION:
        return {"value": values[0], "unit": info.unit}
    names = info.classes or ("reduced",)
    answer: dict[str, Any] = {"probabilities": dict(zip(names, values, strict=True))}
    if info.scope is Scope.STUDY:
        answer["note"] = "learned from stacks of stills of a study; of one loop it means nothing"
    return answer


def _title(loop: Path, tasks: dict[str, dict[str, Any]]) -> str:
    parts = []
    for name, answer in tasks.items():
        if "value" in answer:
            parts.append(f"{name} {answer['value']:.1f} {answer['unit']}")
        else:
            best, probability = max(answer["probabilities"].items(), key=lambda pair: pair[1])
            parts.append(f"{name} {best} (p = {probability:.2f})")
    return f"{loop.name}\n{', '.join(parts)}"


def _write(out: Path, shown_TSSC: Frames, found: Saliency, indices: tuple[int, ...], title: str) -> None:
    heat_THW = np.round(found.pixels_THW.numpy() * 255.0).astype(np.uint8)
    overlays = [veil(heat_HW).over(frame_HWC) for frame_HWC, heat_HW in zip(shown_TSSC, heat_THW, strict=True)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number, picture_HWC in enumerate(overlays):
            _enlarged(picture_HWC).save(out / f"frame_{number:02d}.png")
        _contact_sheet(out / CONTACT, shown_TSSC, overlays, indices, title)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}: give a folder that can be written") from error


def _enlarged(picture_HWC: Frames) -> Image.Image:
    side = SCALE * picture_HWC.shape[0]
    return Image.fromarray(picture_HWC).resize((side, side), Image.Resampling.BILINEAR)


def _contact_sheet(file: Path, frames: Frames, overlays: list[Frames], indices: tuple[int, ...], title: str) -> None:
    """Draw each frame over its overlay, with its number in the loop, and the scale of the colours."""
    columns = min(_COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    figure = Figure(figsize=(1.5 * columns + 0.8, 3.1 * rows + 0.7), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (frame, laid_over) in enumerate(zip(frames, overlays, strict=True)):
        row, column = divmod(number, columns)
        grid[2 * row, column].imshow(frame)
        grid[2 * row, column].set_title(f"frame {indices[number] + 1}", fontsize=8)
        grid[2 * row + 1, column].imshow(laid_over)
    colours = matplotlib.cm.ScalarMappable(cmap=COLOURS)
    colours.set_clim(0.0, 1.0)
    figure.colorbar(colours, ax=grid, shrink=0.5, label="attention rollout, least to most of the clip")
    figure.suptitle(title, fontsize=10)
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=110)
