"""Which samples of which stores a run uses, and what each is true of."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from model.prediction import encode_target
from model.tasks import CATALOGUE, Grade, Kind, Scope, Task, View
from trainer.data.manifest import Sample, Split
from trainer.data.store import ClipStore
from trainer.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A sample and the store that holds it."""

    store: int
    """Its place in `Cohort.stores`."""
    sample: Sample

    @property
    def subject(self) -> str:
        """Return the patient, distinct over the stores."""
        return f"{self.store}/{self.sample.subject}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Cohort:
    """The samples that a run uses, in an order that depends on their keys alone."""

    stores: tuple[ClipStore, ...]
    entries: tuple[Entry, ...]

    @property
    def num_subjects(self) -> int:
        """Return how many patients there are."""
        return len({entry.subject for entry in self.entries})

    def views(self, tasks: Iterable[Task]) -> dict[Task, tuple[View, ...]]:
        """Return the views that each task is spoken for by, in the order of `View`."""
        seen: dict[Task, set[View]] = {task: set() for task in tasks}
        for entry in self.entries:
            for task, views in seen.items():
                if target(entry.sample, task, use_unknown_views=True) is not None:
                    views |= _shown(entry.sample, task)
        return {task: tuple(view for view in View if view in views) for task, views in seen.items()}


def loops(stores: Sequence[ClipStore], split: Split) -> Cohort:
    """Return what pre-training sees of a split: every cine loop; of a store of stills, its studies' stacks."""
    _check_patients(stores)
    kinds = ["loop" if any(one.kind == "loop" for one in store.samples) else "stack" for store in stores]
    return _cohort(stores, [entry for entry in _entries(stores, split) if entry.sample.kind == kinds[entry.store]])


def labelled(
    stores: Sequence[ClipStore], split: Split, tasks: Sequence[Task], *, use_unknown_views: bool = False
) -> Cohort:
    """Return the samples of a split that speak for at least one of the tasks.

    Raises:
        DataError: a task has no sample, or a patient is on both sides of a split.
    """
    _check_patients(stores)
    entries = [
        entry
        for entry in _entries(stores, split)
        if any(target(entry.sample, task, use_unknown_views=use_unknown_views) is not None for task in tasks)
    ]
    for task in tasks:
        if not any(target(entry.sample, task, use_unknown_views=use_unknown_views) is not None for entry in entries):
            names = ", ".join(store.info.dataset for store in stores)
            raise DataError(f"{task}: no sample of split {split} in {names} has a label for it: give other --data")
    return _cohort(stores, entries)


def fraction(cohort: Cohort, share: float, seed: int) -> Cohort:
    """Return the samples of a share of the subjects, at least one, drawn by the seed."""
    if share == 1.0:
        return cohort
    subjects = sorted({entry.subject for entry in cohort.entries})
    order = np.random.default_rng([seed, len(subjects)]).permutation(len(subjects))
    kept = {subjects[place] for place in order[: math.ceil(share * len(subjects))]}
    return Cohort(stores=cohort.stores, entries=tuple(entry for entry in cohort.entries if entry.subject in kept))


def thin(cohort: Cohort, tasks: Sequence[Task], share: float, seed: int, *, use_unknown_views: bool = False) -> Cohort:
    """Return all samples that speak for more than the view, and a share of the others, drawn by the seed.

    Most loops of a real study show views that no measurement is taken from: one in ten of them teaches the view as
    well, and costs a tenth.
    """
    if share == 1.0 or tuple(tasks) == (Task.VIEW,):
        return cohort
    others = [task for task in tasks if task is not Task.VIEW]
    is_rich = [
        any(target(one.sample, task, use_unknown_views=use_unknown_views) is not None for task in others)
        for one in cohort.entries
    ]
    drawn = np.random.default_rng([seed, len(cohort.entries)]).random(len(cohort.entries)) < share
    kept = tuple(one for one, rich, lucky in zip(cohort.entries, is_rich, drawn, strict=True) if rich or lucky)
    return Cohort(stores=cohort.stores, entries=kept)


def target(sample: Sample, task: Task, *, use_unknown_views: bool = False) -> float | None:
    """Return what the task's head should put out, None where the sample does not speak for it.

    Raw: LVEF as a fraction, volumes as ln(mL), 0 or 1 for LVEF < 50 %, the number of a class.
    """
    info = CATALOGUE[task]
    if task is Task.VIEW:
        return None if sample.kind == "stack" or sample.view is None else float(list(View).index(sample.view))
    if info.scope is Scope.STUDY:
        grade = sample.targets.get(task)
        return None if sample.kind != "stack" or grade is None else float(list(Grade).index(Grade(str(grade))))
    if sample.kind != "loop" or not (sample.view in info.views or (sample.view is None and use_unknown_views)):
        return None
    value = sample.targets.get(Task.LVEF if task is Task.LVEF_REDUCED else task)
    if value is None:
        return None
    return float(float(value) < 50.0) if info.kind is Kind.BINARY else encode_target(task, float(value))


def _shown(sample: Sample, task: Task) -> set[View]:
    if sample.view is not None:
        return {sample.view}
    return set(CATALOGUE[task].views) or set(View)


def _entries(stores: Sequence[ClipStore], split: Split) -> Iterable[Entry]:
    for number, store in enumerate(stores):
        for sample in store.samples:
            if sample.split == split:
                yield Entry(store=number, sample=sample)


def _cohort(stores: Sequence[ClipStore], entries: Sequence[Entry]) -> Cohort:
    ordered = sorted(entries, key=lambda entry: (entry.store, entry.sample.key))
    return Cohort(stores=tuple(stores), entries=tuple(ordered))


def _check_patients(stores: Sequence[ClipStore]) -> None:
    for store in stores:
        sides: dict[str, str] = {}
        for sample in store.samples:
            if sides.setdefault(sample.subject, sample.split) != sample.split:
                raise DataError(
                    f"store {store.info.dataset}: subject {sample.subject} is in split {sides[sample.subject]} and in"
                    f" {sample.split}: prepare it again with splits by patient"
                )
