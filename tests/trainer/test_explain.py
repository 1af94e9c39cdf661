"""An explanation shows what the network saw and says; a file that is no loop is refused in words."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from model.overlay import veil
from tests.doubles import loops
from tests.trainer.runs import make_run, make_tested_store
from trainer.errors import DataError, RunError, UsageError
from trainer.explain import SCALE, explain


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of clips of 4 frames, 32 pixels."""
    folder = tmp_path_factory.mktemp("explain")
    return make_run(
        folder / "run", [make_tested_store(folder / "store", subjects=20)], ["lvef", "lvef_reduced", "view"]
    )


@pytest.fixture
def dicom(tmp_path: Path) -> Path:
    """Return a DICOM loop of ten frames."""
    return loops.write_native(tmp_path / "loop.dcm", loops.picture(10))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Return a video of ten frames, as EchoNet-Dynamic has them."""
    path = tmp_path / "loop.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=50)
        stream.width = stream.height = 112
        stream.pix_fmt = "yuvj420p"
        for picture in loops.picture(10, 112, 112):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return path


def test_it_draws_every_frame_and_says_every_task(run: Path, dicom: Path, tmp_path: Path) -> None:
    document = explain(run, dicom, tmp_path / "out")

    assert document["frames"] == [0, 3, 6, 9]
    assert document["tasks"].keys() == {"lvef", "lvef_reduced", "view"}
    assert document["tasks"]["lvef"]["unit"] == "%"
    assert sum(document["tasks"]["view"]["probabilities"].values()) == pytest.approx(1.0)
    assert document["rollout"]["grid"] == [2, 4, 4]
    assert len(document["rollout"]["cells"]) == 32
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "explanation.json", "contact.png", *(f"frame_{number:02d}.png" for number in range(4)),
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "explanation.json").read_text()) == document
    with Image.open(tmp_path / "out" / "frame_00.png") as picture:
        assert picture.size == (32 * SCALE, 32 * SCALE)


def test_a_video_is_a_loop_too(run: Path, video: Path, tmp_path: Path) -> None:
    document = explain(run, video, tmp_path / "out", head_fusion="mean", row=3)

    assert document["frames"] == [0, 3, 6, 9]
    assert document["rollout"]["row"] == 3


def test_the_same_loop_gives_the_same_explanation(run: Path, dicom: Path, tmp_path: Path) -> None:
    assert explain(run, dicom, tmp_path / "a") == explain(run, dicom, tmp_path / "b")


def test_what_the_node_would_not_analyse_is_shown_and_said(run: Path, tmp_path: Path) -> None:
    frozen = loops.write_native(tmp_path / "frozen.dcm", np.repeat(loops.picture(1), 10, axis=0))

    document = explain(run, frozen, tmp_path / "out")

    assert "frozen picture" in document["note"]


@pytest.mark.parametrize("content", [b"", b"no loop at all" * 100, b"\0" * 128 + b"DICM" + b"\xff" * 300])
def test_a_file_that_is_no_loop_is_refused(run: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)

    with pytest.raises(DataError, match="cannot be read as a loop"):
        explain(run, file, tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no file"):
        explain(run, tmp_path / "nothing.dcm", tmp_path / "out")


def test_a_token_that_is_not_there_is_refused(run: Path, dicom: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tokens 0 to 31"):
        explain(run, dicom, tmp_path / "out", row=32)


def test_all_tokens_may_be_asked_together(run: Path, dicom: Path, tmp_path: Path) -> None:
    document = explain(run, dicom, tmp_path / "out", all_rows=True)

    assert document["rollout"]["row"] is None
    with pytest.raises(UsageError, match="--row"):
        explain(run, dicom, tmp_path / "out", row=3, all_rows=True)


def test_no_run_is_refused(dicom: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is no run"):
        explain(tmp_path, dicom, tmp_path / "out")


def test_where_nothing_is_salient_the_frame_is_as_it_was() -> None:
    frame = loops.picture(1, 8, 8)[0]

    assert np.array_equal(veil(np.zeros((8, 8), dtype=np.uint8)).over(frame), frame)
    assert not np.array_equal(veil(np.full((8, 8), 255, dtype=np.uint8)).over(frame), frame)
