"""The full-size network on the CPU against Hugging Face's VideoMAE with the same weights, and what its parts cost.

Ours and theirs get one clip and the same weights, by `model.hugging_face`; tokens that differ end the benchmark. The
encoder is timed in bfloat16 only on a processor whose matrix products are quicker in it: elsewhere PyTorch emulates
them. One thread, for several wait for each other wherever a core has something else to do.

    python benchmarks/network.py [--pairs 2] [--phantoms 20] [--threads 1]
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
import transformers
from side_by_side import Results, Side, parser, same_work, seconds
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEModel

from model.clip.loop import Clips, load_clips
from model.clip.spec import ClipSpec, frame_indices
from model.ensemble import SHIPPED, Ensemble
from model.hugging_face import to_theirs
from model.net.echo_vision import EchoVision, NetConfig
from model.phantom.heart import random_heart
from model.prediction import mean_outputs
from model.tasks import CATALOGUE, Task, View
from worker.phantom_study import Shot, make_study

NET = NetConfig.base()
"""ViT-B, 1,568 tokens, as in the paper."""
TASKS = (Task.LVEF, Task.LVEDV, Task.LVESV, Task.AORTIC_STENOSIS, Task.VIEW)
APART = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Mean difference between two encoders' tokens, in standard deviations of theirs, that still counts as the same."""
VERSION = f"Hugging Face {transformers.__version__}"


def theirs(ours: EchoVision, attention: str) -> VideoMAEModel:
    """Return transformers' encoder with our weights."""
    # The rest of its defaults is ViT-B.
    config = VideoMAEConfig(attn_implementation=attention, use_mean_pooling=True)  # type: ignore[call-arg]
    network = VideoMAEModel(config)
    state = to_theirs({f"encoder.{key}": value for key, value in ours.encoder.state_dict().items()}, "new")
    network.load_state_dict({key.removeprefix("videomae."): value for key, value in state.items()})
    return network.eval()


def processor_seconds(work: Callable[[], object]) -> float:
    """Return what the work took of the processor, in seconds: others on the machine do not count."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def peak(dtype: torch.dtype, repeats: int = 5) -> float:
    """Return the operations a processor's second of a square matrix product, which nothing can outrun; the best one."""
    size = 2048 if dtype is torch.float32 else 1024
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / min(processor_seconds(lambda: left @ right) for _ in range(repeats))


def compare_encoders(ours: EchoVision, clip_BCTHW: Tensor, pairs: int, results: Results) -> None:
    """Add the rows of the encoder alone."""
    eager, fused = theirs(ours, "eager"), theirs(ours, "sdpa")
    expected_BLD = eager(clip_BCTHW.transpose(1, 2)).last_hidden_state
    of_eager = Side(name=f"{VERSION}, eager, float32", measure=seconds(lambda: eager(clip_BCTHW.transpose(1, 2))))
    of_fused = Side(name=f"{VERSION}, SDPA, float32", measure=seconds(lambda: fused(clip_BCTHW.transpose(1, 2))))
    precisions = [torch.float32]
    if peak(torch.bfloat16) > peak(torch.float32):
        precisions.append(torch.bfloat16)
    else:
        print("bfloat16: this processor's matrix products are no quicker in it; the encoder is not timed")
    for dtype in precisions:
        name = str(dtype).removeprefix("torch.")

        def encode(dtype: torch.dtype = dtype) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
                return ours.encode(clip_BCTHW)

        apart = float((encode().float() - expected_BLD).abs().mean() / expected_BLD.std())
        same_work(apart <= APART[dtype], f"{name}: the tokens are {apart:.2g} standard deviations apart")
        side = Side(name="ours", measure=seconds(encode))
        at_least = 1.6 if dtype is torch.float32 else 3.0
        results.compare(f"encoder, {name}", side, of_eager, unit="s", pairs=pairs, at_least=at_least)
        shares = [100.0 * NET.operations / (processor_seconds(encode) * peak(dtype)) for _ in range(pairs)]
        results.measure(
            f"encoder, {name}: share of the rate of a large matrix product, by the processor's time", shares, unit="%",
            at_least=75.0,
        )  # fmt: skip
        if dtype is torch.float32:
            results.compare("encoder, float32, fused attention on both sides", side, of_fused, unit="s", pairs=pairs)


