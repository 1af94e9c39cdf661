"""Pictures of runs and of evaluations: PNG files, drawn without a screen.

Legend: B clips, H, W pixels, C = 3 RGB.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from model.tasks import CATALOGUE, Kind
from trainer.metrics import Array, auc, calibration, expected_calibration_error, regression, roc
from trainer.run import read_metrics
from trainer.scores import Answers, came_true, class_names, confusion

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


def draw_task(answers: Answers, folder: Path) -> None:
    """Draw what is worth seeing of a task: `<task>_<picture>.png` in a folder that exists."""
    kind = CATALOGUE[answers.task].kind
    if kind is Kind.REGRESSION:
        scatter(answers, folder / f"{answers.task}_scatter.png")
        bland_altman(answers, folder / f"{answers.task}_bland_altman.png")
        return
    confusion_matrix(
        confusion(answers), class_names(answers.task), class_names(answers.task), _title(answers),
        folder / f"{answers.task}_confusion.png",
    )  # fmt: skip
    roc_curve(answers, folder / f"{answers.task}_roc.png")
    calibration_curve(answers, folder / f"{answers.task}_calibration.png")


def scatter(answers: Answers, file: Path) -> None:
    """Draw each prediction over its truth, with the line of identity."""
    figure, axes = _axes(5.0, 5.0)
    truth_N, said_N = answers.truth_N, answers.said_NK[:, 0]
    found = regression(truth_N, said_N)
    low, high = _span(np.concatenate((truth_N, said_N)))
    axes.plot([low, high], [low, high], color="0.4", lw=1, label="identity")
    for number, view in enumerate(sorted({row.view for row in answers.rows})):
        chosen = [row.view == view for row in answers.rows]
        axes.scatter(
            truth_N[chosen], said_N[chosen], s=12, alpha=0.6, lw=0, color=f"C{number}", label=view or "studies"
        )
    figures = [f"MAE {found['mae']:.2f} {_unit(answers)}"]
    figures += [f"R2 {found['r2']:.3f}"] if found["r2"] is not None else []
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", title=f"{_title(answers)}\n{', '.join(figures)}",
             xlabel=f"truth, {_unit(answers)}", ylabel=f"prediction, {_unit(answers)}")  # fmt: skip
    axes.legend(loc="upper left")
    _write(figure, file)


def bland_altman(answers: Answers, file: Path) -> None:
    """Draw each difference over the mean of truth and prediction, with the bias and the limits of agreement."""
    figure, axes = _axes(6.0, 4.0)
    truth_N, said_N = answers.truth_N, answers.said_NK[:, 0]
    difference_N = said_N - truth_N
    axes.scatter((said_N + truth_N) / 2.0, difference_N, s=12, alpha=0.6, lw=0)
    bias = float(difference_N.mean())
    lines = [("bias", bias)]
    if len(difference_N) > 1:
        reach = 1.96 * float(difference_N.std(ddof=1))
        lines += [("+1.96 SD", bias + reach), ("-1.96 SD", bias - reach)]
    for label, height in lines:
        axes.axhline(height, color="C3", lw=1, ls="-" if label == "bias" else "--")
        axes.annotate(
            f"{label} {height:.1f}", (1.0, height), xycoords=("axes fraction", "data"), xytext=(-4, 3),
            textcoords="offset points", ha="right", fontsize=8, color="C3",
        )  # fmt: skip
    axes.axhline(0.0, color="0.7", lw=0.8)
    axes.set(title=_title(answers), xlabel=f"mean of truth and prediction, {_unit(answers)}",
             ylabel=f"prediction - truth, {_unit(answers)}")  # fmt: skip
    _write(figure, file)


def roc_curve(answers: Answers, file: Path) -> None:
    """Draw the ROC curve of the positive class, or of each class against the rest."""
    figure, axes = _axes(5.0, 5.0)
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    names = class_names(answers.task)
    chosen = [1] if CATALOGUE[answers.task].kind is Kind.BINARY else range(len(names))
    for label in chosen:
        is_label = answers.labels_N == label
        score_N = answers.said_NK[:, label if answers.said_NK.shape[1] > 1 else 0]
        area = auc(is_label, score_N)
        if area is None:
            axes.plot([], [], color=f"C{label}", label=f"{names[label]}: one class alone in the data")
        else:
            axes.plot(*roc(is_label, score_N), color=f"C{label}",
                      label=f"{names[label]}: AUC {area:.3f}, n = {int(is_label.sum())}")  # fmt: skip
    axes.set(title=_title(answers), xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.legend(loc="lower right", fontsize=8)
    _write(figure, file)


def confusion_matrix(
    counts: NDArray[np.int64], true_names: Sequence[str], answered_names: Sequence[str], title: str, file: Path
) -> None:
    """Draw counts, a row each true class; the shade is the share of the row."""
    figure, axes = _axes(2.4 + 0.9 * len(answered_names), 1.7 + 0.75 * len(true_names))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for row, column in np.ndindex(*counts.shape):
        axes.text(column, row, str(counts[row, column]), ha="center", va="center",
                  color="white" if shares[row, column] > 0.5 else "black")  # fmt: skip
    axes.set_xticks(range(len(answered_names)), answered_names, rotation=30, ha="right")
    axes.set_yticks(range(len(true_names)), true_names)
    axes.set(title=title, xlabel="prediction", ylabel="truth")
    axes.grid(visible=False)
    _write(figure, file)


def calibration_curve(answers: Answers, file: Path) -> None:
    """Draw how often what was announced came true, over the announced probability."""
    bins = [one for one in calibration(*came_true(answers)) if one.count]
    figure, axes = _axes(5.0, 5.0)
    axes.plot([0, 1], [0, 1], color="0.7", lw=1)
    points = [(one.probability or 0.0, one.observed or 0.0) for one in bins]
    axes.plot(*zip(*points, strict=True), "o-", ms=4)
    for one, point in zip(bins, points, strict=True):
        axes.annotate(f"{one.count}", point, xytext=(5, -9), textcoords="offset points", fontsize=7, color="0.3")
    what = "of reduced" if CATALOGUE[answers.task].kind is Kind.BINARY else "of the most probable class"
    axes.set(title=f"{_title(answers)}\nECE {expected_calibration_error(bins):.3f}; counts at the points",
             xlabel=f"mean probability {what}", ylabel="share that came true", aspect="equal",
             xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))  # fmt: skip
    _write(figure, file)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _title(answers: Answers) -> str:
    return f"{answers.task}: n = {len(answers.rows)}, {answers.num_subjects} patients"


def _unit(answers: Answers) -> str:
    return CATALOGUE[answers.task].unit


def _span(values: Array) -> tuple[float, float]:
    margin = 0.05 * float(np.ptp(values)) or 1.0
    return float(values.min()) - margin, float(values.max()) + margin


def _write(figure: Figure, file: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=110)
