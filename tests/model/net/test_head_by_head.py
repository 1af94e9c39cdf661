"""Attention head by head is timm's, by another way, and only where it is meant to be."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor

from model.net import head_by_head
from model.net.head_by_head import HeadByHead, attend_head_by_head


@pytest.fixture
def block() -> EvaBlock:
    """A block of which every weight counts."""
    torch.manual_seed(0)
    block = EvaBlock(48, 4, qkv_bias=True, qkv_fused=True).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block


@contextmanager
def bfloat16() -> Iterator[None]:
    """Compute as a worker with `precision = "bf16"` does."""
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def both(block: EvaBlock, tokens_BLD: Tensor) -> tuple[Tensor, Tensor]:
    """Return what timm's block says, and ours with its weights."""
    ours = attend_head_by_head(copy.deepcopy(block))
    return block(tokens_BLD), ours(tokens_BLD)


@pytest.mark.parametrize("num_tokens", [1, 7, 20, 21])
def test_in_bfloat16_it_is_timm_s_within_its_rounding(
    block: EvaBlock, num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_by_head, "_ROWS", 10)
    tokens_BLD = torch.randn(2, num_tokens, 48)
    exact_BLD = block(tokens_BLD)
    with bfloat16():
        timms_BLD, ours_BLD = both(block, tokens_BLD)
    rounding = (timms_BLD.float() - exact_BLD).abs().max()

    assert 0 < rounding < 0.1
    assert (ours_BLD.float() - exact_BLD).abs().max() <= 1.5 * rounding


def test_it_is_taken_there(block: EvaBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Tensor:
        raise AssertionError("timm's attention was asked")

    ours = attend_head_by_head(block)
    monkeypatch.setattr(EvaAttention, "forward", fail)
    with bfloat16():
        ours(torch.randn(1, 5, 48))
    with pytest.raises(AssertionError, match="timm's attention was asked"):
        ours(torch.randn(1, 5, 48))


def test_elsewhere_it_is_timm_s_to_the_last_bit(block: EvaBlock) -> None:
    tokens_BLD = torch.randn(2, 30, 48)

    assert torch.equal(*both(block, tokens_BLD))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(*both(block.train(), tokens_BLD))


def test_the_weights_keep_their_names_and_no_random_number_is_drawn(block: EvaBlock) -> None:
    before = torch.get_rng_state()
    names = set(block.state_dict())
    ours = attend_head_by_head(block)

    assert isinstance(ours.attn, HeadByHead)
    assert set(ours.state_dict()) == names
    assert torch.equal(torch.get_rng_state(), before)
