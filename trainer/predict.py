"""What a network says about the samples of a split, in an order that the keys alone decide.

Legend: B clips, T frames, C = 3 RGB, S side of a clip.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.bundle import exact
from model.clip.spec import ClipSpec
from model.clip.transform import normalise
from model.ensemble import Ensemble
from model.net.echo_vision import EchoVision
from model.prediction import LoopOutputs, decode, mean_outputs
from model.tasks import STUDY_TASKS, Task
from trainer.data.cohort import Cohort, Entry, labelled, target
from trainer.data.loader import Clips, all_batches
from trainer.data.manifest import Split
from trainer.data.store import ClipStore
from trainer.errors import DataError, RunError

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with how many samples are done, and of how many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What was said about one loop, stack or still."""

    entry: Entry
    """Its sample; of a loop with several clips the first one."""
    outputs: LoopOutputs
    """task -> member -> decoded values, as the node keeps them; a single network is one member."""

    def mean(self, task: Task) -> list[float]:
        """Return the mean over the members: [value], [p of the positive class] or [p of each class]."""
        members = self.outputs[task]
        return [math.fsum(values) / len(members) for values in zip(*members, strict=True)]


_PROGRESS_SECONDS = 10.0


def log_progress() -> Progress:
    """Return a progress that says how far it is every few seconds, and at the end."""
    start = said = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if done == total or now - said >= _PROGRESS_SECONDS:
            said = now
            log.info("%d of %d clips, %.1f clips/s", done, total, done / max(now - start, 1e-9))

    return say


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; `auto`: the GPU if there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def known_tasks(
    stores: Sequence[ClipStore], split: Split, tasks: Sequence[Task], *, use_unknown_views: bool = False
) -> tuple[Task, ...]:
    """Return those of the tasks that a sample of the split speaks for.

    Raises:
        DataError: there is none.
    """
    samples = [sample for store in stores for sample in store.samples if sample.split == split]
    known = tuple(
        task
        for task in tasks
        if any(target(sample, task, use_unknown_views=use_unknown_views) is not None for sample in samples)
    )
    if not known:
        names = ", ".join(str(store.path) for store in stores)
        raise DataError(
            f"{names}: no sample of split {split} has a label for {', '.join(tasks)}: give other --data or --split"
        )
    return known


def labelled_cohort(
    stores: Sequence[ClipStore], split: Split, tasks: Sequence[Task], *, use_unknown_views: bool = False
) -> Cohort:
    """Return the samples of a split that speak for at least one of the tasks, patients checked, in order.

    Raises:
        DataError: none does, or a patient is on both sides of a split.
    """
    known = known_tasks(stores, split, tasks, use_unknown_views=use_unknown_views)
    return labelled(stores, split, known, use_unknown_views=use_unknown_views)


@torch.inference_mode()
def answer(
    network: EchoVision,
    cohort: Cohort,
    spec: ClipSpec,
    *,
    view_temperature: float = 1.0,
    batch: int = 8,
    device: str = "auto",
    workers: int = 0,
    progress: Progress | None = None,
) -> list[Answer]:
    """Return what a network in evaluation mode says about each loop, stack or still of a cohort, in order, in float32.

    Args:
        network: it is moved to the device.
        cohort: of stores that were prepared by `spec`.
        spec: the recipe that the network was trained with.
        view_temperature: of its view head.
        batch: clips at once.
        device: such as "cpu", "cuda:0" or "auto".
        workers: processes that read clips.
        progress: called with the samples done and their number; None: the log is told.

    Raises:
        RunError: a number is not finite.
    """
    where, progress = choose_device(device), progress or log_progress()
    network = network.to(where).eval()
    answers: list[Answer] = []
    for entries, clips_BCTSS, indices_BT in _clips(cohort, spec, batch, where, workers):
        with exact():
            raw = {Task(name): rows.float().cpu().tolist() for name, rows in network(clips_BCTSS, indices_BT).items()}
        for place, entry in enumerate(entries):
            outputs = {task: [decode(task, rows[place], view_temperature)] for task, rows in raw.items()}
            answers.append(_checked(Answer(entry=entry, outputs=outputs)))
        progress(len(answers), len(cohort.entries))
    return _of_loops(answers)


def answer_as_ensemble(
    ensemble: Ensemble, cohort: Cohort, *, batch: int = 8, progress: Progress | None = None
) -> list[Answer]:
    """Return what every member of a published ensemble says about each loop, stack or still, on its own device.

    A stack goes the way of a study, everything else that of a loop.

    Raises:
        RunError: a number is not finite.
    """
    answers: list[Answer] = []
    progress = progress or log_progress()
    has_study_tasks = any(task in ensemble.tasks for task in STUDY_TASKS)
    for entries, clips_BCTSS, indices_BT in _clips(cohort, ensemble.spec, batch, torch.device("cpu"), 0):
        loops = [place for place, entry in enumerate(entries) if entry.sample.kind != "stack"]
        of_loops = iter(ensemble.predict_loops(clips_BCTSS[loops], indices_BT[loops]))
        for place, entry in enumerate(entries):
            if entry.sample.kind != "stack":
                outputs = next(of_loops)
            else:
                outputs = ensemble.predict_study(clips_BCTSS[place], indices_BT[place]) if has_study_tasks else {}
            answers.append(_checked(Answer(entry=entry, outputs=outputs)))
        progress(len(answers), len(cohort.entries))
    return _of_loops(answers)


def _of_loops(answers: Sequence[Answer]) -> list[Answer]:
    """Return one answer a loop: the mean over its clips, as the node says it."""
    clips: dict[tuple[int, str], list[Answer]] = {}
    for one in answers:
        clips.setdefault((one.entry.store, one.entry.sample.loop_key), []).append(one)
    return [Answer(entry=own[0].entry, outputs=mean_outputs([one.outputs for one in own])) for own in clips.values()]


def _clips(
    cohort: Cohort, spec: ClipSpec, batch: int, device: torch.device, workers: int
) -> Iterator[tuple[list[Entry], Tensor, Tensor]]:
    """Yield the samples of a batch, their clips (B, 3, T, S, S) as the network sees them, and their indices (B, T)."""
    clips = Clips(cohort, lambda entry: (), flip=False, seed=0)
    for one in all_batches(clips, batch, workers=workers, pin=device.type == "cuda"):
        on_device = one.to(device)
        entries = [cohort.entries[number] for _, number in one.places]
        yield entries, normalise(on_device.pixels_BTCSS, spec).transpose(1, 2), on_device.indices_BT


def _checked(one: Answer) -> Answer:
    for task, members in one.outputs.items():
        if not all(math.isfinite(value) for member in members for value in member):
            raise RunError(f"{one.entry.sample.key}: the answer for {task} is not finite: the weights are no use")
    return one
