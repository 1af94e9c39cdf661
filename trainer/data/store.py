"""Clips on disk as training reads them: memory-mapped shards, one copy a clip, no open() a read.

    store.json       what it is; written last
    samples.jsonl    a line a sample, by key
    shards/00000.bin the stored frames of many samples, one behind the other
    videos/*.avi     instead of shards: a whole loop each, named by a digest of the key

Legend: T frames of a clip, N stored frames, C = 3 RGB, S side of a clip.
"""

import hashlib
import mmap
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from pydantic import ValidationError

from model.clip.spec import ClipSpec
from model.clip.transform import resize
from model.clip.video import open_video
from model.errors import UnreadableLoop
from trainer.data.manifest import Pixels, Sample, StoreInfo
from trainer.errors import DataError

Frames = NDArray[np.uint8]

INFO = "store.json"
SAMPLES = "samples.jsonl"
SHARDS = "shards"
VIDEOS = "videos"
JPEG_QUALITY = 92

_OF_PIXELS = ("num_frames", "size", "resize")
_OF_LOOPS = ("crop", "depth_mm", "sampling")


class ClipStore:
    """A store that was checked; reading is safe in forked and in spawned workers."""

    def __init__(self, path: Path, info: StoreInfo, samples: tuple[Sample, ...], digest: str) -> None:
        """Keep what was read; `open` is the way in."""
        self.path = path
        self.info = info
        self.samples = samples
        self.digest = digest
        """sha256 of `store.json`, which names that of the samples."""
        self._maps: dict[int, mmap.mmap] = {}

    @classmethod
    def open(cls, path: Path) -> "ClipStore":
        """Return the store of a folder.

        Raises:
            DataError: it is none, or not whole.
        """
        try:
            document = (path / INFO).read_bytes()
            lines = (path / SAMPLES).read_bytes()
            info = StoreInfo.model_validate_json(document)
        except OSError as error:
            raise DataError(f"{path}: is no finished store ({error.strerror}): run trainer prepare") from error
        except ValidationError as error:
            raise DataError(f"{path / INFO}: is of another version: prepare it again") from error
        if hashlib.sha256(lines).hexdigest() != info.samples_sha256:
            raise DataError(f"{path / SAMPLES}: is not what {INFO} names: prepare it again")
        samples = tuple(Sample.model_validate_json(line) for line in lines.splitlines())
        return cls(path, info, samples, hashlib.sha256(document).hexdigest())

    def read(self, sample: Sample) -> Frames:
        """Return a clip before its normalisation: uint8 (T, 3, S, S), not to be written to: it may be the shard itself.

        Raises:
            DataError: the shard is damaged.
        """
        size = self.info.clip.size
        if self.info.pixels == "avi":
            return self._read_video(sample)
        is_whole = sample.take == tuple(range(sample.stored))
        content = memoryview(self._map(sample.shard))[sample.offset : sample.offset + sample.length]
        if self.info.pixels == "raw":
            stored = np.frombuffer(content, dtype=np.uint8)
            if stored.size != sample.stored * 3 * size * size:
                raise DataError(f"{self._shard(sample.shard)}: is too short for {sample.key}: prepare it again")
            stored_NCSS = stored.reshape(sample.stored, 3, size, size)
            return stored_NCSS if is_whole else stored_NCSS[list(sample.take)]
        stored_NCSS = np.empty((sample.stored, 3, size, size), dtype=np.uint8)
        for frame_CSS, part in zip(stored_NCSS, unpack(content, sample.stored), strict=True):
            frame_CSS[...] = _decode(part, size, sample.key)
        return stored_NCSS if is_whole else stored_NCSS[list(sample.take)]

    def _read_video(self, sample: Sample) -> Frames:
        path = video_path(self.path, sample.loop_key)
        if not path.is_file():
            raise DataError(f"{path}: is missing: prepare it again")
        try:
            frames_THWC = open_video(path).read(sample.indices)
        except UnreadableLoop as error:
            raise DataError(f"{path}: {error}: prepare it again") from error
        return np.asarray(resize(frames_THWC, self.info.clip).numpy())

    def __getstate__(self) -> dict[str, Any]:
        """Leave the memory maps behind: another process opens its own."""
        return {**self.__dict__, "_maps": {}}

    def _shard(self, number: int) -> Path:
        return shard_path(self.path, number)

    def _map(self, number: int) -> mmap.mmap:
        if number not in self._maps:
            try:
                with self._shard(number).open("rb") as stream:
                    self._maps[number] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise DataError(f"{self._shard(number)}: cannot be read ({error}): prepare it again") from error
        return self._maps[number]


