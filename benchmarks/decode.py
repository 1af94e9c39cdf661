"""From a DICOM cine loop to the frames of a clip: ours against pydicom's pixel_array with Pillow and the same resize.

Ours cuts the sampled frames out of the file and decodes those; the peer decodes the loop, as most programs do. The
pixels must be the same to a grey level on average, or the benchmark fails. A B A B, so that a noisy neighbour meets
both.

    python benchmarks/decode.py [FILE ...] [--rounds 5]

Without a FILE a phantom's loop of 80 frames of 600 x 800, JPEG baseline, is made.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import pixel_array
from pydicom.uid import JPEGBaseline8Bit
from torch import Tensor

from model.clip.dicom import open_loop
from model.clip.spec import ClipSpec, frame_indices
from model.clip.transform import resize
from model.phantom.dicom import picture
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.phantom.screen import Screen
from model.tasks import View

SPEC = ClipSpec()


def loop(path: Path) -> Path:
    """Write a phantom's loop."""
    heart, screen = Heart(edv_ml=120.0, esv_ml=50.0), Screen(rows=600, columns=800)
    frames_THWC = render(heart, View.A4C, num_frames=80, frame_time_ms=30.0, rng=np.random.default_rng(0),
                         screen=screen)  # fmt: skip
    one = picture(frames_THWC, screen, frame_time_ms=30.0, heart_rate=heart.heart_rate)
    one.SOPInstanceUID, one.Modality = "2.25.1", "US"
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    one.save_as(path, enforce_file_format=True)
    return path


def ours(path: Path) -> Tensor:
    """Return the sampled frames, small."""
    source = open_loop(path)
    return resize(source.read(frame_indices(source.header.num_frames, SPEC.num_frames)), SPEC)


def theirs(path: Path) -> Tensor:
    """Return the sampled frames, small, of all that pydicom decoded."""
    dataset = dcmread(path)
    frames_THWC = pixel_array(dataset, decoding_plugin="pillow")
    if frames_THWC.ndim == 3:
        frames_THWC = np.repeat(frames_THWC[..., None], 3, axis=-1)
    return resize(frames_THWC[list(frame_indices(len(frames_THWC), SPEC.num_frames))], SPEC)


def seconds(work: Callable[[Path], Tensor], path: Path) -> float:
    """Return how long it takes."""
    begin = time.perf_counter()
    work(path)
    return time.perf_counter() - begin


def compare(path: Path, name: str, rounds: int) -> None:
    """Print the ratio for a file."""
    difference = float((ours(path).float() - theirs(path).float()).abs().mean())
    if difference > 1.0:
        raise SystemExit(f"{name}: the pixels differ by {difference:.2f} grey levels on average")
    pairs = [(seconds(ours, path), seconds(theirs, path)) for _ in range(rounds)]
    ratio = statistics.median(peer / own for own, peer in pairs)
    own, peer = (1000.0 * statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"{name}: ours {own:.0f} ms, pydicom {peer:.0f} ms: {ratio:.1f} times; {difference:.2f} grey levels apart")


def main() -> None:
    """Compare on each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="JPEG baseline loops")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for path in options.files or [loop(Path(folder) / "80 frames of 600 x 800.dcm")]:
            compare(path, path.stem, options.rounds)


if __name__ == "__main__":
    main()
