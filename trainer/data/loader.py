"""Batches: their order is a function of the seed, so that a run that resumes sees what it would have seen.

A step is made of parts: each of `world` processes takes `accumulation` of them. One process with twice the accumulation
sees the same clips in a step as two processes. Nothing here has a state to save.

Legend: B clips, T frames, C = 3 RGB, S side of a clip, K tasks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from trainer.data.cohort import Cohort, Entry
from trainer.data.jitter import JitterConfig, jitter
from trainer.errors import UsageError

Place = tuple[int, int]
"""(epoch, sample) of a clip."""

_FLIPS, _JITTER = 1, 3  # salts of the random numbers; the masks have another


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Which samples are in which part of which step."""

    num_samples: int
    batch: int
    """Clips of a part."""
    parts: int
    """Parts of a step: processes x accumulation."""
    seed: int
    epochs: int
    max_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse a step that the data cannot fill.

        Raises:
            UsageError: it would never be full.
        """
        if self.num_samples < self.batch * self.parts:
            raise UsageError(
                f"batch: a step takes {self.batch * self.parts} clips, the data has {self.num_samples}: make batch or"
                " accumulation smaller, or give more --data"
            )

    @property
    def steps_an_epoch(self) -> int:
        """Return the steps of an epoch; what does not fill a step is left for another epoch's order."""
        return self.num_samples // (self.batch * self.parts)

    @property
    def total_steps(self) -> int:
        """Return the steps of the run."""
        steps = self.epochs * self.steps_an_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def epoch_of(self, step: int) -> int:
        """Return the epoch of a step, both 0-based."""
        return step // self.steps_an_epoch

    def part(self, step: int, part: int) -> list[Place]:
        """Return (epoch, sample) of each clip of a part."""
        epoch = self.epoch_of(step)
        order = _order(self.seed, epoch, self.num_samples)
        start = ((step % self.steps_an_epoch) * self.parts + part) * self.batch
        return [(epoch, int(sample)) for sample in order[start : start + self.batch]]


@lru_cache(maxsize=2)  # asked for part by part
def _order(seed: int, epoch: int, num_samples: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Clips as they lie in the store, flipped and jittered; normalised on the device."""

    pixels_BTCSS: Tensor
    """uint8."""
    indices_BT: Tensor
    """The frames of the loop that each clip was made of."""
    targets_BK: Tensor
    """Raw targets, NaN where a sample does not speak for a task."""
    places: tuple[Place, ...]
    """Of each clip."""

    def pin_memory(self) -> "Batch":
        """Return the batch in memory that a GPU copies from without waiting; the loader calls it."""
        return Batch(
            pixels_BTCSS=self.pixels_BTCSS.pin_memory(),
            indices_BT=self.indices_BT.pin_memory(),
            targets_BK=self.targets_BK.pin_memory(),
            places=self.places,
        )

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(
            pixels_BTCSS=self.pixels_BTCSS.to(device, non_blocking=True),
            indices_BT=self.indices_BT.to(device, non_blocking=True),
            targets_BK=self.targets_BK.to(device, non_blocking=True),
            places=self.places,
        )


Targets = Callable[[Entry], Sequence[float]]


class Clips(Dataset[Batch]):
    """The clips of a cohort, batch by batch."""

    def __init__(
        self, cohort: Cohort, targets: Targets, *, flip: bool, seed: int, jitter: JitterConfig | None = None
    ) -> None:
        """Keep what is to be read; flips and jitter are a function of seed, epoch and sample."""
        self.cohort = cohort
        self.targets_NK = torch.tensor([list(targets(entry)) for entry in cohort.entries], dtype=torch.float32)
        """Raw targets of every sample, NaN where it does not speak for a task."""
        self._flip = flip
        self._jitter = jitter if jitter is not None and jitter != JitterConfig() else None
        self._seed = seed

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.cohort.entries)

    def __getitem__(self, places: Sequence[Place]) -> Batch:
        """Return the batch of these places; each clip is written where it stays: a raw store costs copies alone."""
        entries = [self.cohort.entries[number] for _, number in places]
        spec = self.cohort.stores[0].info.clip
        pixels_BTCSS = torch.empty((len(places), spec.num_frames, 3, spec.size, spec.size), dtype=torch.uint8)
        for pixels_TCSS, entry, place in zip(pixels_BTCSS, entries, places, strict=True):
            self._write(pixels_TCSS, entry, place)
        return Batch(
            pixels_BTCSS=pixels_BTCSS,
            indices_BT=torch.tensor([entry.sample.indices for entry in entries]),
            targets_BK=self.targets_NK[[number for _, number in places]],
            places=tuple(places),
        )

    def _write(self, pixels_TCSS: Tensor, entry: Entry, place: Place) -> None:
        frames_TCSS = self.cohort.stores[entry.store].read(entry.sample)
        across, down = False, False
        if self._flip:
            across, down = np.random.default_rng([self._seed, _FLIPS, *place]).random(2) < 0.5
        pixels_TCSS.numpy()[...] = frames_TCSS[:, :, ::-1] if down else frames_TCSS
        if across:
            pixels_TCSS.copy_(pixels_TCSS.flip(3))
        if self._jitter is not None:
            rng = np.random.default_rng([self._seed, _JITTER, *place])
            pixels_TCSS.copy_(jitter(pixels_TCSS, self._jitter, rng))


class _Parts(Sampler[list[Place]]):
    """The parts of one process, from a step to the end of the run."""

    def __init__(self, plan: Plan, *, first_step: int, rank: int, world: int) -> None:
        self._plan, self._first_step, self._rank, self._world = plan, first_step, rank, world

    def __iter__(self) -> Iterator[list[Place]]:
        for step in range(self._first_step, self._plan.total_steps):
            for part in range(self._rank, self._plan.parts, self._world):
                yield self._plan.part(step, part)

    def __len__(self) -> int:
        return (self._plan.total_steps - self._first_step) * (self._plan.parts // self._world)


def training_batches(
    clips: Clips, plan: Plan, *, first_step: int, rank: int, world: int, workers: int, pin: bool
) -> Iterator[Batch]:
    """Yield the parts of a process, step by step, from `first_step` to the end."""
    sampler = _Parts(plan, first_step=first_step, rank=rank, world=world)
    return iter(_loader(clips, sampler, workers=workers, pin=pin))


def all_batches(
    clips: Clips, batch: int, *, rank: int = 0, world: int = 1, workers: int = 0, pin: bool = False
) -> Iterator[Batch]:
    """Yield every sample once, in order; of several processes each takes every `world`-th batch."""
    places = [[(0, number) for number in range(start, min(start + batch, len(clips)))]
              for start in range(0, len(clips), batch)]  # fmt: skip
    return iter(_loader(clips, places[rank::world], workers=workers, pin=pin))


def _loader(
    clips: Clips, batches: Sampler[list[Place]] | list[list[Place]], *, workers: int, pin: bool
) -> DataLoader[Batch]:
    return DataLoader(
        clips,
        sampler=batches,
        batch_size=None,  # a place of the sampler is a whole batch
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
    )
