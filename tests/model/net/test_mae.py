"""The masked auto-encoder against Hugging Face's VideoMAE with the same weights, and its own properties."""

import pytest
import torch
from torch import Tensor

from model.net.echo_vision import EchoVision, NetConfig
from model.net.mae import DecoderConfig, MaskedAutoencoder, cubes, reconstruction_loss, standardise, uncut
from model.weights import import_state, load_strictly
from tests.doubles.checkpoints import disturbed, video_mae

TOKENS, HIDDEN = 64, 54
DECODER = DecoderConfig(dim=24, depth=2, heads=3, mlp_dim=64)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def net(*, final_norm: bool = False) -> NetConfig:
    """Return the oracle's architecture."""
    return NetConfig(frames=8, size=32, patch=8, dim=48, depth=3, heads=4, mlp_dim=96, final_norm=final_norm)


@pytest.fixture
def clip() -> Tensor:
    """Two clips with values in 0..1, (B, C, T, H, W)."""
    return torch.rand(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(3)).transpose(1, 2)


@pytest.fixture
def mask() -> Tensor:
    """A mask of its own for each clip, with the same number hidden."""
    generator = torch.Generator().manual_seed(4)
    return torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(2)]) < HIDDEN


@pytest.mark.parametrize("use_mean_pooling", [True, False])
@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_logits_and_loss_are_hugging_faces(
    clip: Tensor, mask: Tensor, use_mean_pooling: bool, norm_pix_loss: bool
) -> None:
    theirs = disturbed(video_mae(use_mean_pooling=use_mean_pooling, norm_pix_loss=norm_pix_loss))
    ours = MaskedAutoencoder(net(final_norm=not use_mean_pooling), DECODER).eval()
    load_strictly(ours, import_state(theirs.state_dict()).state)
    # Theirs takes what it is given for ImageNet-normalised and undoes that before it builds the targets.
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    with torch.inference_mode():
        expected = theirs(clip.transpose(1, 2), bool_masked_pos=mask)
        pixels = ours(clip, mask)
        loss = reconstruction_loss(pixels, clip * std + mean, mask, ours.net, is_standardised=norm_pix_loss)

    assert (pixels - expected.logits).abs().max() <= 1e-5
    assert abs(float(loss) - float(expected.loss)) <= 1e-5


def test_pre_training_has_the_papers_number_of_parameters() -> None:
    with torch.device("meta"):
        network = MaskedAutoencoder(NetConfig.base(), DecoderConfig())

    assert sum(parameter.numel() for parameter in network.parameters()) == 94_209_408


def test_cutting_into_cubes_is_undone_exactly(clip: Tensor) -> None:
    assert torch.equal(uncut(cubes(clip, net()), net()), clip)


def test_a_cube_holds_its_pixels_by_frame_row_column_and_channel(clip: Tensor) -> None:
    cube = cubes(clip, net())[1, 17].view(2, 8, 8, 3)  # token (1, 0, 1) of the grid 4 x 4 x 4

    assert torch.equal(cube, clip[1, :, 2:4, 0:8, 8:16].permute(1, 2, 3, 0))


def test_a_constant_cube_has_the_target_zero() -> None:
    target, mean, std = standardise(torch.full((1, 1, 2 * 8 * 8 * 3), 0.25))

    assert not target.any()
    assert mean.unique().tolist() == [0.25]
    assert not std.any()


def test_a_flat_cube_does_not_count_where_the_smallest_deviation_says_so(clip: Tensor, mask: Tensor) -> None:
    flat = clip.clone()
    flat[:, :, :, :, :16] = 0.5 + clip[:, :, :, :, :16] * 1e-3
    pixels = torch.zeros(2, HIDDEN, 2 * 8 * 8 * 3)

    counted = reconstruction_loss(pixels, flat, mask, net(), is_standardised=False, min_cube_std=0.01)

    lively = [part for part in cubes(flat, net())[mask] if part.std() > 0.01]
    assert float(counted) == pytest.approx(float(torch.stack(lively).square().mean()), rel=1e-5)


def test_visible_pixels_beyond_the_mask_do_not_enter_the_loss(clip: Tensor, mask: Tensor) -> None:
    shown = ~mask.view(2, 1, 4, 4, 4).repeat_interleave(2, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    pixels = torch.zeros(2, HIDDEN, 2 * 8 * 8 * 3)

    losses = [reconstruction_loss(pixels, one, mask, net()) for one in (clip, torch.where(shown, 1 - clip, clip))]

    assert losses[0] == losses[1]


def test_checkpointed_blocks_give_the_same_gradient(clip: Tensor, mask: Tensor) -> None:
    gradients = []
    for is_checkpointed in (False, True):
        torch.manual_seed(0)
        network = MaskedAutoencoder(net(), DECODER).train()
        network.encoder.is_checkpointed = is_checkpointed
        reconstruction_loss(network(clip, mask), clip, mask, net()).backward()
        gradients.append(network.encoder.patch_embed.weight.grad)

    assert gradients[0] is not None
    assert torch.equal(gradients[0], gradients[1])


def test_dropped_paths_matter_in_training_only(clip: Tensor) -> None:
    torch.manual_seed(0)
    network = EchoVision(net().model_copy(update={"pool": "max"}), {"lvef": 1}, drop_path=0.9)
    indices = torch.arange(8).expand(2, 8)

    with torch.no_grad():
        trained = [network.train().encode(clip) for _ in range(4)]
        tested = [network.eval()(clip, indices)["lvef"] for _ in range(2)]

    assert any(not torch.equal(trained[0], other) for other in trained[1:])
    assert torch.equal(tested[0], tested[1])


def test_a_shared_fusion_runs_once_for_all_tasks(clip: Tensor) -> None:
    shared = net().model_copy(update={"share": "fusion", "stf_attention_dim": 16})
    network = EchoVision(shared, {"lvef": 1, "view": 5}).eval()
    calls = []
    network.fusion.register_forward_hook(lambda *_: calls.append(1))

    with torch.inference_mode():
        answers = network(clip, torch.arange(8).expand(2, 8))

    assert {name: tuple(answer.shape) for name, answer in answers.items()} == {"lvef": (2, 1), "view": (2, 5)}
    assert len(calls) == 1
    assert not [key for key in network.state_dict() if key.startswith("branches.lvef.stf")]
