"""STF-Net and the position codes against closed forms and golden values."""

import pytest
import torch
from torch import Tensor, nn

from model.clip.spec import frame_indices
from model.net.echo_vision import EchoVision, NetConfig
from model.net.stf import GatedAttention, StfNet
from model.net.tubelet import sincos_3d, sincos_table

DIM, GRID = 768, (8, 14, 14)


def parameters(module: nn.Module) -> int:
    """Return how many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def plain(layout: str) -> StfNet:
    """Return an STF-Net whose answer has a closed form: residuals off, attention uniform, the convolution a mean."""
    torch.manual_seed(0)
    net = StfNet(DIM, GRID, layout=layout).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for residual in (net.joint_residual, net.spatial_residual):
            nn.init.zeros_(residual[7].weight)
            nn.init.zeros_(residual[7].bias)
        for attention in (net.joint_attention, net.temporal_attention):
            nn.init.zeros_(attention.W)
        nn.init.zeros_(net.spatial_conv.weight)
        net.spatial_conv.weight[range(DIM), range(DIM)] = 1.0 / 196
        nn.init.zeros_(net.spatial_conv.bias)
        for layer in (net.frame_mlp[0], net.frame_mlp[2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return net


@pytest.fixture
def tokens() -> Tensor:
    """Tokens of one clip."""
    return torch.randn(1, 1568, DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def indices() -> Tensor:
    """The frames of a clip of a loop of 60."""
    return torch.tensor([frame_indices(60, 16)])


def distances(layout: str, tokens: Tensor, indices: Tensor) -> tuple[float, float]:
    """Return how far both roads are from their closed forms."""
    with torch.inference_mode():
        joint, disjoint = plain(layout)(tokens, indices)[0].split(DIM)
    coded = tokens[0] + sincos_3d(GRID, DIM).view(-1, DIM)
    expected_joint, expected_disjoint = torch.relu(coded).mean(0), torch.relu(tokens[0]).mean(0)
    return float((joint - expected_joint).abs().max()), float((disjoint - expected_disjoint).abs().max())


def test_the_papers_layout_has_the_closed_form(tokens: Tensor, indices: Tensor) -> None:
    joint, disjoint = distances("paper", tokens, indices)

    assert joint < 1e-5
    assert disjoint < 1e-5


def test_the_released_layout_scrambles_both_roads(tokens: Tensor, indices: Tensor) -> None:
    joint, disjoint = distances("released", tokens, indices)

    assert joint > 0.1
    assert disjoint > 0.01


@pytest.mark.parametrize("spatial_pool", ["full", "depthwise"])
def test_the_plane_is_pooled_as_by_the_convolution(spatial_pool: str) -> None:
    torch.manual_seed(3)
    net = StfNet(6, (2, 3, 4), spatial_pool=spatial_pool)  # type: ignore[arg-type]
    planes = torch.randn(2, 3, 4, 6).permute(0, 3, 1, 2)

    with torch.inference_mode():
        assert torch.allclose(net._spatial_pool(planes), net.spatial_conv(planes).view(2, 6), atol=1e-6)


def test_gates_of_zero_pool_the_mean(tokens: Tensor) -> None:
    attention = GatedAttention(DIM, 32)
    with torch.no_grad():
        attention.U.zero_()
        attention.V.zero_()

    assert torch.allclose(attention(tokens), tokens.mean(1), atol=1e-6)


def test_the_flat_table_has_the_golden_values() -> None:
    table = sincos_table(1568, DIM)

    golden = torch.tensor([0.841471, 0.540302, 0.608948, 0.093232, 0.987147])
    assert torch.allclose(table[[1, 1, 1567, 1567, 1567], [0, 1, 0, 2, 767]], golden, atol=1e-6)
    assert float(table.double().sum()) == pytest.approx(245744.9896, abs=1e-3)


def test_the_grid_code_has_the_golden_values() -> None:
    code = sincos_3d(GRID, DIM)

    golden = torch.tensor([0.656987, 0.753902, 0.420167, 0.907447, -0.536573, 0.843854, 0.999999])
    assert torch.allclose(code[7, 13, 12, [0, 1, 256, 257, 512, 513, 767]], golden, atol=1e-6)
    assert float(code.double().sum()) == pytest.approx(566974.6304, abs=1e-2)


def test_the_frame_code_has_the_golden_values(indices: Tensor) -> None:
    code = StfNet._frame_code(indices, 8, DIM)[0]

    golden = torch.tensor([0.07056, 0.005004, -0.181509, -0.374477, 0.999983])
    assert torch.allclose(code[[0, 0, 7, 7, 7], [0, 1, 0, 1, 767]], golden, atol=1e-5)


def test_the_base_network_has_the_papers_size() -> None:
    with torch.device("meta"):
        network = EchoVision(NetConfig.base(), {"lvef": 1})

    branch = network.branches["lvef"]
    assert parameters(network.encoder) == 86_225_664
    assert parameters(branch.stf) == 126_429_440
    assert parameters(branch.head) == 328_201
    assert parameters(network) == 212_983_305


@pytest.mark.parametrize("share", ["encoder", "fusion"])
def test_tasks_that_share_an_encoder_answer_as_alone(share: str) -> None:
    config = NetConfig.model_validate(NetConfig.small().model_dump() | {"share": share})
    torch.manual_seed(2)
    shared = EchoVision(config, {"lvef": 1, "view": 5}).eval()
    alone = EchoVision(config, {"view": 5}).eval()
    alone.load_state_dict({key: value for key, value in shared.state_dict().items() if "branches.lvef" not in key})
    clip, indices = torch.rand(1, 3, 16, 112, 112), torch.tensor([frame_indices(60, 16)])

    with torch.inference_mode():
        assert torch.equal(shared(clip, indices)["view"], alone(clip, indices)["view"])


def test_a_clip_that_does_not_divide_into_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="size is no multiple of patch"):
        NetConfig(size=225)
