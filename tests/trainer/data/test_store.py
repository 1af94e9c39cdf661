"""Stores give back what was put in, to any process, and refuse what is not whole."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from model.clip.spec import ClipSpec
from tests.trainer.stores import SPEC, make_store
from trainer.data.store import INFO, JPEG_QUALITY, SAMPLES, ClipStore, encode, open_stores, shard_path, unpack
from trainer.errors import DataError


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a small raw store."""
    return make_store(tmp_path / "store", subjects=3)


def test_a_clip_is_its_stored_frames_at_their_places(tmp_path: Path) -> None:
    repeated = make_store(
        tmp_path / "repeated", subjects=1, change=lambda one: one.model_copy(update={"take": (0, 0, 2, 3)})
    )
    plain = ClipStore.open(make_store(tmp_path / "plain", subjects=1))
    opened = ClipStore.open(repeated)

    clip = opened.read(opened.samples[0])

    assert np.array_equal(clip, plain.read(plain.samples[0])[[0, 0, 2, 3]])
    assert clip.shape == (4, 3, 32, 32)
    assert clip.dtype == np.uint8


def test_jpeg_is_the_picture_but_for_a_few_grey_levels(tmp_path: Path) -> None:
    raw, jpeg = (ClipStore.open(make_store(tmp_path / name, subjects=2, pixels=name)) for name in ("raw", "jpeg"))

    for one, other in zip(raw.samples, jpeg.samples, strict=True):
        difference = raw.read(one).astype(int) - jpeg.read(other).astype(int)
        assert np.abs(difference).mean() < 4.0
        assert other.length < one.length / 2


def test_frames_without_colour_are_kept_without_it_and_come_back_the_same() -> None:
    rng = np.random.default_rng(0)
    grey_CSS = np.repeat(rng.integers(0, 256, (1, 32, 32), dtype=np.uint8), 3, axis=0)
    coloured_CSS = grey_CSS.copy()
    coloured_CSS[:, 4:12, 4:12] = [[[200]], [[30]], [[30]]]

    grey, coloured = (next(unpack(memoryview(encode(one[None], "jpeg")), 1)) for one in (grey_CSS, coloured_CSS))
    in_colour = simplejpeg.encode_jpeg(
        np.ascontiguousarray(grey_CSS.transpose(1, 2, 0)), quality=JPEG_QUALITY, colorsubsampling="444"
    )

    assert len(grey) < len(in_colour)
    assert np.array_equal(simplejpeg.decode_jpeg(grey), simplejpeg.decode_jpeg(in_colour))
    assert simplejpeg.decode_jpeg_header(grey)[2] == "Gray"
    assert simplejpeg.decode_jpeg_header(coloured)[3] == "420"


def test_a_jpeg_store_keeps_colour(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", subjects=1, pixels="jpeg")
    frames_NCSS = np.full((4, 3, 32, 32), 90, dtype=np.uint8)
    frames_NCSS[1:, 0] = 200  # the first stays grey
    content = encode(frames_NCSS, "jpeg")
    shard_path(path, 0).write_bytes(content)
    opened = ClipStore.open(path)

    read = opened.read(opened.samples[0].model_copy(update={"offset": 0, "length": len(content)}))

    assert np.abs(read.astype(int) - frames_NCSS).max() <= 2


def test_another_process_reads_the_same(store: Path) -> None:
    opened = ClipStore.open(store)
    before = opened.read(opened.samples[1])

    again = pickle.loads(pickle.dumps(opened))  # noqa: S301  # our own bytes

    assert np.array_equal(again.read(again.samples[1]), before)


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no finished store"):
        ClipStore.open(tmp_path)


def test_samples_that_were_changed_are_refused(store: Path) -> None:
    (store / SAMPLES).write_bytes((store / SAMPLES).read_bytes() + b"\n")

    with pytest.raises(DataError, match=r"is not what store\.json names"):
        ClipStore.open(store)


def test_a_store_of_another_format_is_refused(store: Path) -> None:
    (store / INFO).write_text((store / INFO).read_text().replace('"format":1', '"format":2'))

    with pytest.raises(DataError, match="another version"):
        ClipStore.open(store)


def test_a_shard_that_was_cut_is_refused(store: Path) -> None:
    shard = shard_path(store, 0)
    shard.write_bytes(shard.read_bytes()[:-100])
    opened = ClipStore.open(store)

    with pytest.raises(DataError, match=r"00000.bin: is too short for 002-PLAX"):
        opened.read(opened.samples[-1])


def test_a_missing_shard_is_refused(store: Path) -> None:
    shard_path(store, 0).unlink()
    opened = ClipStore.open(store)

    with pytest.raises(DataError, match=r"00000.bin: cannot be read"):
        opened.read(opened.samples[0])


def test_a_damaged_jpeg_is_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", subjects=1, pixels="jpeg")
    shard_path(path, 0).write_bytes(bytes(shard_path(path, 0).stat().st_size))
    opened = ClipStore.open(path)

    with pytest.raises(DataError, match="000-A4C: a stored frame is damaged"):
        opened.read(opened.samples[0])


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"crop": "sector"}, "clip.crop = none, the run wants sector"),
        ({"crop": "sector", "depth_mm": 140.0}, "clip.crop = none"),
        ({"sampling": "beat"}, "clip.sampling = uniform, the run wants beat"),
        ({"resize": "fit"}, "clip.resize = squash, the run wants fit"),
    ],
)
def test_stores_of_another_recipe_are_refused(store: Path, recipe: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_stores([store], ClipSpec.model_validate(SPEC.model_dump() | recipe))


def test_nothing_is_cut_out_of_stills_so_that_their_store_fits_every_crop(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", change=lambda sample: sample.model_copy(update={"kind": "still"}))

    assert open_stores([path], ClipSpec.model_validate(SPEC.model_dump() | {"crop": "sector", "sampling": "beat"}))


def test_the_normalisation_is_the_run_s(store: Path) -> None:
    assert open_stores([store], ClipSpec.model_validate(SPEC.model_dump() | {"mean": (0.5, 0.5, 0.5), "beats": 2}))


def test_stores_of_another_size_are_refused(store: Path) -> None:
    with pytest.raises(DataError, match=r"clip.num_frames = 4, the run wants 16"):
        open_stores([store], ClipSpec())
