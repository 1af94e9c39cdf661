"""The encoder against an oracle that shares no code with it: Hugging Face's VideoMAE with the same weights."""

import pytest
import torch
from torch import Tensor
from transformers import VideoMAEForPreTraining

from model.errors import WeightsError
from model.net.encoder import Encoder
from model.weights import Family, import_state, load_strictly
from tests.doubles.checkpoints import disturbed, video_mae, with_old_names

TOKENS, HIDDEN = 64, 54


def oracle(*, use_mean_pooling: bool) -> VideoMAEForPreTraining:
    """Return a tiny random VideoMAE in which no parameter is at its start value of 0 or 1."""
    return disturbed(video_mae(use_mean_pooling=use_mean_pooling))


def ours(state: dict[str, Tensor], *, final_norm: bool) -> Encoder:
    """Return our encoder with the oracle's weights."""
    encoder = Encoder(
        frames=8, size=32, tubelet=2, patch=8, dim=48, depth=3, heads=4, mlp_dim=96, eps=1e-12, final_norm=final_norm
    )
    load_strictly(encoder, import_state(state).part("encoder."))
    return encoder.eval()


@pytest.fixture
def clip() -> Tensor:
    """Two clips with values in 0..1."""
    return torch.rand(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def mask() -> Tensor:
    """A mask of its own for each clip, with the same number hidden."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.stack([torch.randperm(TOKENS, generator=generator) for _ in range(2)]) < HIDDEN
    return hidden


@pytest.mark.parametrize("use_mean_pooling", [True, False])
@pytest.mark.parametrize("names", ["new", "old"])
def test_the_encoder_gives_what_hugging_face_gives(clip: Tensor, use_mean_pooling: bool, names: str) -> None:
    theirs = oracle(use_mean_pooling=use_mean_pooling)
    state = theirs.state_dict() if names == "new" else with_old_names(theirs.state_dict())
    encoder = ours(state, final_norm=not use_mean_pooling)

    with torch.inference_mode():
        expected = theirs.videomae(clip.transpose(1, 2)).last_hidden_state
        difference = (encoder(clip) - expected).abs().max()

    assert difference <= 1e-5


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_the_masked_encoder_gives_what_hugging_face_gives(clip: Tensor, mask: Tensor, use_mean_pooling: bool) -> None:
    theirs = oracle(use_mean_pooling=use_mean_pooling)
    encoder = ours(theirs.state_dict(), final_norm=not use_mean_pooling)

    with torch.inference_mode():
        expected = theirs.videomae(clip.transpose(1, 2), bool_masked_pos=mask).last_hidden_state
        difference = (encoder(clip, mask) - expected).abs().max()

    assert difference <= 1e-5


def test_masked_pixels_do_not_reach_the_encoder(clip: Tensor, mask: Tensor) -> None:
    encoder = ours(oracle(use_mean_pooling=True).state_dict(), final_norm=False)
    hidden = mask.view(2, 1, 4, 4, 4).repeat_interleave(2, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    disturbed = torch.where(hidden, 1.0 - clip, clip)

    with torch.inference_mode():
        assert torch.equal(encoder(clip, mask), encoder(disturbed, mask))


def test_a_mask_that_hides_more_in_one_clip_than_in_another_is_our_mistake(clip: Tensor) -> None:
    encoder = ours(oracle(use_mean_pooling=True).state_dict(), final_norm=False)
    mask = torch.arange(TOKENS) < torch.tensor([[20], [12]])

    with pytest.raises(AssertionError, match="same count"):
        encoder(clip, mask)


def test_a_state_behind_module_is_read(clip: Tensor) -> None:
    state = oracle(use_mean_pooling=True).state_dict()

    imported = import_state({f"module.{key}": value for key, value in state.items()})

    assert imported.family is Family.HUGGING_FACE
    assert imported.state.keys() == import_state(state).state.keys()


def test_official_names_differ_by_the_patch_embedding_alone() -> None:
    ours_named = import_state(oracle(use_mean_pooling=False).state_dict()).state
    official = {key.replace("patch_embed.", "patch_embed.proj."): value for key, value in ours_named.items()}

    imported = import_state(official)

    assert imported.family is Family.OFFICIAL
    assert imported.state.keys() == ours_named.keys()


def test_a_missing_key_is_named() -> None:
    state = import_state(oracle(use_mean_pooling=True).state_dict()).part("encoder.")
    del state["blocks.1.norm1.weight"]
    encoder = Encoder(
        frames=8, size=32, tubelet=2, patch=8, dim=48, depth=3, heads=4, mlp_dim=96, eps=1e-12, final_norm=False
    )

    with pytest.raises(WeightsError, match=r"missing: \['blocks.1.norm1.weight'\]"):
        load_strictly(encoder, state)


def test_an_unknown_key_is_named() -> None:
    state = {**oracle(use_mean_pooling=True).state_dict(), "videomae.encoder.layer.0.gamma": torch.zeros(1)}

    with pytest.raises(WeightsError, match="gamma"):
        import_state(state)
