"""One shard: the frames of some origins, resized and encoded, and what is said of each.

A shard is a function of its origins, the recipe and the files; a piece of work that is whole on disk or not there.
Legend: N distinct frames, S side of a clip, C = 3 RGB.
"""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np

from model.clip.sampling import distinct, sample
from model.clip.source import Frames
from model.clip.spec import ClipSpec, frame_indices
from model.clip.transform import resize
from model.errors import NotALoop, UnreadableLoop
from trainer.data.manifest import Pixels, Sample
from trainer.data.origin import DataSet, Origin, Reel, Skip
from trainer.data.store import encode, shard_path, video_path
from trainer.files import replacing
from trainer.video import write_avi


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How origins become samples."""

    root: Path
    """Of the data set."""
    clip: ClipSpec
    pixels: Pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What became of the origins of a shard."""

    samples: tuple[Sample, ...]
    skipped: tuple[Skip, ...]


def make_shard(dataset: DataSet, recipe: Recipe, out: Path, number: int, origins: Sequence[Origin]) -> None:
    """Write a shard and, last, the note that says it is whole.

    Raises:
        OSError: the disk does not take it.
    """
    made: list[Sample] = []
    skipped: list[Skip] = []
    with _content(recipe, shard_path(out, number)) as stream:
        for origin in origins:
            try:
                clips = list(_make(dataset, recipe, out, origin, number, stream.tell()))
            except NotALoop as error:
                skipped.append(Skip(path=origin.source, reason=_filtered(error), is_bad=False))
            except UnreadableLoop as error:
                skipped.append(Skip(path=origin.source, reason=f"unreadable: {error}", is_bad=True))
            else:
                for made_sample, content in clips:
                    made.append(made_sample)
                    stream.write(content)
    note = {"samples": [one.model_dump(mode="json") for one in made], "skipped": [asdict(one) for one in skipped]}
    with replacing(note_path(out, number)) as temporary:
        temporary.write_text(json.dumps(note))


def read_note(out: Path, number: int) -> Made | None:
    """Return what became of a shard's origins, None if it was not finished."""
    try:
        note = json.loads(note_path(out, number).read_text())
    except FileNotFoundError:
        return None
    return Made(
        samples=tuple(Sample.model_validate_json(json.dumps(one)) for one in note["samples"]),
        skipped=tuple(Skip(**one) for one in note["skipped"]),
    )


def note_path(out: Path, number: int) -> Path:
    """Return the file that says that a shard is whole; it is there until the store is."""
    return shard_path(out, number).with_suffix(".json")


def _make(
    dataset: DataSet, recipe: Recipe, out: Path, origin: Origin, number: int, offset: int
) -> Iterator[tuple[Sample, bytes]]:
    """Yield the sample of each clip of an origin, and what is stored of it."""
    reel = dataset.open_reel(recipe.root, origin, recipe.clip)
    frame_time_ms = reel.frame_time_ms if origin.frame_time_ms is None else origin.frame_time_ms
    clips: tuple[tuple[int, ...], ...] = (frame_indices(reel.num_frames, recipe.clip.num_frames),)
    if origin.kind == "loop":
        clips = sample(reel.num_frames, recipe.clip, frame_time_ms=frame_time_ms, heart_rate=reel.heart_rate)
    assert origin.split is not None, "the split was drawn"
    seen = distinct(clips)
    resized_NCSS = None
    if recipe.pixels == "avi":
        whole = _read(reel, origin, range(reel.num_frames))
        with replacing(video_path(out, origin.key)) as temporary:
            write_avi(temporary, _of_one_size(whole, recipe.clip), frame_time_ms)
    else:
        resized_NCSS = _resized(_read(reel, origin, seen), recipe.clip)
    for beat, indices in enumerate(clips):
        own = sorted(set(indices))
        content = b""
        if resized_NCSS is not None:
            content = encode(resized_NCSS[[seen.index(index) for index in own]], recipe.pixels)
        yield (
            Sample(
                key=f"{origin.key}#{beat}" if beat else origin.key,
                subject=origin.subject,
                study=origin.study,
                source=origin.source,
                split=origin.split,
                beat=beat,
                kind=origin.kind,
                view=origin.view,
                targets=origin.targets,
                frame_time_ms=frame_time_ms,
                num_frames=reel.num_frames,
                indices=indices,
                take=tuple(own.index(index) for index in indices),
                stored=len(own),
                shard=number,
                offset=offset,
                length=len(content),
            ),
            content,
        )
        offset += len(content)


def _read(reel: Reel, origin: Origin, wanted: Sequence[int]) -> list[Frames]:
    """Return these frames of the clip's direction."""
    return reel.read([reel.num_frames - 1 - index for index in wanted] if origin.is_reversed else wanted)


def _resized(frames: Sequence[Frames], clip: ClipSpec) -> Frames:
    """Return uint8 (N, 3, S, S), the pixels that the node computes."""
    if len({frame.shape for frame in frames}) == 1:
        return np.asarray(resize(np.stack(frames), clip).numpy())
    return np.concatenate([resize(frame[None], clip).numpy() for frame in frames])


def _of_one_size(frames: Sequence[Frames], clip: ClipSpec) -> Frames:
    """Return the frames as one array; stills of several sizes become as large as a clip, for a video has one size."""
    if len({frame.shape for frame in frames}) == 1:
        return np.stack(frames)
    return np.ascontiguousarray(_resized(frames, clip).transpose(0, 2, 3, 1))


def _filtered(error: NotALoop) -> str:
    return f"{error.reason.text}: {error.detail}" if error.detail else error.reason.text


@contextmanager
def _content(recipe: Recipe, path: Path) -> Iterator[IO[bytes]]:
    """Yield what the frames are written to; videos are files of their own."""
    if recipe.pixels == "avi":
        yield io.BytesIO()
        return
    with replacing(path) as temporary, temporary.open("wb") as stream:
        yield stream
