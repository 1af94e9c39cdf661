"""Attention head by head is timm's, by another way, and only where it is meant to be."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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


@pytest.fixture(autouse=True)
def few_tokens_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small blocks of these tests go head by head."""
    monkeypatch.setattr(head_by_head, "_ENOUGH", 1)
    monkeypatch.setattr(head_by_head, "_THREADS", torch.get_num_threads())


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


def test_elsewhere_it_is_timm_s_to_the_last_bit(block: EvaBlock, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens_BLD = torch.randn(2, 30, 48)

    assert torch.equal(*both(block, tokens_BLD))
    assert torch.equal(*both(block.train(), tokens_BLD))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(*both(block, tokens_BLD))
        for limit, value in (("_ENOUGH", 31), ("_THREADS", torch.get_num_threads() - 1)):
            with monkeypatch.context() as changed:
                changed.setattr(head_by_head, limit, value)
                assert torch.equal(*both(block, tokens_BLD))
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # it would unroll every tile
        assert torch.equal(*both(block, tokens_BLD))


def test_weights_that_are_dropped_are_timm_s(block: EvaBlock) -> None:
    block.train().attn.attn_drop.p = 0.5  # type: ignore[assignment]
    tokens_BLD = torch.randn(2, 30, 48)
    said = []
    for one in (block, attend_head_by_head(copy.deepcopy(block))):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            said.append(one(tokens_BLD))

    assert torch.equal(*said)


@pytest.mark.parametrize("num_tokens", [1, 7, 20, 21])
def test_its_gradients_are_timm_s_within_their_rounding(
    block: EvaBlock, num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_by_head, "_ROWS", 10)
    tokens_BLD, wanted_BLD = torch.randn(2, num_tokens, 48), torch.randn(2, num_tokens, 48)
    ours = attend_head_by_head(copy.deepcopy(block))

    def gradients(one: EvaBlock, *, half: bool) -> Tensor:
        given_BLD = tokens_BLD.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = (one.train()(given_BLD).float() * wanted_BLD).sum()
        found = torch.autograd.grad(loss, [given_BLD, *one.parameters()])
        return torch.cat([part.flatten() / part.norm().clamp(min=1e-3) for part in found])

    exact = gradients(block, half=False)
    rounding = (gradients(block, half=True) - exact).norm()

    assert 0 < rounding < 0.1 * exact.norm()
    assert (gradients(ours, half=True) - exact).norm() <= 1.5 * rounding


def test_a_block_that_is_computed_again_for_its_gradients_has_the_same(block: EvaBlock) -> None:
    tokens_BLD, ours = torch.randn(2, 30, 48), attend_head_by_head(block).train()

    def gradients(*, again: bool) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found_BLD = checkpoint(ours, tokens_BLD, use_reentrant=False) if again else ours(tokens_BLD)
        return torch.autograd.grad(found_BLD.float().square().sum(), [*ours.parameters()])

    assert all(map(torch.equal, gradients(again=True), gradients(again=False)))


def test_its_gradients_are_those_of_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By finite differences, in float64, where no rounding hides a mistake."""
    monkeypatch.setattr(head_by_head, "_ROWS", 2)
    parts = [torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    assert torch.autograd.gradcheck(head_by_head._Attention.apply, parts)


def test_the_weights_keep_their_names_and_no_random_number_is_drawn(block: EvaBlock) -> None:
    before = torch.get_rng_state()
    names = set(block.state_dict())
    ours = attend_head_by_head(block)

    assert isinstance(ours.attn, HeadByHead)
    assert set(ours.state_dict()) == names
    assert torch.equal(torch.get_rng_state(), before)
