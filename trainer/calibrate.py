"""The temperature of the view head: its probabilities are to come true as often as they say (Guo et al., ICML 2017).

It is fitted on the validation side to the weights that were kept. It never makes the head surer than it is by itself,
which a few hundred loops without a mistake would suggest: what the gate lets pass is patients' safety.

Legend: N loops, K views.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from model.net.echo_vision import EchoVision
from model.tasks import Task
from trainer import metrics
from trainer.config import FinetuneConfig
from trainer.data.cohort import Cohort
from trainer.predict import answer
from trainer.run import Calibration
from trainer.scores import came_true, collect

HIGHEST = 10.0
"""Largest temperature: beyond it a head knows nothing."""

_LEAST_PROBABILITY = 1e-12
_UNSURE = 1e-6  # a gain in nats below this is none


def calibrate(network: EchoVision, val: Cohort, config: FinetuneConfig, *, device: str) -> Calibration | None:
    """Return the calibration of a network's view head on validation samples; None: it has none, or no view is known.

    Raises:
        RunError: a number is not finite.
    """
    if Task.VIEW not in config.tasks:
        return None
    answers = answer(network, val, config.clip, batch=config.batch, device=device, progress=lambda done, total: None)
    names = [store.info.dataset for store in val.stores]
    said = collect(answers, names, Task.VIEW)
    if said is None:
        return None
    temperature = fit_temperature(said.said_NK, said.labels_N)

    def ece(probabilities_NK: NDArray[np.float64]) -> float:
        own = came_true(replace(said, said_NK=probabilities_NK))
        return metrics.expected_calibration_error(metrics.calibration(*own))

    return Calibration(
        view_temperature=temperature,
        n=len(said.rows),
        ece_before=ece(said.said_NK),
        ece=ece(tempered(said.said_NK, temperature)),
    )


def fit_temperature(probabilities_NK: NDArray[np.float64], labels_N: NDArray[np.int64]) -> float:
    """Return the temperature from 1 to `HIGHEST` at which the truth is least surprising."""

    def surprise(log_temperature: float) -> float:
        own_N = tempered(probabilities_NK, float(np.exp(log_temperature)))[np.arange(len(labels_N)), labels_N]
        return float(-np.log(np.maximum(own_N, _LEAST_PROBABILITY)).mean())

    found = optimize.minimize_scalar(surprise, bounds=(0.0, np.log(HIGHEST)), method="bounded")
    return float(np.exp(found.x)) if surprise(0.0) - found.fun > _UNSURE else 1.0


def tempered(probabilities_NK: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return what softmax would have made of the logits divided by the temperature."""
    logits_NK = np.log(np.maximum(probabilities_NK, _LEAST_PROBABILITY)) / temperature
    weights_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return np.asarray(weights_NK / weights_NK.sum(axis=1, keepdims=True))
