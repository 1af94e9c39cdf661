"""The closed forms behind the shipped ensemble."""

import numpy as np
import pytest
import torch
from torch import nn

from model.clip.spec import ClipSpec
from model.net.echo_vision import EchoVision, NetConfig
from model.tasks import Task
from trainer.readout import Sample, calibrate, fit, readout, ridge

RNG = np.random.Generator(np.random.PCG64(0))


def test_ridge_finds_a_linear_law() -> None:
    features = RNG.normal(size=(50, 3))
    weights, biases = np.array([[1.0, -2.0, 0.5]]), np.array([4.0])

    found_weights, found_biases, _unseen = ridge(features, features @ weights.T + biases)

    assert found_weights == pytest.approx(weights, abs=1e-3)
    assert found_biases == pytest.approx(biases, abs=1e-3)


def test_ridge_predicts_each_sample_as_if_it_had_not_seen_it() -> None:
    features = RNG.normal(size=(20, 30))
    targets = RNG.normal(size=(20, 1))

    _weights, _biases, unseen = ridge(features, targets)

    assert float(np.mean((unseen - targets) ** 2)) > 0.5 * float(np.var(targets))


def test_a_binary_readout_is_the_logit_of_the_positive_class() -> None:
    features = np.concatenate([RNG.normal(-2.0, 1.0, (30, 1)), RNG.normal(2.0, 1.0, (30, 1))])

    weights, biases = readout(Task.LVEF_REDUCED, features, np.repeat([0.0, 1.0], 30))

    assert weights.shape == (1, 1)
    assert (weights[0, 0] * 3.0 + biases[0]) > 1.0
    assert (weights[0, 0] * -3.0 + biases[0]) < -1.0


def test_calibration_takes_the_statistics_of_the_data() -> None:
    norm = nn.BatchNorm1d(1)

    calibrate(norm, [lambda: norm(torch.tensor([[1.0], [3.0]])), lambda: norm(torch.tensor([[5.0], [7.0]]))])

    assert norm.running_mean is not None
    assert norm.running_mean.item() == 4.0
    assert not norm.training


def test_a_fitted_view_head_tells_what_can_be_told() -> None:
    spec = ClipSpec(num_frames=4, size=32)
    tiny = {
        "frames": 4,
        "size": 32,
        "dim": 24,
        "depth": 1,
        "heads": 2,
        "mlp_dim": 48,
        "head_hidden": (16, 8),
        "share": "encoder",
    }
    network = EchoVision(NetConfig.model_validate(NetConfig.small().model_dump() | tiny), {"view": 5}).eval()
    samples = []
    for number in range(40):
        clip = torch.from_numpy(RNG.random((3, 4, 32, 32), dtype=np.float32)) * 0.2
        clip[:, :, 16 * (number % 2) :][:, :, :16] += 0.8
        truth = {Task.VIEW: float(number % 2)}
        samples.append(Sample(clip_CTHW=clip, indices_T=torch.arange(spec.num_frames), targets=truth))
    with torch.no_grad():
        tokens = [network.encode(sample.clip_CTHW[None])[0] for sample in samples]

    fit(network, tokens, samples)

    with torch.no_grad():
        answers = [
            network(sample.clip_CTHW[None], sample.indices_T[None])["view"].argmax().item() for sample in samples
        ]
    assert answers == [number % 2 for number in range(40)]
