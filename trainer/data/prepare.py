"""From a data set's layout on disk to a clip store: in parallel, and after a kill only what is missing.

The store is a function of the files, the recipe and the seed: however often it was interrupted and by however many
processes it is made, its bytes are the same.
"""

import csv
import hashlib
import io
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from types import ModuleType

import torch

from model.bundle import Closed
from model.clip.spec import ClipSpec
from trainer.data.manifest import Pixels, Sample, Split, StoreInfo
from trainer.data.origin import PHANTOM_MARK, Listing, Origin, Skip
from trainer.data.shard import Recipe, make_shard, note_path, read_note
from trainer.data.split import divide
from trainer.data.store import INFO, SAMPLES, SHARDS, VIDEOS, ClipStore
from trainer.errors import DataError, UsageError
from trainer.files import alone, replacing

DATASETS = ("mimic", "echonet", "camus", "tmed")
"""Each a module of this package with `survey` and `open_reel` (`DataSet`)."""

SKIPPED = "skipped.csv"
"""The file of a store that lists what was left out, and why."""

_WORK = "work.json"  # what is being prepared; there until the store is whole
_LOCK = ".lock"  # held while somebody prepares
_SHARD_SAMPLES = 64  # a shard of base clips is some 150 MB raw

_log = logging.getLogger(__name__)


class Work(Closed):
    """All that the bytes of a store follow from; another in the same folder is refused."""

    dataset: str
    clip: ClipSpec
    pixels: Pixels
    origins_sha256: str
    """Of all origins with their sides, so of the tables, the seed and the split."""


def prepare(
    dataset: str,
    source: Path,
    out: Path,
    *,
    clip: ClipSpec,
    pixels: Pixels,
    seed: int = 0,
    only: Split | None = None,
    max_unreadable: float = 0.05,
    jobs: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StoreInfo:
    """Make the clip store of a data set, or what is missing of it.

    Args:
        dataset: one of `DATASETS`.
        source: its root folder.
        out: the store's folder.
        clip: recipe of the clips.
        pixels: form of the frames.
        seed: of sides that are drawn by patient where the data set has none.
        only: every patient comes to this side.
        max_unreadable: share of the files that may be damaged, missing or mislabelled.
        jobs: processes; 1: this one alone; default: one a core.
        progress: called with shards done and shards in all.

    Raises:
        UsageError: the data set is unknown, or the folder holds something else.
        DataError: tables do not fit, too much is damaged, the disk is full, or another call writes to the folder; what
            was made stays for the next call.
    """
    if dataset not in DATASETS:
        raise UsageError(f"{dataset}: is none of {', '.join(DATASETS)}")
    if not source.is_dir():
        raise UsageError(f"{source}: is no folder")
    module = import_module(f"trainer.data.{dataset}")
    listing: Listing = module.survey(source)
    origins = divide(listing.origins, seed=seed, only=only)
    if not origins:
        raise DataError(f"{source}: holds no clip of {dataset}; {_first(listing.skipped)}")
    work = Work(dataset=dataset, clip=clip, pixels=pixels, origins_sha256=_digest(origins))
    busy = DataError(f"{out}: another trainer prepare writes here: wait for it, or give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with alone(out / _LOCK, busy):
            finished = _begin(out, work)
            if finished is not None:
                return finished
            shards = [origins[start : start + _SHARD_SAMPLES] for start in range(0, len(origins), _SHARD_SAMPLES)]
            _make_shards(module, Recipe(root=source, clip=clip, pixels=pixels), out, shards, jobs, progress)
            return _finish(out, work, listing, len(shards), (source / PHANTOM_MARK).is_file(), max_unreadable)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror}): make room and give the command again") from error
    except BrokenProcessPool as error:
        raise DataError(f"{out}: a process was killed, by lack of memory perhaps: go on with fewer --jobs") from error


def _begin(out: Path, work: Work) -> StoreInfo | None:
    """Clear what a kill left half written; return the store if it is whole already."""
    noted = out / _WORK
    if (out / INFO).is_file():
        store = ClipStore.open(out)
        if store.info.made_of != _work_digest(work):
            raise UsageError(f"{out}: holds a store of other data or another recipe: give another --out")
        noted.unlink(missing_ok=True)
        _clear_notes(out)
        return store.info
    if noted.is_file():
        if hashlib.sha256(noted.read_bytes()).hexdigest() != _work_digest(work):
            raise UsageError(f"{out}: was begun with other data or another recipe: give another --out, or remove it")
    elif any(one.name != _LOCK and not one.name.startswith(f".{_WORK}.") for one in out.iterdir()):
        raise UsageError(f"{out}: holds something else: give an empty folder as --out")
    with replacing(noted) as temporary:  # before all else: from now on the folder is known as ours
        temporary.write_text(work.model_dump_json())
    folders = [out / SHARDS, *([out / VIDEOS] if work.pixels == "avi" else [])]
    for folder in folders:
        folder.mkdir(exist_ok=True)
    for folder in (out, *folders):
        for leftover in folder.glob(".*"):  # what `replacing` had not finished
            if leftover.name != _LOCK:
                leftover.unlink()
    return None