def open_stores(paths: Sequence[Path], clip: ClipSpec) -> tuple[ClipStore, ...]:
    """Return the stores of a run.

    Raises:
        DataError: one was prepared by another recipe.
    """
    stores = tuple(ClipStore.open(path) for path in paths)
    for path, store in zip(paths, stores, strict=True):
        has_loops = any(sample.kind == "loop" for sample in store.samples)
        for key in _keys(clip, has_loops=has_loops):
            own, wanted = getattr(store.info.clip, key), getattr(clip, key)
            if own != wanted:
                raise DataError(
                    f"{path}: was prepared with clip.{key} = {own}, the run wants {wanted}: prepare it again"
                )
    return stores


def _keys(clip: ClipSpec, *, has_loops: bool) -> tuple[str, ...]:
    """Return the keys of the recipe that a store's pixels follow from; the rest, the normalisation, is the run's."""
    if not has_loops:  # nothing is cut out of stills
        return _OF_PIXELS
    return _OF_PIXELS + _OF_LOOPS + (("beats",) if clip.sampling == "beat" else ())


def dataset_names(stores: Sequence[ClipStore]) -> list[str]:
    """Return a name for each store, distinct, in their order; as a run names what it was trained on."""
    names: list[str] = []
    for number, store in enumerate(stores):
        name = store.info.dataset
        names.append(f"{name}-{number + 1}" if name in names else name)
    return names


def shard_path(store: Path, number: int) -> Path:
    """Return the file of a shard."""
    return store / SHARDS / f"{number:05d}.bin"


def video_path(store: Path, key: str) -> Path:
    """Return the video of a sample; a digest, since keys hold paths of others."""
    return store / VIDEOS / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.avi"


def encode(frames_NCSS: Frames, pixels: Pixels) -> bytes:
    """Return the bytes of a sample's stored frames."""
    assert pixels != "avi", "videos are files of their own"
    if pixels == "raw":
        return np.ascontiguousarray(frames_NCSS).tobytes()
    parts = [_encode(frame_CSS) for frame_CSS in frames_NCSS]
    return struct.pack(f"<{len(parts)}I", *map(len, parts)) + b"".join(parts)


def unpack(content: memoryview, number: int) -> Iterator[memoryview]:
    """Yield each stored JPEG: their lengths stand in front, 32 bit, little endian."""
    lengths = struct.unpack_from(f"<{number}I", content)
    start = 4 * number
    for length in lengths:
        yield content[start : start + length]
        start += length


def _encode(frame_CSS: Frames) -> bytes:
    """Return a frame as JPEG, its colour, which is in marks alone, at half size or not there: that decodes faster."""
    is_grey = bool((frame_CSS[1:] == frame_CSS[0]).all())
    kept_CSS, space, sampling = (frame_CSS[:1], "GRAY", "Gray") if is_grey else (frame_CSS, "RGB", "420")
    frame_SSC = np.ascontiguousarray(kept_CSS.transpose(1, 2, 0))
    jpeg: bytes = simplejpeg.encode_jpeg(frame_SSC, quality=JPEG_QUALITY, colorspace=space, colorsubsampling=sampling)
    return jpeg


def _decode(jpeg: memoryview, size: int, key: str) -> Frames:
    """Return a frame, (3, S, S), or (1, S, S) if it has no colour."""
    try:
        rows, columns, space, _ = simplejpeg.decode_jpeg_header(jpeg)
        frame_SSC: Frames = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY" if space == "Gray" else "RGB")
    except ValueError as error:
        raise DataError(f"{key}: a stored frame is damaged: prepare it again") from error
    if (rows, columns) != (size, size):
        raise DataError(f"{key}: a stored frame is {rows} x {columns}, not {size} x {size}: prepare it again")
    return frame_SSC.transpose(2, 0, 1)
