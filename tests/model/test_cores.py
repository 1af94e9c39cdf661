"""A small network keeps to one core, whoever asks; what the caller had chosen stands again afterwards."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.cores import cores_for
from model.ensemble import Ensemble
from model.net.echo_vision import NetConfig

CHOSEN = 3


@pytest.fixture(autouse=True)
def chosen() -> Iterator[None]:
    """The caller computes on three cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(CHOSEN)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("net", "expected"), [(NetConfig.small(), 1), (NetConfig.base(), CHOSEN)])
def test_a_small_network_has_one_core_and_a_large_one_all(net: NetConfig, expected: int) -> None:
    with cores_for(net):
        during = torch.get_num_threads()

    assert (during, torch.get_num_threads()) == (expected, CHOSEN)


def test_the_operations_are_those_that_torch_counts() -> None:
    net = NetConfig(frames=4, size=32, tubelet=2, patch=8, dim=48, depth=3, heads=4, mlp_dim=96)
    length, dim = 32, 48
    products = [
        (length, 3 * 2 * 8 * 8, dim),
        *3 * [(length, dim, 3 * dim), (length, dim, length), (length, length, dim), (length, dim, dim)],
        *3 * [(length, dim, 96), (length, 96, dim)],
    ]

    assert net.operations == sum(2 * rows * inner * columns for rows, inner, columns in products)


def test_an_ensemble_asks_a_small_network_on_one_core(make_ensemble: Callable[..., Path], tmp_path: Path) -> None:
    ensemble = Ensemble.load(make_ensemble(tmp_path / "tiny"))
    seen: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(torch.get_num_threads())

    for one in ensemble._bundles:
        one.network.encoder.register_forward_pre_hook(note)
    ensemble.predict_loops(torch.rand(1, 3, 4, 32, 32), torch.arange(4)[None])
    ensemble.attention(torch.rand(1, 3, 4, 32, 32), ensemble.tasks)

    assert set(seen) == {1}
