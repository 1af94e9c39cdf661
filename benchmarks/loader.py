"""Training clips a second and core from our clip store, against decord on the whole loops as Motion JPEG in AVI files.

The peer is the paper's way: the 16 frames of a clip out of a full-length AVI of 600 x 800 pixels, in decord's own
resize. Ours is the loader of `trainer pretrain` as it runs: batches of 8, clips flipped, from stores that `trainer
prepare` made of the same DICOM files. Without flips both give the same clips to a few grey levels on average, or the
benchmark fails. Beside it: the DICOM files read anew for each clip, and `trainer prepare` on all cores.

    python benchmarks/loader.py [--pairs 4]
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch  # before decord, which binds the matrix products of CUDA for the process

# isort: split
import decord
import numpy as np
import psutil
from decode import loop
from pydicom import Dataset, dcmread, dcmwrite
from side_by_side import Results, Side, parser, same_work
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.clip.dicom import open_loop
from model.clip.spec import ClipSpec
from model.clip.transform import resize
from model.net.mae import MaskedAutoencoder, reconstruction_loss
from model.phantom.screen import Screen
from trainer.config import PretrainConfig, resolve
from trainer.data.cohort import Cohort, loops
from trainer.data.loader import Clips, Plan, training_batches
from trainer.data.manifest import Pixels, Sample
from trainer.data.prepare import prepare
from trainer.data.store import ClipStore, video_path
from trainer.heap import keep_freed_memory
from trainer.masking import draw_masks

SPEC = ClipSpec()
NUM_LOOPS, BATCH = 16, 8
THREADS, CORES = psutil.cpu_count() or 1, psutil.cpu_count(logical=False) or 1
"""Two threads of one core do little more than one."""
NUM_PREPARED = 192 * THREADS
"""Loops of 240 x 320: three shards for each process."""
SAME = 4.0
"""Grey levels on average: both are compressed a second time, and decord's resize differs from ours by one."""
GPUS = {"A100": 312.0, "H100": 989.0}
"""TFLOP/s in bf16 without sparsity, by NVIDIA's data sheets."""
REACHED = 0.4
"""Share of it that is thought to be reached in training."""


def write_dataset(root: Path, one: Dataset, num_loops: int) -> None:
    """Write a data set in the layout of MIMIC-IV-ECHO, a copy of one loop for each patient."""
    lines = ["subject_id,study_id,acquisition_datetime,dicom_filepath"]
    for number in range(num_loops):
        path = f"files/{number:03d}.dcm"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        one.SOPInstanceUID = f"2.25.{number + 1}"
        dcmwrite(root / path, one, enforce_file_format=True)
        lines.append(f"{1000 + number},{2000 + number},2180-01-01 08:00:00,{path}")
    (root / "echo-record-list.csv").write_text("\n".join(lines) + "\n")


def made(data: Path, out: Path, pixels: Pixels, jobs: int = 1) -> ClipStore:
    """Return a store of the data set."""
    prepare("mimic", data, out, clip=SPEC, pixels=pixels, only="train", jobs=jobs)
    return ClipStore.open(out)


def by_loader(cohort: Cohort) -> Iterator[Tensor]:
    """Yield batches as training takes them, without end."""
    plan = Plan(num_samples=NUM_LOOPS, batch=BATCH, parts=1, seed=0, epochs=10**6)
    clips = Clips(cohort, lambda _entry: (), flip=True, seed=0)
    for batch in training_batches(clips, plan, first_step=0, rank=0, world=1, workers=0, pin=False):
        yield batch.pixels_BTCSS


def rate(batches: Iterator[Tensor], num_batches: int) -> Callable[[], float]:
    """Return a measure: clips a second."""

    def measured() -> float:
        begin = time.perf_counter()
        number = sum(len(next(batches)) for _ in range(num_batches))
        return number / (time.perf_counter() - begin)

    return measured


def batches_of(read: Callable[[Sample], Tensor], samples: tuple[Sample, ...]) -> Iterator[Tensor]:
    """Yield batches of clips that `read` gives, without end."""
    while True:
        for start in range(0, len(samples), BATCH):
            yield torch.stack([read(sample) for sample in samples[start : start + BATCH]])


def with_decord(store: ClipStore) -> Callable[[Sample], Tensor]:
    """Return what reads a clip from a whole loop: uint8 (T, S, S, 3)."""

    def read(sample: Sample) -> Tensor:
        path = str(video_path(store.path, sample.loop_key))
        video = decord.VideoReader(path, ctx=decord.cpu(0), width=SPEC.size, height=SPEC.size, num_threads=1)
        return torch.from_numpy(video.get_batch(list(sample.indices)).asnumpy())

    return read


def from_dicom(data: Path) -> Callable[[Sample], Tensor]:
    """Return what reads a clip from the DICOM file: uint8 (T, 3, S, S)."""
    return lambda sample: resize(open_loop(data / sample.source).read(sample.indices), SPEC)


