"""From a DICOM cine loop to the frames of a clip, against pydicom's pixel_array with Pillow, and decord on an AVI.

Ours cuts the sampled frames out of the file and decodes those. The first peer decodes the loop, as most programs do;
its pixels must be ours to a grey level on average, or the benchmark fails. The second has the same pictures as Motion
JPEG in an AVI file, compressed once more: to four grey levels. All three resize alike.

    python benchmarks/decode.py [FILE ...] [--pairs 7]

Without a FILE two loops of phantoms, JPEG baseline, are made.
"""

import tempfile
from pathlib import Path

import torch  # before decord, which binds the matrix products of CUDA for the process

# isort: split
import decord
import numpy as np
import pydicom
from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import pixel_array
from pydicom.uid import JPEGBaseline8Bit
from side_by_side import Results, Side, parser, same_work, seconds
from torch import Tensor

from model.clip.dicom import open_loop
from model.clip.source import Frames
from model.clip.spec import ClipSpec, frame_indices
from model.clip.transform import resize
from model.phantom.dicom import picture
from model.phantom.heart import Heart
from model.phantom.scan import render
from model.phantom.screen import Screen
from model.tasks import View
from trainer.video import write_avi

SPEC = ClipSpec()
SCREEN = Screen(rows=600, columns=800)
FORMS = ((80, SCREEN), (64, Screen(rows=708, columns=1016)))
"""Frames, and the screen, of the loops that are made."""


def loop(path: Path, screen: Screen = SCREEN, num_frames: int = 80) -> Path:
    """Write a phantom's loop."""
    heart = Heart(edv_ml=120.0, esv_ml=50.0)
    frames_THWC = render(heart, View.A4C, num_frames=num_frames, frame_time_ms=30.0, rng=np.random.default_rng(0),
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


def all_frames(path: Path) -> Frames:
    """Return what pydicom decodes, RGB."""
    frames_THWC = pixel_array(dcmread(path), decoding_plugin="pillow")
    return np.repeat(frames_THWC[..., None], 3, axis=-1) if frames_THWC.ndim == 3 else frames_THWC


def by_pydicom(path: Path) -> Tensor:
    """Return the sampled frames, small, of all that pydicom decoded."""
    frames_THWC = all_frames(path)
    return resize(frames_THWC[list(frame_indices(len(frames_THWC), SPEC.num_frames))], SPEC)


def by_decord(path: Path) -> Tensor:
    """Return the sampled frames, small, of an AVI file."""
    video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    return resize(video.get_batch(list(frame_indices(len(video), SPEC.num_frames))).asnumpy(), SPEC)


def compare(path: Path, folder: Path, pairs: int, results: Results) -> None:
    """Add the ratios of a file."""
    avi = folder / f"{path.stem}.avi"
    write_avi(avi, all_frames(path), 30.0)
    peers = (
        (f"pydicom {pydicom.__version__}, Pillow", lambda: by_pydicom(path), 1.0, 8.0),
        (f"decord {decord.__version__}, AVI", lambda: by_decord(avi), 4.0, None),
    )
    for name, theirs, alike, aim in peers:
        difference = float((ours(path).float() - theirs().float()).abs().mean())
        same_work(difference <= alike, f"{path.stem}: {difference:.2f} grey levels from {name} on average")
        results.compare(
            f"{path.stem}, {difference:.2f} grey levels apart",
            Side(name="ours", measure=seconds(lambda: ours(path))),
            Side(name=name, measure=seconds(theirs)),
            unit="ms",
            scale=1000.0,
            pairs=pairs,
            at_least=aim,
        )


def main() -> None:
    """Compare on each file."""
    options_of = parser(__doc__)
    options_of.add_argument("files", nargs="*", type=Path, metavar="FILE", help="JPEG baseline loops")
    options_of.add_argument("--pairs", type=int, default=7)
    options = options_of.parse_args()
    results = Results(options.results)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for path in options.files or [
            loop(folder / f"{number} frames of {screen.rows} x {screen.columns}.dcm", screen, number)
            for number, screen in FORMS
        ]:
            compare(path, folder, options.pairs, results)


if __name__ == "__main__":
    main()
