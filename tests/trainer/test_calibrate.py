"""The temperature of the view head: right where it can be computed, never below one, and kept from run to bundle."""

import json
from pathlib import Path

import numpy as np
import pytest

from model.bundle import MANIFEST, Manifest, read_closed
from model.tasks import Task
from tests.trainer.runs import make_run, make_tested_store
from trainer import metrics
from trainer.calibrate import HIGHEST, fit_temperature, tempered
from trainer.errors import PublishError, RunError
from trainer.evaluate import evaluate
from trainer.publish import publish
from trainer.run import CALIBRATION, open_finished


def softmax(logits_NK):  # type: ignore[no-untyped-def]
    weights_NK = np.exp(logits_NK)
    return weights_NK / weights_NK.sum(axis=1, keepdims=True)


def drawn(temperature: float, number: int = 4000):  # type: ignore[no-untyped-def]
    """Return probabilities of a head that is surer by the temperature than it is right, and the truth."""
    rng = np.random.default_rng(5)
    logits_NK = 2.0 * rng.normal(size=(number, 5))
    labels_N = np.array([rng.choice(5, p=row) for row in softmax(logits_NK)])
    return softmax(logits_NK * temperature), labels_N


@pytest.mark.parametrize("temperature", [1.5, 2.5, 4.0])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.06)


def test_what_was_put_in_is_calibrated_afterwards() -> None:
    sure_NK, labels_N = drawn(2.5)

    def ece(said_NK) -> float:  # type: ignore[no-untyped-def]
        hits_N = said_NK.argmax(axis=1) == labels_N
        return metrics.expected_calibration_error(metrics.calibration(hits_N, said_NK.max(axis=1)))

    assert ece(sure_NK) > 0.15
    assert ece(tempered(sure_NK, fit_temperature(sure_NK, labels_N))) < 0.03


def test_a_head_that_is_always_right_is_made_no_surer() -> None:
    labels_N = np.arange(50) % 5
    right_NK = tempered(np.eye(5)[labels_N] * 0.5 + 0.1, 1.0)

    assert fit_temperature(right_NK, labels_N) == 1.0


def test_a_head_that_is_sure_and_wrong_is_cooled_to_the_highest() -> None:
    labels_N = np.arange(50) % 5
    wrong_NK = tempered(np.eye(5)[(labels_N + 1) % 5] * 0.99 + 0.002, 1.0)

    assert fit_temperature(wrong_NK, labels_N) == pytest.approx(HIGHEST, rel=0.01)


def test_the_order_of_the_views_stays() -> None:
    sure_NK, _ = drawn(2.0, 100)

    assert (tempered(sure_NK, 5.0).argsort(axis=1) == sure_NK.argsort(axis=1)).all()
    assert tempered(sure_NK, 1.0) == pytest.approx(sure_NK)


def test_a_run_s_temperature_goes_into_its_bundle_and_its_evaluation(tmp_path: Path) -> None:
    store = make_tested_store(tmp_path / "store")
    run = make_run(tmp_path / "run", [store], ["lvef", "view"])
    found = json.loads((run / CALIBRATION).read_text())
    assert found["view_temperature"] >= 1.0
    assert found["n"] > 0
    said = {}
    for temperature in (1.0, 4.0):
        (run / CALIBRATION).write_text(json.dumps(found | {"view_temperature": temperature}))
        figures = evaluate(run, [store], "test", tmp_path / f"figures-{temperature}")
        said[temperature] = figures["tasks"]["view"]
    added = publish([run], tmp_path / "shelf", "1.0")

    assert open_finished(run).view_temperature == 4.0
    assert said[1.0]["accuracy"] == said[4.0]["accuracy"]
    assert said[1.0]["ece"] != said[4.0]["ece"]
    assert read_closed(added / "member-0" / MANIFEST, Manifest).view_temperature == 4.0


def test_a_run_without_the_view_has_no_temperature(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tested_store(tmp_path / "store")], ["lvef"])

    assert not (run / CALIBRATION).exists()
    assert open_finished(run).view_temperature == 1.0
    assert Task.VIEW not in open_finished(run).config.tasks


def test_a_calibration_that_would_make_the_views_surer_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_tested_store(tmp_path / "store")], ["view"])
    content = json.loads((run / CALIBRATION).read_text())
    (run / CALIBRATION).write_text(json.dumps(content | {"view_temperature": 0.2}))

    with pytest.raises((RunError, PublishError), match=r"calibration\.json: view_temperature"):
        open_finished(run)