def check(store: ClipStore, truth: ClipStore, videos: ClipStore) -> None:
    """End the benchmark unless the store and the videos give the same clips."""
    decoded = with_decord(videos)
    for own, true in zip(store.samples, truth.samples, strict=True):
        pixels = truth.read(true).astype(np.int16)
        ours = float(np.abs(store.read(own) - pixels).mean())
        theirs = float(np.abs(decoded(true).numpy().transpose(0, 3, 1, 2) - pixels).mean())
        same_work(ours <= SAME and theirs <= SAME, f"{own.key}: ours {ours:.1f}, decord {theirs:.1f} grey levels off")


def prepared(data: Path, folder: Path, jobs: int) -> Callable[[], float]:
    """Return a measure: shards a second of `trainer prepare`, from the first of each process on."""
    numbers = iter(range(10**6))

    def measured() -> float:
        ends: list[float] = []
        prepare("mimic", data, folder / f"{jobs}-{next(numbers)}", clip=SPEC, pixels="jpeg", only="train", jobs=jobs,
                progress=lambda _done, _total: ends.append(time.perf_counter()))  # fmt: skip
        begun = ends[jobs:]  # at 0 it is called first
        return (len(begun) - 1) / (begun[-1] - begun[0])

    return measured


def gflop_of_a_clip() -> float:
    """Return what one clip costs in a step of the paper's pre-training, forward and backward."""
    config = resolve(PretrainConfig, "base", [], {})
    network = MaskedAutoencoder(config.net, config.decoder)
    clip_BCTSS = torch.rand(1, 3, SPEC.num_frames, SPEC.size, SPEC.size)
    mask_BL = draw_masks([(0,)], config.mask, config.net.grid)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # of the others not all are counted
        reconstruction_loss(network(clip_BCTSS, mask_BL), clip_BCTSS, mask_BL, config.net).backward()
    return counter.get_total_flops() / 1e9


def for_gpus(results: Results, clips_a_second: Mapping[str, float]) -> None:
    """Add how many cores feed a GPU at the paper's pre-training."""
    gflop = gflop_of_a_clip()
    for gpu, tflops in GPUS.items():
        wanted = REACHED * tflops * 1000.0 / gflop
        for pixels, rate_of_core in clips_a_second.items():
            results.measure(
                f"cores that feed one {gpu} in pre-training from a {pixels} store: {wanted:.0f} clips/s, as one takes"
                f" {gflop:.0f} GFLOP and {REACHED:.0%} of {tflops:.0f} TFLOP/s are reached",
                [wanted / rate_of_core],
                unit="cores",
            )


def main() -> None:
    """Prepare the stores and compare."""
    options_of = parser(__doc__)
    options_of.add_argument("--pairs", type=int, default=4)
    options = options_of.parse_args()
    results = Results(options.results)
    torch.set_num_threads(1)
    keep_freed_memory()  # as trainer does
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_dataset(data, dcmread(loop(Path(folder) / "loop.dcm")), NUM_LOOPS)
        forms: tuple[Pixels, ...] = ("raw", "jpeg", "avi")
        stores = {pixels: made(data, Path(folder) / pixels, pixels) for pixels in forms}
        of_avi = batches_of(with_decord(stores["avi"]), stores["avi"].samples)
        road = Side(name=f"decord {decord.__version__}, AVI of 600 x 800", measure=rate(of_avi, 2))
        clips_a_second = {}
        for pixels, num_batches, aim in (("jpeg", 16, 15.0), ("raw", 64, 100.0)):
            check(stores[pixels], stores["raw"], stores["avi"])
            measured = rate(by_loader(loops([stores[pixels]], "train")), num_batches)
            results.compare(f"loader, {pixels} store, one core", Side(name="ours", measure=measured), road,
                            unit="clips/s", pairs=options.pairs, at_least=aim, is_rate=True)  # fmt: skip
            clips_a_second[pixels] = measured()
        of_dicom = rate(batches_of(from_dicom(data), stores["raw"].samples), 2)
        results.compare(
            "loader, jpeg store, one core",
            Side(name="ours", measure=rate(by_loader(loops([stores["jpeg"]], "train")), 16)),
            Side(name="the node's reader on the DICOM files", measure=of_dicom),
            unit="clips/s",
            pairs=options.pairs,
            is_rate=True,
        )
        sizes = [sample.length / 1e6 for sample in stores["jpeg"].samples]
        results.measure("a clip in the jpeg store", sizes, unit="MB", at_most=0.25)
        for_gpus(results, clips_a_second)
        many = Path(folder) / "many"
        write_dataset(many, dcmread(loop(Path(folder) / "small.dcm", Screen(rows=240, columns=320))), NUM_PREPARED)
        results.compare(
            f"trainer prepare, {THREADS} processes on {CORES} cores",
            Side(name="ours", measure=prepared(many, Path(folder), THREADS)),
            Side(name="one process", measure=prepared(many, Path(folder), 1)),
            unit="shards/s",
            pairs=max(options.pairs // 3, 2),
            at_least=0.8 * CORES,
            is_rate=True,
        )


if __name__ == "__main__":
    main()
