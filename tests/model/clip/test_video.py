"""Video streams: in a file of their own, and inside a DICOM file."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from model.clip.dicom import open_loop
from model.clip.select import select
from model.clip.video import open_video
from model.errors import UnreadableLoop
from tests.doubles.loops import write_encapsulated

H264 = "1.2.840.10008.1.2.4.102"
SHAPE = (76, 576, 1024)


@pytest.fixture(scope="module")
def mp4(shared_data: Path) -> Path:
    """A real echo loop as MPEG-4: 76 frames of 576 x 1024."""
    return shared_data / "echo_other" / "fiammante_TEE_anonymized.mp4"


def test_a_video_tells_its_size_and_true_number_of_frames(mp4: Path) -> None:
    header = open_video(mp4).header

    assert (header.num_frames, header.rows, header.columns) == SHAPE
    assert header.frame_time_ms == pytest.approx(50.0, abs=0.1)


def test_frames_of_a_video_are_those_of_their_index(mp4: Path) -> None:
    video = open_video(mp4)

    frames = video.read((0, 40, 40, 75))

    assert frames.shape == (4, 576, 1024, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames[1], frames[2])
    assert not np.array_equal(frames[0], frames[1])
    assert np.array_equal(frames[3], video.read((75,))[0])


@pytest.mark.parametrize("num_fragments", [1, 4])
def test_a_video_inside_a_dicom_file_gives_the_same_frames(tmp_path: Path, mp4: Path, num_fragments: int) -> None:
    loop = write_encapsulated(
        tmp_path / "a.dcm", [mp4.read_bytes()], SHAPE, H264, num_fragments=num_fragments,
        PhotometricInterpretation="YBR_PARTIAL_420",
    )  # fmt: skip

    frames = open_loop(loop).read((0, 40, 40, 75))

    assert select(open_loop(loop).header).is_accepted
    assert np.array_equal(frames, open_video(mp4).read((0, 40, 40, 75)))


def test_a_stream_shorter_than_its_header_claims_is_refused(tmp_path: Path, mp4: Path) -> None:
    loop = write_encapsulated(tmp_path / "a.dcm", [mp4.read_bytes()], (200, 576, 1024), H264)

    with pytest.raises(UnreadableLoop, match="frame 200 was asked for, the video stream holds 76"):
        open_loop(loop).read((0, 199))


def test_a_stream_of_another_size_than_the_header_claims_is_refused(tmp_path: Path, mp4: Path) -> None:
    loop = write_encapsulated(tmp_path / "a.dcm", [mp4.read_bytes()], (76, 480, 640), H264)

    with pytest.raises(UnreadableLoop, match="a frame holds 576 x 1024 pixels, the header claims 480 x 640"):
        open_loop(loop).read((0, 1))


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100, b"RIFF\x00\x10\x00\x00AVI LIST" + b"\0" * 500])
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.avi"
    path.write_bytes(content)

    with pytest.raises(UnreadableLoop):
        open_video(path)


def test_a_video_that_was_cut_off_is_refused(tmp_path: Path, mp4: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(mp4.read_bytes()[:200_000])

    with pytest.raises(UnreadableLoop):
        open_video(path).read((0, 75))


def test_a_video_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableLoop):
        open_video(tmp_path / "gone.mp4")


def test_a_video_of_absurd_size_is_refused_before_a_frame_is_decoded(tmp_path: Path) -> None:
    """A few kilobytes make two gigabytes of frames in decord."""
    path = tmp_path / "bomb.mp4"
    with av.open(str(path), "w") as video:
        stream = video.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 6400, 6400, "yuv420p"
        frame = av.VideoFrame(6400, 6400, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for _ in range(2):
            video.mux(stream.encode(frame))
        video.mux(stream.encode())
    refused = subprocess.run([sys.executable, "-c", _OPENED, path], capture_output=True, text=True, check=True)

    assert path.stat().st_size < 1_000_000
    claim, kilobytes = refused.stdout.splitlines()
    assert claim == "the video stream claims 6400 x 6400 pixels"
    assert int(kilobytes) < 60_000  # a frame has 61 MB in YUV, and three are held


# In a process of its own: the memory that others of this one's tests give back comes and goes.
_OPENED = """
import sys
from pathlib import Path
from model.clip.video import open_video
from model.errors import UnreadableLoop

def peak_kilobytes():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak_kilobytes()
try:
    open_video(Path(sys.argv[1]))
except UnreadableLoop as error:
    print(error)
print(peak_kilobytes() - before)
"""
