"""Figures of an evaluation, and their intervals: numpy alone, exact, and None where a figure has no meaning.

Legend: N samples, K classes, S subjects.
A difference is the prediction minus the truth.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Rows = NDArray[np.int64]

Figures = dict[str, float | None]
"""Name -> figure; None: the samples do not define it (a class is missing, the truth is constant)."""

RESAMPLES = 1000
"""Resamples of an interval."""


def regression(truth_N: Array, predicted_N: Array) -> Figures:
    """Return mae, rmse, bias and std (of the differences, ddof 1), in the task's unit, and r2 and pearson."""
    difference_N = predicted_N - truth_N
    return {
        "mae": float(np.abs(difference_N).mean()),
        "rmse": float(np.sqrt(np.square(difference_N).mean())),
        "r2": r2(truth_N, predicted_N),
        "pearson": pearson(truth_N, predicted_N),
        "bias": float(difference_N.mean()),
        "std": float(difference_N.std(ddof=1)) if len(difference_N) > 1 else None,
    }


def binary(is_positive_N: NDArray[np.bool_], probability_N: Array) -> Figures:
    """Return accuracy, auc and F1 of a task whose positive class is a reduced LVEF; decided at one half.

    `f1` is that of the class "preserved", as the paper reports it; `f1_reduced` is that of the finding.
    """
    truth_N = is_positive_N.astype(np.int64)
    decided_N = (probability_N >= 0.5).astype(np.int64)
    preserved = f1(truth_N, decided_N, 0)
    return {
        "accuracy": float((truth_N == decided_N).mean()),
        "auc": auc(is_positive_N, probability_N),
        "f1": preserved,
        "f1_preserved": preserved,
        "f1_reduced": f1(truth_N, decided_N, 1),
    }


def classes(truth_N: Labels, probability_NK: Array) -> Figures:
    """Return accuracy, macro one-vs-rest auc and macro F1; the most probable class is the answer, the first of equals.

    The AUC needs every class among the truths; the F1 is the mean over the classes that are true or answered.
    """
    decided_N = probability_NK.argmax(axis=1)
    seen = np.union1d(truth_N, decided_N)
    curves = [auc(truth_N == label, probability_NK[:, label]) for label in range(probability_NK.shape[1])]
    known = [curve for curve in curves if curve is not None]
    scores = [f1(truth_N, decided_N, int(label)) or 0.0 for label in seen]
    return {
        "accuracy": float((truth_N == decided_N).mean()),
        "auc": float(np.mean(known)) if len(known) == len(curves) else None,
        "f1": float(np.mean(scores)),
    }


def r2(truth_N: Array, predicted_N: Array) -> float | None:
    """Return the share of the truth's variance that is explained; None if the truth is constant."""
    if np.ptp(truth_N) == 0.0:
        return None
    residual = np.square(truth_N - predicted_N).sum()
    return float(1.0 - residual / np.square(truth_N - truth_N.mean()).sum())


def pearson(truth_N: Array, predicted_N: Array) -> float | None:
    """Return the correlation, -1..1; None if either is constant."""
    if np.ptp(truth_N) == 0.0 or np.ptp(predicted_N) == 0.0:
        return None
    a_N, b_N = truth_N - truth_N.mean(), predicted_N - predicted_N.mean()
    a_N, b_N = a_N / np.abs(a_N).max(), b_N / np.abs(b_N).max()  # squares of tiny numbers would vanish
    value = (a_N @ b_N) / (np.sqrt(a_N @ a_N) * np.sqrt(b_N @ b_N))
    return float(np.clip(value, -1.0, 1.0))


