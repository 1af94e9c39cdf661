"""Configurations, schedules, masks and groups of parameters: the small print of a recipe."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.net.echo_vision import EchoVision, NetConfig
from model.net.mae import DecoderConfig, MaskedAutoencoder
from trainer.config import FinetuneConfig, MaskConfig, OptimiserConfig, PretrainConfig, resolve
from trainer.errors import UsageError
from trainer.masking import draw_masks, num_hidden
from trainer.optim import make_optimiser, set_learning_rate
from trainer.schedule import learning_rate

BASE_GRID = (8, 14, 14)


def test_base_is_the_papers_recipe() -> None:
    pretraining = resolve(PretrainConfig, "base", [], {})
    tuning = resolve(FinetuneConfig, "base", [], {"tasks": ["lvef"]})

    assert (pretraining.epochs, pretraining.batch, pretraining.mask.ratio) == (30, 8, 0.85)
    assert (pretraining.optimiser.betas, pretraining.optimiser.weight_decay) == ((0.9, 0.95), 0.05)
    assert (pretraining.optimiser.peak_lr, pretraining.optimiser.start_lr) == (1e-4, 1e-5)
    assert (tuning.epochs, tuning.batch) == (50, 16)
    assert (tuning.optimiser.betas, tuning.optimiser.weight_decay) == ((0.9, 0.98), 1e-3)
    assert pretraining.net.dim == tuning.net.dim == 768


def test_a_file_lies_over_base_a_setting_over_the_file_and_an_option_over_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("epochs = 3\nbatch = 5\nseed = 7\n[optimiser]\npeak_lr = 0.01\n")

    config = resolve(PretrainConfig, str(file), ["batch=6", "mask.kind=tube", "optimiser.clip_norm=1.0"], {"seed": 9})

    assert (config.epochs, config.batch, config.seed, config.mask.kind) == (3, 6, 9, "tube")
    assert (config.optimiser.peak_lr, config.optimiser.clip_norm, config.optimiser.warmup) == (0.01, 1.0, 0.05)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["epocs=3"], "epocs: Extra inputs"),
        (["optimiser.lr=3"], r"optimiser\.lr: Extra inputs"),
        (["mask.ratio=1.5"], r"mask\.ratio: Input should be less than 1"),
        (["batch"], "--set batch: write key=value"),
        (["clip.size=112"], "net and clip differ"),
        (["net.dim=100"], "net: Value error, dim is no multiple of heads"),
    ],
)
def test_a_wrong_setting_is_named(settings: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve(PretrainConfig, "base", settings, {})


def test_a_configuration_that_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give base, small or a TOML file"):
        resolve(PretrainConfig, str(tmp_path / "huge"), [], {})
    (tmp_path / "bad.toml").write_text("epochs = = 3")
    with pytest.raises(UsageError, match="no TOML"):
        resolve(PretrainConfig, str(tmp_path / "bad.toml"), [], {})


def test_the_learning_rate_is_that_of_the_papers_code() -> None:
    config = OptimiserConfig(peak_lr=1e-4, start_lr=1e-5, min_lr=1e-8, warmup=0.2)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1e-4)
    # torch's own schedulers as the oracle: a line, then a cosine.
    line = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=0.1, total_iters=19)
    oracle = []
    for _ in range(20):
        oracle.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        line.step()
    optimiser = torch.optim.SGD([parameter], lr=1e-4)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=80, eta_min=1e-8)
    for _ in range(80):
        oracle.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        cosine.step()

    assert [learning_rate(step, 100, config) for step in range(100)] == pytest.approx(oracle, rel=1e-9)


@pytest.mark.parametrize(
    ("ratio", "kind", "hidden"),
    [(0.5, "random", 784), (0.75, "random", 1176), (0.85, "random", 1332), (0.9, "random", 1411), (0.85, "tube", 1328),
     (0.9, "tube", 1408)],
)  # fmt: skip
def test_the_number_of_hidden_tokens_is_exact(ratio: float, kind: str, hidden: int) -> None:
    config = MaskConfig.model_validate({"ratio": ratio, "kind": kind})

    masks = draw_masks([(1, number) for number in range(3)], config, BASE_GRID)

    assert num_hidden(config, BASE_GRID) == hidden
    assert masks.sum(dim=1).tolist() == [hidden] * 3


@given(ratio=st.floats(0.1, 0.95), seed=st.integers(0, 99), kind=st.sampled_from(["random", "tube"]))
def test_a_mask_is_its_seeds_alone(ratio: float, seed: int, kind: str) -> None:
    config = MaskConfig.model_validate({"ratio": ratio, "kind": kind})

    one, two, other = draw_masks([(seed, 1), (seed, 2), (seed, 1)], config, (4, 6, 6))

    assert torch.equal(one, other)
    assert one.sum() == two.sum()
    assert torch.equal(one, draw_masks([(seed, 1)], config, (4, 6, 6))[0])


def test_masks_hide_every_place_about_equally_often() -> None:
    masks = draw_masks([(0, number) for number in range(2000)], MaskConfig(), (4, 6, 6))

    assert (masks.float().mean(dim=0) - 122 / 144).abs().max() < 0.04


def test_a_tube_hides_the_same_places_at_all_times() -> None:
    mask = draw_masks([(3,)], MaskConfig(kind="tube"), BASE_GRID)[0].view(8, -1)

    assert all(torch.equal(mask[0], slice_) for slice_ in mask)


def test_biases_norms_and_the_mask_token_do_not_decay() -> None:
    with torch.device("meta"):
        network = MaskedAutoencoder(NetConfig.small(), DecoderConfig())
    optimiser = make_optimiser(network, 4, OptimiserConfig())

    decays = {id(one): group["weight_decay"] for group in optimiser.param_groups for one in group["params"]}

    for name, parameter in network.named_parameters():
        is_free = name.endswith("bias") or "norm" in name or name == "mask_token"
        assert decays[id(parameter)] == (0.0 if is_free else 0.05), name


def test_deeper_blocks_learn_slower_by_the_layer_decay() -> None:
    with torch.device("meta"):
        network = EchoVision(NetConfig.small(), {"lvef": 1})
    optimiser = make_optimiser(network, 4, OptimiserConfig(layer_decay=0.5, encoder_lr_factor=0.1))
    set_learning_rate(optimiser, 1.0)

    rates = {id(one): group["lr"] for group in optimiser.param_groups for one in group["params"]}

    parameters = dict(network.named_parameters())
    assert rates[id(parameters["branches.lvef.head.0.weight"])] == 1.0
    assert rates[id(parameters["encoder.norm.weight"])] == pytest.approx(0.1)
    assert rates[id(parameters["encoder.blocks.3.attn.proj.weight"])] == pytest.approx(0.05)
    assert rates[id(parameters["encoder.blocks.0.attn.proj.weight"])] == pytest.approx(0.1 * 0.5**4)
    assert rates[id(parameters["encoder.patch_embed.weight"])] == pytest.approx(0.1 * 0.5**5)
    assert len(rates) == len(parameters)
