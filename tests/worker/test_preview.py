"""The preview of a loop: what is kept of it for the page, and that it costs the analysis nothing."""

import io

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset
from structlog.testing import capture_logs

from dicom_node.cine_file import CineFile, open_cine
from dicom_node.ledger.engine import Sessions, close_ledger
from dicom_node.store import InstanceStore
from model.clip.loop import Seen, load_clips
from model.clip.sector import Sector, Side
from model.clip.source import Frames
from tests.doubles.incoming import arrive
from tests.doubles.loops import PLAIN
from tests.worker.test_analyse import shown
from worker.analyse import Analyst
from worker.preview import MAX_BYTES, MAX_FRAMES, MAX_SIDE, preview


def seen(frames_NHWC: Frames, sector: Sector | None) -> Seen:
    """Return frames as the clips of a loop are made of them, every second frame of the loop."""
    return Seen(header=PLAIN, frames_NHWC=frames_NHWC, indices=range(0, 2 * len(frames_NHWC), 2), sector=sector)


def sector_of(rows: int, columns: int, sides: tuple[Side, ...] = ()) -> Sector:
    """Return what lies between these sides of a screen; without any, all of it."""
    return Sector(rows=rows, columns=columns, step=1, sides=sides, arc=None)


def previews(store: InstanceStore) -> list[CineFile]:
    """Return every preview that was kept."""
    return [open_cine(store.path(path)) for path, _ in store.files("previews")]


def decoded(jpeg: bytes) -> np.ndarray:
    """Return a frame's pixels."""
    return np.asarray(Image.open(io.BytesIO(jpeg)))


def test_every_loop_that_is_analysed_has_a_preview_and_nothing_else_has(
    analyst: Analyst, study: list[Dataset], sessions: Sessions, store: InstanceStore, rung: list[int]
) -> None:
    study_id = arrive(study, sessions, store, rung.append)

    analyst.drain(study_id)

    found = previews(store)
    loops = {f"{one.SOPInstanceUID}" for one in study if one.get("NumberOfFrames", 1) > 1}
    assert {one.path.name.rpartition("-")[0] for one in found} == loops
    for one in found:
        assert 1 < one.num_frames <= MAX_FRAMES
        assert max(one.rows, one.columns) <= MAX_SIDE
        assert one.path.stat().st_size < MAX_BYTES
        assert decoded(one.frame(0)).shape == (one.rows, one.columns)
    close_ledger(sessions)


def test_a_preview_shows_the_frames_that_were_looked_at_at_the_loops_own_rate(
    analyst: Analyst, study: list[Dataset], sessions: Sessions, store: InstanceStore, rung: list[int]
) -> None:
    analyst.drain(arrive(study, sessions, store, rung.append))
    one = previews(store)[0]
    (path,) = [path for path, _ in store.files("instances") if one.path.stem in path]
    clips = load_clips(store.path(path), analyst.current_engine().spec)

    assert [number - 1 for number in one.source_frames] == [*clips.frames]
    assert one.frame_time_ms == pytest.approx(33.3 * 23 / 15)
    close_ledger(sessions)


def test_what_is_written_beside_the_sector_is_not_in_the_preview() -> None:
    """White letters all around a dark sector: nothing of them shines through, at no edge."""
    sector = sector_of(480, 640, sides=(Side(0.8, 0.6, 320.0), Side(-0.8, 0.6, -192.0)))
    frames_NHWC = np.full((3, 480, 640, 3), 255, dtype=np.uint8)
    frames_NHWC[:, sector.mask_HW] = 20

    cine = preview(seen(frames_NHWC, sector))

    assert cine is not None
    assert max(int(decoded(frame).max()) for frame in cine.frames) < 60
    assert {decoded(frame).shape for frame in cine.frames} == {(cine.rows, cine.columns)}


def test_a_loop_that_nothing_is_cut_out_of_has_no_preview() -> None:
    assert preview(seen(np.zeros((3, 60, 80, 3), dtype=np.uint8), None)) is None


@pytest.mark.parametrize("shape", [(100, 60, 80), (3, 1080, 1920), (1, 5, 900), (49, 30, 30)])
def test_a_preview_is_bounded(shape: tuple[int, int, int]) -> None:
    cine = preview(seen(np.zeros((*shape, 3), dtype=np.uint8), sector_of(*shape[1:])))

    assert cine is not None
    assert len(cine.frames) == len(cine.source_frames) <= MAX_FRAMES
    assert max(cine.rows, cine.columns) <= MAX_SIDE
    assert cine.frame_time_ms is not None
    assert cine.frame_time_ms > 0


def test_a_preview_of_noise_has_fewer_frames_and_no_more_bytes() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (48, 384, 384, 3), dtype=np.uint8)

    cine = preview(seen(noise, sector_of(384, 384)))

    assert cine is not None
    assert sum(map(len, cine.frames)) <= MAX_BYTES
    assert 1 <= len(cine.frames) < 48
    assert cine.frame_time_ms == pytest.approx(33.3 * 2 * (48 // len(cine.frames)), rel=0.1)


def test_a_preview_that_cannot_be_kept_costs_the_analysis_nothing(
    analyst: Analyst, study: list[Dataset], sessions: Sessions, store: InstanceStore, rung: list[int]
) -> None:
    store.path("previews").rmdir()
    store.path("previews").write_text("no folder")
    study_id = arrive(study, sessions, store, rung.append)

    with capture_logs() as lines:
        analyst.drain(study_id)

    assert shown(study, sessions)["loops_analysed"] == 2
    assert [line["event"] for line in lines].count("preview_not_kept") == 2
    close_ledger(sessions)


def test_a_preview_that_cannot_be_made_costs_the_analysis_nothing(
    analyst: Analyst,
    study: list[Dataset],
    sessions: Sessions,
    store: InstanceStore,
    rung: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_seen: Seen) -> None:
        raise MemoryError

    monkeypatch.setattr("worker.preview.preview", fail)
    study_id = arrive(study, sessions, store, rung.append)

    analyst.drain(study_id)

    assert shown(study, sessions)["loops_analysed"] == 2
    assert previews(store) == []
    close_ledger(sessions)