def compare_parts(ours: EchoVision, clip_BCTHW: Tensor, indices_BT: Tensor, pairs: int, results: Results) -> None:
    """Add what poolings and heads cost beside the encoder."""

    def ask(tasks: Iterable[Task]) -> Callable[[], object]:
        return lambda: ours.answer([task.value for task in tasks], ours.encode(clip_BCTHW), indices_BT)

    one, five = Side(name="one task", measure=seconds(ask(TASKS[:1]))), Side(name="ours", measure=seconds(ask(TASKS)))
    results.compare(
        "a task's whole network, STF-Net and head, against its encoder",
        one,
        Side(name="the encoder alone", measure=seconds(lambda: ours.encode(clip_BCTHW))),
        unit="s",
        pairs=pairs,
        at_most=1.2,
    )
    results.compare(
        f"{len(TASKS)} tasks, each with its STF-Net, that share an encoder", five, one, unit="s", pairs=pairs,
        at_most=1.6,
    )  # fmt: skip


def phantom_clips(seed: int, spec: ClipSpec, folder: Path) -> Clips:
    """Return the clips of a four-chamber loop of a phantom of its own."""
    heart = random_heart(np.random.default_rng([19, seed]))
    (instance,) = make_study(heart, seed=seed, at=datetime(2026, 1, 1, tzinfo=UTC), shots=[Shot(view=View.A4C)])
    path = folder / f"{seed}.dcm"
    instance.save_as(path, enforce_file_format=True)
    return load_clips(path, spec)


def compare_precisions(num_phantoms: int, results: Results) -> None:
    """Add by how much the shipped ensemble's LVEF differs between the precisions."""
    full, half = Ensemble.load(SHIPPED), Ensemble.load(SHIPPED, precision="bf16")
    with tempfile.TemporaryDirectory() as folder:
        loops = [phantom_clips(number, full.spec, Path(folder)) for number in range(num_phantoms)]

    def lvef(ensemble: Ensemble, clips: Clips) -> float:
        outputs = mean_outputs(ensemble.predict_loops(clips.pixels_BCTSS, torch.tensor(clips.indices)))
        return float(np.mean(outputs[Task.LVEF]))

    apart = [abs(lvef(full, clips) - lvef(half, clips)) for clips in loops]
    same_work(max(apart) > 0, "both precisions gave the same bits")
    results.measure("LVEF of the shipped ensemble in bfloat16, difference from float32, largest of all phantoms", apart,
                    unit="points", at_most=0.3, statistic=max)  # fmt: skip


@torch.inference_mode()
def main() -> None:
    """Compare one after the other."""
    options_of = parser(__doc__)
    options_of.add_argument("--pairs", type=int, default=2)
    options_of.add_argument("--phantoms", type=int, default=20)
    options_of.add_argument("--threads", type=int, default=1)
    options = options_of.parse_args()
    results = Results(options.results)
    torch.set_num_threads(options.threads)
    compare_precisions(options.phantoms, results)
    torch.manual_seed(0)
    ours = EchoVision(NET, {task.value: CATALOGUE[task].num_outputs for task in TASKS}).eval()
    clip_BCTHW = torch.rand(1, 3, NET.frames, NET.size, NET.size)
    compare_encoders(ours, clip_BCTHW, options.pairs, results)
    compare_parts(ours, clip_BCTHW, torch.tensor([frame_indices(64, NET.frames)]), options.pairs, results)


if __name__ == "__main__":
    main()
