"""The rollout is that of the paper, and looking does not change the network."""

import pytest
import torch

from model import rollout
from model.net.encoder import Encoder

LENGTH = 64
EVERY = torch.eye(LENGTH)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(3)
    made = Encoder(
        frames=8, size=32, tubelet=2, patch=8, dim=48, depth=3, heads=4, mlp_dim=96, eps=1e-6, final_norm=True
    )
    with torch.no_grad():  # sharper than at the start, so that the rows differ
        for block in made.blocks:
            block.attn.qkv.weight.mul_(3.0)
    return made.eval()


@pytest.fixture
def clip() -> torch.Tensor:
    return torch.rand(3, 8, 32, 32, generator=torch.Generator().manual_seed(5))


def rolled_by_hand(attentions: list[torch.Tensor]) -> torch.Tensor:
    """Return the rollout entry by entry, as the paper's text and code say it."""
    rolled = torch.eye(LENGTH, dtype=torch.float64)
    for attention in attentions:
        flat = attention[0].amin(dim=0).double().flatten().tolist()
        order = sorted(range(len(flat)), key=lambda place: flat[place])
        for place in order[: int(len(flat) * 0.9)]:
            if place != 0:
                flat[place] = 0.0
        mixed = (torch.tensor(flat, dtype=torch.float64).view(LENGTH, LENGTH) + torch.eye(LENGTH)) / 2
        rolled = (mixed / mixed.sum(dim=1, keepdim=True)) @ rolled
    return rolled


def all_heads(encoder: Encoder, clip: torch.Tensor) -> list[torch.Tensor]:
    """Return each layer's attention, (1, N, L, L)."""
    seen: list[torch.Tensor] = []
    with torch.inference_mode(), rollout._plain_attention(encoder, seen.append):
        encoder(clip[None])
    return seen


def test_the_rollout_is_that_of_the_paper(encoder: Encoder, clip: torch.Tensor) -> None:
    rolled = rollout.roll(rollout.attentions(encoder, clip), EVERY)

    torch.testing.assert_close(rolled.double(), rolled_by_hand(all_heads(encoder, clip)), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(rolled.sum(dim=1), torch.ones(LENGTH))


def test_the_first_entry_is_never_discarded() -> None:
    attention = torch.full((10, 10), 0.5)
    attention[0, 0] = 0.1

    rolled = rollout.roll([attention], torch.eye(10))

    # (0.1 + 1) / 2 of the diagonal against what else of the first row is left
    assert rolled[0, 0] > 0.5
    assert rollout._strongest(attention)[0, 0] == pytest.approx(0.1)
    assert int((rollout._strongest(attention) == 0.0).sum()) == 89


def test_the_kept_matrices_are_attention_and_the_network_stays_as_it_was(encoder: Encoder, clip: torch.Tensor) -> None:
    fused_before = [block.attn.fused_attn for block in encoder.blocks]
    with torch.inference_mode():
        before = encoder(clip[None])

    attentions = all_heads(encoder, clip)

    with torch.inference_mode():
        after = encoder(clip[None])
    assert [attention.shape for attention in attentions] == [(1, 4, LENGTH, LENGTH)] * 3
    torch.testing.assert_close(attentions[0].sum(dim=-1), torch.ones(1, 4, LENGTH))
    assert [block.attn.fused_attn for block in encoder.blocks] == fused_before
    assert all(not block.attn.attn_drop._forward_pre_hooks for block in encoder.blocks)
    assert torch.equal(before, after)


def test_plain_attention_answers_as_the_fused_kernel_does(encoder: Encoder, clip: torch.Tensor) -> None:
    with torch.inference_mode():
        fused = encoder(clip[None])
        with rollout._plain_attention(encoder, lambda attention: None):
            plain = encoder(clip[None])

    torch.testing.assert_close(plain, fused, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("head_fusion", ["min", "mean", "max"])
def test_saliency_has_the_shape_of_the_clip_and_lies_between_0_and_1(
    encoder: Encoder, clip: torch.Tensor, head_fusion: rollout.HeadFusion
) -> None:
    found = rollout.saliency(encoder, clip, row=17, head_fusion=head_fusion)

    assert found.cells_thw.shape == (4, 4, 4)
    assert found.pixels_THW.shape == (8, 32, 32)
    assert (float(found.cells_thw.min()), float(found.cells_thw.max())) == (0.0, 1.0)
    assert 0.0 <= float(found.pixels_THW.min()) <= float(found.pixels_THW.max()) <= 1.0
    # a tubelet's two frames share a slice
    assert torch.equal(found.pixels_THW[0::2], found.pixels_THW[1::2])


def test_layers_may_be_chosen(encoder: Encoder, clip: torch.Tensor) -> None:
    attentions = rollout.attentions(encoder, clip)

    torch.testing.assert_close(
        rollout.roll(attentions, EVERY, [0, 2]), rollout.roll([attentions[0], attentions[2]], EVERY)
    )


def test_a_pixel_lies_under_its_own_cell(encoder: Encoder, clip: torch.Tensor) -> None:
    found = rollout.saliency(encoder, clip, row=17)

    t, h, w = (int(place) for place in torch.nonzero(found.cells_thw == 1.0)[0])
    brightest = int(found.pixels_THW[2 * t].argmax())
    assert (brightest // 32 // 8, brightest % 32 // 8) == (h, w)


def test_all_rows_together_are_their_mean(encoder: Encoder, clip: torch.Tensor) -> None:
    rolled = rollout.roll(rollout.attentions(encoder, clip), EVERY)

    found = rollout.saliency(encoder, clip, row=None)

    mean = rolled.mean(dim=0).view(4, 4, 4)
    torch.testing.assert_close(found.cells_thw, (mean - mean.min()) / (mean.max() - mean.min()))
