"""The figures of an evaluation agree with scikit-learn, and their intervals draw patients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from trainer import metrics

# Grades of a hundredth, so that ties and constants are common.
numbers = st.integers(0, 100).map(lambda number: number / 100.0)
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=40).map(lambda rows: np.array(rows).T)


def close(value: float | None, expected: float) -> bool:
    return value is not None and abs(value - expected) <= 1e-9


@given(pairs)
def test_regression_figures_are_those_of_scikit_learn(rows: np.ndarray) -> None:
    truth, predicted = rows * 100.0

    found = metrics.regression(truth, predicted)

    assert close(found["mae"], sklearn.mean_absolute_error(truth, predicted))
    assert close(found["rmse"], sklearn.root_mean_squared_error(truth, predicted))
    assert close(found["bias"], np.mean(predicted - truth))
    assert close(found["std"], np.std(predicted - truth, ddof=1))
    if np.ptp(truth):
        assert close(found["r2"], sklearn.r2_score(truth, predicted))
    else:
        assert found["r2"] is None
    if np.ptp(truth) and np.ptp(predicted):
        assert close(found["pearson"], np.corrcoef(truth, predicted)[0, 1])
    else:
        assert found["pearson"] is None


@given(st.lists(st.tuples(st.booleans(), numbers), min_size=1, max_size=40))
def test_binary_figures_are_those_of_scikit_learn(rows: list[tuple[bool, float]]) -> None:
    truth = np.array([row[0] for row in rows])
    probability = np.array([row[1] for row in rows])
    decided = probability >= 0.5

    found = metrics.binary(truth, probability)

    assert close(found["accuracy"], sklearn.accuracy_score(truth, decided))
    if 0 < truth.sum() < len(truth):
        assert close(found["auc"], sklearn.roc_auc_score(truth, probability))
    else:
        assert found["auc"] is None
    for name, label in (("f1", False), ("f1_preserved", False), ("f1_reduced", True)):
        if (truth == label).any() or (decided == label).any():
            assert close(found[name], sklearn.f1_score(truth, decided, pos_label=label, zero_division=0.0))
        else:
            assert found[name] is None


@given(st.lists(st.tuples(st.integers(0, 2), numbers, numbers, numbers), min_size=1, max_size=40))
def test_figures_of_many_classes_are_those_of_scikit_learn(rows: list[tuple[int, float, float, float]]) -> None:
    truth = np.array([row[0] for row in rows])
    scores = np.array([row[1:] for row in rows]) + 0.25
    probability = scores / scores.sum(axis=1, keepdims=True)
    decided = probability.argmax(axis=1)

    found = metrics.classes(truth, probability)

    assert close(found["accuracy"], sklearn.accuracy_score(truth, decided))
    assert close(found["f1"], sklearn.f1_score(truth, decided, average="macro", zero_division=0.0))
    if set(truth) == {0, 1, 2}:
        expected = np.mean([sklearn.roc_auc_score(truth == label, probability[:, label]) for label in range(3)])
        assert close(found["auc"], float(expected))
        # scikit-learn's own macro average
        assert close(found["auc"], sklearn.roc_auc_score(truth, probability, multi_class="ovr", average="macro"))
    else:
        assert found["auc"] is None


@given(st.lists(st.tuples(st.booleans(), numbers), min_size=2, max_size=40))
def test_the_roc_curve_encloses_the_auc(rows: list[tuple[bool, float]]) -> None:
    truth = np.array([row[0] for row in rows])
    probability = np.array([row[1] for row in rows])
    expected = metrics.auc(truth, probability)
    if expected is None:
        return

    falls, hits = metrics.roc(truth, probability)

    assert (falls[0], hits[0], falls[-1], hits[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert close(float(np.trapezoid(hits, falls)), expected)


def test_calibration_counts_each_sample_once() -> None:
    probability = np.array([0.0, 0.05, 0.1, 0.95, 1.0])
    came_true = np.array([False, True, False, True, True])

    bins = metrics.calibration(came_true, probability)

    assert [one.count for one in bins] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert bins[0].observed == 0.5
    assert bins[2].probability is None
    assert metrics.expected_calibration_error(bins) == pytest.approx((2 * 0.475 + 0.1 + 2 * 0.025) / 5)


def test_a_resample_draws_patients_with_all_their_samples() -> None:
    subjects = ["a", "b", "a", "c", "b", "a"]
    seen: list[np.ndarray] = []

    def figures(rows: np.ndarray) -> metrics.Figures:
        seen.append(np.bincount(rows, minlength=6))
        return {"n": float(len(rows))}

    metrics.intervals(figures, subjects, resamples=50)

    for count in seen[1:]:
        assert count[0] == count[2] == count[5]
        assert count[1] == count[4]
        assert count[0] + count[1] + count[3] == 3


def test_intervals_depend_on_the_seed_alone_and_hold_the_known_width() -> None:
    sample = np.random.default_rng(0).normal(size=1277)
    subjects = [str(number) for number in range(1277)]

    def figures(rows: np.ndarray) -> metrics.Figures:
        return {"mean": float(sample[rows].mean())}

    first = metrics.intervals(figures, subjects)
    again = metrics.intervals(figures, subjects)

    assert first == again
    assert first["mean"] is not None
    low, high = first["mean"]
    # the standard error of a mean is known: sd / sqrt(n)
    assert high - low == pytest.approx(2 * 1.96 * sample.std() / np.sqrt(1277), rel=0.1)
    assert low < sample.mean() < high


def test_one_subject_has_no_interval() -> None:
    assert metrics.intervals(lambda rows: {"n": 1.0}, ["a", "a"]) == {"n": None}


def test_a_figure_that_most_resamples_do_not_define_has_no_interval() -> None:
    # All three classes are drawn in 3! of 27 resamples.
    truth, probability = np.arange(3), np.eye(3)

    found = metrics.intervals(lambda rows: metrics.classes(truth[rows], probability[rows]), ["a", "b", "c"])

    assert found["auc"] is None
    assert found["accuracy"] == [1.0, 1.0]
