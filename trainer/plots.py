"""Pictures of runs and of evaluations: PNG files, drawn without a screen."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from trainer.run import read_metrics

Pictures = NDArray[np.float32]


def loss_curves(run: Path, file: Path) -> None:
    """Draw the loss of every step and of every validation."""
    lines = list(read_metrics(run))
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.subplots()
    steps = [line for line in lines if "loss" in line]
    epochs = [line for line in lines if "val_loss" in line]
    axes.plot([line["step"] for line in steps], [line["loss"] for line in steps], lw=0.7, alpha=0.7, label="training")
    axes.plot([line["step"] for line in epochs], [line["val_loss"] for line in epochs], "o-", ms=3, label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    axes.grid(alpha=0.3)
    _write(figure, file)


def reconstructions(inputs_BHWC: Pictures, masked_BHWC: Pictures, rebuilt_BHWC: Pictures, file: Path) -> None:
    """Draw clips in rows: a frame as it is, what the network saw of it, and what it made of that; values 0..1."""
    titles = ("input", "masked", "rebuilt")
    figure = Figure(figsize=(7.0, 2.4 * len(inputs_BHWC)), layout="constrained")
    grid = figure.subplots(len(inputs_BHWC), 3, squeeze=False)
    for row, pictures in zip(grid, zip(inputs_BHWC, masked_BHWC, rebuilt_BHWC, strict=True), strict=True):
        for axes, picture, title in zip(row, pictures, titles, strict=True):
            axes.imshow(np.clip(picture, 0.0, 1.0))
            axes.set_axis_off()
            axes.set_title(title, fontsize=9)
    _write(figure, file)


def _write(figure: Figure, file: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=110)
