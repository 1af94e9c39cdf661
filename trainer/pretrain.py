"""Masked auto-encoding of cine loops (paper 3.1): the encoder learns what an echocardiogram looks like.

Legend: B clips, T frames, C = 3 RGB, S side of a clip, L tokens, M masked tokens, P pixels of a cube.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from model.clip.transform import normalise
from model.net.mae import MaskedAutoencoder, cubes, reconstruction_loss, standardise, uncut
from trainer import plots
from trainer.config import PretrainConfig
from trainer.data.cohort import Entry, fraction, loops
from trainer.data.loader import Batch, Clips, all_batches
from trainer.data.store import open_stores
from trainer.encoder_weights import load_whole
from trainer.errors import DataError, UsageError
from trainer.fit import Lesson, Parts, begin, fit, make_accelerator
from trainer.masking import draw_masks, num_hidden
from trainer.run import PLOTS

_MASKS = 2  # salt of the masks' random numbers; the flips have another
_SHOWN = 4  # clips in the picture of reconstructions


def pretrain(
    data: Sequence[Path], out: Path, config: PretrainConfig, *, resume: bool = False, command: tuple[str, ...] = ()
) -> None:
    """Train an encoder; `out` is then a finished run.

    Raises:
        UsageError: the call or the configuration is wrong.
        DataError: a store does not fit.
        RunError: the loss is not finite, or the disk is full.
    """
    hidden, length = num_hidden(config.mask, config.net.grid), torch.Size(config.net.grid).numel()
    if not 0 < hidden < length:
        raise UsageError(f"mask.ratio: {config.mask.ratio} hides {hidden} of {length} tokens: choose another")
    stores = open_stores(data, config.clip)
    train = fraction(loops(stores, "train"), config.data_fraction, config.seed)
    val = loops(stores, "val")
    if not val.entries:
        raise DataError("no loop is in split val, by which the best weights are chosen: prepare with a larger --val")
    accelerator = make_accelerator()
    torch.manual_seed(config.seed)
    network = MaskedAutoencoder(config.net, config.decoder, drop_path=config.drop_path)
    network.encoder.is_checkpointed = config.grad_checkpointing
    if config.init:
        load_whole(network, Path(config.init), config.net, config.clip)
    run = begin(out, config, train, val, accelerator, tasks=(), resume=resume, command=command)
    lesson = Lesson(
        network=network,
        parts=lambda module, batch: _parts(module, batch, config),
        num_parts=1,
        train=Clips(train, _no_targets, flip=config.flip, seed=config.seed, jitter=config.jitter),
        val=Clips(val, _no_targets, flip=False, seed=config.seed),
    )

    def draw() -> None:
        plots.loss_curves(out, out / PLOTS / "loss.png")
        _draw_reconstructions(network, lesson.val, config, out / PLOTS / "reconstructions.png")

    fit(lesson, config, run, accelerator, resume=resume, on_epoch=draw)


def _no_targets(_: Entry) -> tuple[float, ...]:
    return ()


def _parts(network: nn.Module, batch: Batch, config: PretrainConfig) -> Parts:
    clip_BCTSS, plain_BCTSS, mask_BL = _inputs(batch, config)
    pixels_BMP = network(clip_BCTSS, mask_BL)
    loss = reconstruction_loss(
        pixels_BMP,
        plain_BCTSS,
        mask_BL,
        config.net,
        is_standardised=config.norm_pix_loss,
        min_cube_std=config.min_cube_std,
    )
    return {"reconstruction": (loss, len(mask_BL))}


def _inputs(batch: Batch, config: PretrainConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Return the clips as the network sees them, the same from 0 to 1, and their masks."""
    clip_BCTSS = normalise(batch.pixels_BTCSS, config.clip).transpose(1, 2)
    plain_BCTSS = batch.pixels_BTCSS.float().div(255.0).transpose(1, 2)
    seeds = [(config.seed, _MASKS, epoch, number) for epoch, number in batch.places]
    mask_BL = draw_masks(seeds, config.mask, config.net.grid).to(batch.pixels_BTCSS.device)
    return clip_BCTSS, plain_BCTSS, mask_BL


@torch.no_grad()
def _draw_reconstructions(network: MaskedAutoencoder, clips: Clips, config: PretrainConfig, file: Path) -> None:
    network.eval()
    batch = next(all_batches(clips, _SHOWN)).to(network.mask_token.device)
    clip_BCTSS, plain_BCTSS, mask_BL = _inputs(batch, config)
    pixels_BMP = network(clip_BCTSS, mask_BL).float()
    cubes_BLP = cubes(plain_BCTSS, config.net)
    if config.norm_pix_loss:  # the network says how a cube looks, not how bright it is: that is taken from the truth
        _, mean, std = standardise(cubes_BLP[mask_BL].view(len(mask_BL), -1, cubes_BLP.shape[-1]))
        pixels_BMP = (pixels_BMP.view(*mean.shape[:2], -1, 3) * (std + 1e-6) + mean).flatten(-2)
    masked_BLP, rebuilt_BLP = cubes_BLP.clone(), cubes_BLP.clone()
    masked_BLP[mask_BL] = 0.5
    rebuilt_BLP[mask_BL] = pixels_BMP.reshape(-1, cubes_BLP.shape[-1]).clamp(0.0, 1.0)
    middle = config.net.frames // 2
    shown, masked, rebuilt = (
        uncut(one, config.net)[:, :, middle].permute(0, 2, 3, 1).cpu().numpy()
        for one in (cubes_BLP, masked_BLP, rebuilt_BLP)
    )
    plots.reconstructions(shown, masked, rebuilt, file)
