"""A step of masked pre-training, ViT-B at the paper's settings, against Hugging Face's VideoMAEForPreTraining.

Same weights, clips, masks (85 % hidden), batch and AdamW; the losses must be the same in float32, or the benchmark
fails. A step is forward, backward and update on all cores, each side in a process of its own as it comes: ours keeps
the memory that it frees, as `trainer` does. In bf16 where the CPU computes in it, else all in float32.

    python benchmarks/pretraining.py [--pairs 3] [--batch 2]
"""

import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch
import transformers
from side_by_side import Results, Side, parser, same_work, seconds
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from model.clip.spec import ClipSpec
from model.clip.transform import normalise
from model.net.mae import MaskedAutoencoder, reconstruction_loss
from model.precision import Precision
from model.weights import import_state, load_strictly
from trainer.config import PretrainConfig, resolve
from trainer.heap import keep_freed_memory
from trainer.masking import draw_masks
from trainer.optim import make_optimiser

CONFIG = resolve(PretrainConfig, "base", [], {})
UNLIKE = 1e-5
"""By so much may the losses differ in float32."""
IMAGENET = ClipSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""What the peer's loss takes for granted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """What both learn from."""

    clip_BTCSS: Tensor
    """uint8."""
    mask_BL: Tensor


def lesson(batch: int) -> Lesson:
    """Return clips and masks."""
    net = CONFIG.net
    generator = torch.Generator().manual_seed(0)
    clip_BTCSS = torch.randint(
        0, 256, (batch, net.frames, 3, net.size, net.size), dtype=torch.uint8, generator=generator
    )
    return Lesson(
        clip_BTCSS=clip_BTCSS, mask_BL=draw_masks([(number,) for number in range(batch)], CONFIG.mask, net.grid)
    )


def peer(attention: str) -> VideoMAEForPreTraining:
    """Return the peer's network, of the same size, with weights that the seed decides."""
    torch.manual_seed(0)
    net, decoder = CONFIG.net, CONFIG.decoder
    config = VideoMAEConfig(  # type: ignore[call-arg]
        image_size=net.size,
        patch_size=net.patch,
        num_frames=net.frames,
        tubelet_size=net.tubelet,
        hidden_size=net.dim,
        num_hidden_layers=net.depth,
        num_attention_heads=net.heads,
        intermediate_size=net.mlp_dim,
        layer_norm_eps=net.eps,
        decoder_hidden_size=decoder.dim,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads,
        decoder_intermediate_size=decoder.mlp_dim,
        use_mean_pooling=not net.final_norm,
        norm_pix_loss=CONFIG.norm_pix_loss,
        attn_implementation=attention,
    )
    return VideoMAEForPreTraining(config).train()


def own() -> MaskedAutoencoder:
    """Return our network with the peer's weights."""
    network = MaskedAutoencoder(CONFIG.net, CONFIG.decoder)
    load_strictly(network, import_state(peer("sdpa").state_dict()).state)
    return network.train()


def our_loss(network: nn.Module, given: Lesson) -> Tensor:
    """Return the loss as `trainer pretrain` computes it."""
    clip_BCTSS = normalise(given.clip_BTCSS, IMAGENET).transpose(1, 2)
    plain_BCTSS = given.clip_BTCSS.float().div(255.0).transpose(1, 2)
    return reconstruction_loss(network(clip_BCTSS, given.mask_BL), plain_BCTSS, given.mask_BL, CONFIG.net)


def their_loss(network: nn.Module, given: Lesson) -> Tensor:
    """Return the peer's loss."""
    loss: Tensor = network(normalise(given.clip_BTCSS, IMAGENET), given.mask_BL).loss
    return loss


Loss = Callable[[nn.Module, Lesson], Tensor]


def step_of(
    network: nn.Module, loss_of: Loss, optimiser: torch.optim.Optimizer, given: Lesson, precision: Precision
) -> Callable[[], None]:
    """Return what makes one step."""

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of(network, given)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def own_step(batch: int, precision: Precision) -> Callable[[], None]:
    """Return a step as the trainer makes it."""
    keep_freed_memory()
    network = own()
    return step_of(
        network, our_loss, make_optimiser(network, CONFIG.net.depth, CONFIG.optimiser), lesson(batch), precision
    )


def peer_step(batch: int, precision: Precision, attention: str) -> Callable[[], None]:
    """Return a step of the peer's."""
    network = peer(attention)
    optimiser = torch.optim.AdamW(network.parameters(), lr=CONFIG.optimiser.peak_lr, fused=True)
    return step_of(network, their_loss, optimiser, lesson(batch), precision)


def check() -> None:
    """End the benchmark unless both have the same loss."""
    given = lesson(1)
    with torch.no_grad():
        ours, theirs = float(our_loss(own(), given)), float(their_loss(peer("sdpa"), given))
    same_work(abs(ours - theirs) <= UNLIKE, f"the losses are {ours:.6f} and {theirs:.6f}")


def serve(make: Callable[[], Callable[[], None]], line: Connection) -> None:
    """Make a step whenever asked, and say how long it took and how large this process has been: a child's body."""
    measured = seconds(make())
    while line.recv():
        line.send((measured(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000.0))


class Child:
    """A process that makes the steps of one side: what the C library does with memory is set for a process."""

    def __init__(self, make: Callable[[], Callable[[], None]]) -> None:
        """Start it."""
        context = get_context("spawn")
        self._line, its_end = context.Pipe()
        self._process = context.Process(target=serve, args=(make, its_end))
        self._process.start()
        self.largest_mb = 0.0

    def step(self) -> float:
        """Return the seconds of a step."""
        self._line.send(True)
        spent: float
        spent, self.largest_mb = self._line.recv()
        return spent

    def end(self) -> None:
        """End it."""
        self._line.send(False)
        self._process.join()


def main() -> None:
    """Compare."""
    options_of = parser(__doc__)
    options_of.add_argument("--pairs", type=int, default=3)
    options_of.add_argument("--batch", type=int, default=2)
    options = options_of.parse_args()
    results = Results(options.results)
    check()
    # Elsewhere bf16 is emulated on the CPU, and slower than anything.
    best: Precision = "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"  # no public name
    ours = Child(partial(own_step, options.batch, best))
    aims = [("sdpa", best, 1.1), ("eager", "fp32", 2.5)]
    for attention, precision, aim in aims:
        theirs = Child(partial(peer_step, options.batch, precision, attention))
        name = f"transformers {transformers.__version__}, {attention}, {precision}"
        results.compare(
            f"a step of {options.batch} clips, ours in {best}",
            Side(name="ours", measure=ours.step),
            Side(name=name, measure=theirs.step),
            unit="s",
            pairs=options.pairs,
            at_least=aim,
        )
        results.compare(
            f"largest memory of a process with {options.batch} clips a step, ours in {best}",
            Side(name="ours", measure=lambda: ours.largest_mb),
            Side(name=name, measure=lambda child=theirs: child.largest_mb),
            unit="MB",
            pairs=1,
        )
        theirs.end()
    ours.end()


if __name__ == "__main__":
    main()