def auc(is_positive_N: NDArray[np.bool_], score_N: Array) -> float | None:
    """Return the area under the ROC curve, a tie counting one half; None if a class is missing."""
    num_positive = int(is_positive_N.sum())
    num_negative = len(is_positive_N) - num_positive
    if num_positive == 0 or num_negative == 0:
        return None
    _, place_N, count = np.unique(score_N, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(count) - (count - 1) / 2.0  # 1-based; equal scores share the mean of their ranks
    wins = mean_rank[place_N][is_positive_N].sum() - num_positive * (num_positive + 1) / 2.0
    return float(wins / (num_positive * num_negative))


def f1(truth_N: Labels, decided_N: Labels, label: int) -> float | None:
    """Return the F1 of a class; None if it is neither true nor answered anywhere."""
    total = int((truth_N == label).sum() + (decided_N == label).sum())
    hits = int(((truth_N == label) & (decided_N == label)).sum())
    return 2.0 * hits / total if total else None


def roc(is_positive_N: NDArray[np.bool_], score_N: Array) -> tuple[Array, Array]:
    """Return the false and the true positive rate at each threshold, from (0, 0) to (1, 1); both classes are there."""
    order = np.argsort(-score_N, kind="stable")
    hits, falls = np.cumsum(is_positive_N[order]), np.cumsum(~is_positive_N[order])
    last_of_ties = np.append(np.flatnonzero(np.diff(score_N[order])), len(order) - 1)
    corner = np.zeros(1)
    return (
        np.concatenate((corner, falls[last_of_ties] / falls[-1])),
        np.concatenate((corner, hits[last_of_ties] / hits[-1])),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationBin:
    """Samples whose probability lies in one interval."""

    low: float
    high: float
    """The interval, closed below; the last is closed above as well."""
    count: int
    """Samples in it."""
    probability: float | None
    """Their mean probability; None if there is none."""
    observed: float | None
    """Share of them in which what was announced came true; None if there is none."""


def calibration(came_true_N: NDArray[np.bool_], probability_N: Array, num_bins: int = 10) -> list[CalibrationBin]:
    """Return how often what was announced with a probability came true, in bins of equal width."""
    place_N = np.minimum((probability_N * num_bins).astype(np.int64), num_bins - 1)
    bins = []
    for place in range(num_bins):
        inside = place_N == place
        count = int(inside.sum())
        bins.append(
            CalibrationBin(
                low=place / num_bins,
                high=(place + 1) / num_bins,
                count=count,
                probability=float(probability_N[inside].mean()) if count else None,
                observed=float(came_true_N[inside].mean()) if count else None,
            )
        )
    return bins


def expected_calibration_error(bins: Sequence[CalibrationBin]) -> float:
    """Return the mean distance between the announced and the observed share, weighted by the samples of each bin."""
    total = sum(one.count for one in bins)
    return sum(one.count * abs((one.probability or 0.0) - (one.observed or 0.0)) for one in bins) / total


def intervals(
    figures: Callable[[Rows], Figures], subjects: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, list[float] | None]:
    """Return the 95 % interval of each figure: percentiles over resamples of the subjects, with replacement.

    A subject comes with all of its samples, since they are not independent of each other.

    Args:
        figures: of these rows; a row stands as often as its subject was drawn.
        subjects: subject of each row.
        resamples: how often to draw; 0: no intervals.
        seed: of the draws.

    Returns:
        Figure -> [low, high]; None with fewer than two subjects, or where most resamples do not define the figure.
        A resample that does not define it is left out.
    """
    names, place_N = np.unique(np.asarray(subjects), return_inverse=True)
    generator = np.random.default_rng(seed)
    every = np.arange(len(place_N))
    drawn: dict[str, list[float | None]] = {name: [] for name in figures(every)}
    if len(names) < 2 or resamples == 0:
        return dict.fromkeys(drawn)
    for _ in range(resamples):
        count_S = np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names))
        for name, value in figures(np.repeat(every, count_S[place_N])).items():
            drawn[name].append(value)
    return {name: _percentiles(values) for name, values in drawn.items()}


def _percentiles(values: Sequence[float | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    if 2 * len(known) < len(values):
        return None
    low, high = np.percentile(known, (2.5, 97.5))
    return [float(low), float(high)]