def _make_shards(
    module: ModuleType,
    recipe: Recipe,
    out: Path,
    shards: Sequence[Sequence[Origin]],
    jobs: int | None,
    progress: Callable[[int, int], None],
) -> None:
    missing = [number for number in range(len(shards)) if not note_path(out, number).is_file()]
    done = len(shards) - len(missing)
    if done and missing:
        _log.info("%d of %d shards are there already", done, len(shards))
    progress(done, len(shards))
    make = partial(_make_one, module.__name__, recipe, out)
    if jobs == 1:
        for number in missing:
            make(number, shards[number])
            done += 1
            progress(done, len(shards))
        return
    with ProcessPoolExecutor(
        jobs or os.cpu_count(), mp_context=get_context("spawn"), initializer=_begin_worker, initargs=(os.getpid(),)
    ) as pool:
        waiting = [pool.submit(make, number, shards[number]) for number in missing]
        try:
            for future in as_completed(waiting):
                future.result()
                done += 1
                progress(done, len(shards))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_worker(parent: int) -> None:
    torch.set_num_threads(1)  # every core has a process of its own
    Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process with the one that asked: what it would still write, another call may be making."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _make_one(module: str, recipe: Recipe, out: Path, number: int, origins: Sequence[Origin]) -> None:
    make_shard(import_module(module), recipe, out, number, origins)


def _finish(
    out: Path, work: Work, listing: Listing, num_shards: int, is_phantom: bool, max_unreadable: float
) -> StoreInfo:
    """Write the lists and, last, the info that makes the store whole."""
    samples: list[Sample] = []
    skipped = list(listing.skipped)
    for number in range(num_shards):
        made = read_note(out, number)
        assert made is not None, "every shard was made"
        samples += made.samples
        skipped += made.skipped
    skipped.sort(key=lambda skip: (skip.path, skip.reason))
    _write_skipped(out / SKIPPED, skipped)
    seen = len(samples) + len(skipped)
    bad = [skip for skip in skipped if skip.is_bad]
    if len(bad) > max(1.0, max_unreadable * seen):
        raise DataError(
            f"{len(bad)} of {seen} files are unusable, more than --max-unreadable {max_unreadable:g} allows;"
            f" {_first(bad)}; the rest stands in {out / SKIPPED}"
        )
    if not samples:
        raise DataError(f"no clip is left of {seen} files; {_first(skipped)}; the rest stands in {out / SKIPPED}")
    lines = "".join(one.model_dump_json() + "\n" for one in sorted(samples, key=lambda one: one.key)).encode()
    with replacing(out / SAMPLES) as temporary:
        temporary.write_bytes(lines)
    info = StoreInfo(
        dataset=work.dataset,
        clip=work.clip,
        pixels=work.pixels,
        samples_sha256=hashlib.sha256(lines).hexdigest(),
        counts=_count(samples, skipped),
        is_phantom=is_phantom,
        notes=listing.notes,
        made_of=_work_digest(work),
    )
    with replacing(out / INFO) as temporary:
        temporary.write_text(info.model_dump_json(indent=1))
    (out / _WORK).unlink()
    _clear_notes(out)
    return info


def _work_digest(work: Work) -> str:
    return hashlib.sha256(work.model_dump_json().encode()).hexdigest()


def _digest(origins: Sequence[Origin]) -> str:
    lines = (json.dumps(asdict(one), sort_keys=True) for one in origins)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _clear_notes(out: Path) -> None:
    for note in (out / SHARDS).glob("*.json"):
        note.unlink()


def _count(samples: Sequence[Sample], skipped: Sequence[Skip]) -> dict[str, int]:
    kinds = Counter(f"{one.kind}s" for one in samples)
    reasons = Counter(f"skipped, {skip.reason.partition(':')[0]}" for skip in skipped)
    return {"files": len(samples) + len(skipped), "kept": len(samples)} | dict(sorted((kinds + reasons).items()))


def _write_skipped(path: Path, skipped: Sequence[Skip]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "reason"])
    writer.writerows([skip.path, skip.reason] for skip in skipped)
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _first(skipped: Sequence[Skip]) -> str:
    """Return the first few in words."""
    named = [f"{skip.path} ({skip.reason})" for skip in skipped[:3]]
    return f"first: {', '.join(named)}" if named else "its tables are empty"
