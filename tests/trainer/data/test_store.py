"""Stores give back what was put in, to any process, and refuse what is not whole."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.clip.spec import ClipSpec
from tests.trainer.stores import SPEC, make_store
from trainer.data.store import INFO, SAMPLES, ClipStore, open_stores, shard_path
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
