"""Plans: every sample once an epoch, the same on any number of processes, and flips that the seed decides."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.tasks import Grade, Task, View
from tests.trainer.stores import make_store
from trainer.data.cohort import fraction, labelled, loops, target, thin
from trainer.data.jitter import JitterConfig
from trainer.data.loader import Clips, Plan, all_batches, training_batches
from trainer.data.manifest import Sample
from trainer.data.store import ClipStore
from trainer.errors import UsageError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    """Return a small store."""
    return ClipStore.open(make_store(tmp_path_factory.mktemp("loader") / "store", subjects=8))


@given(num_samples=st.integers(8, 90), batch=st.integers(1, 4), parts=st.integers(1, 2), seed=st.integers(0, 9))
def test_an_epoch_shows_no_sample_twice(num_samples: int, batch: int, parts: int, seed: int) -> None:
    plan = Plan(num_samples=num_samples, batch=batch, parts=parts, seed=seed, epochs=2)

    shown = [place for step in range(plan.steps_an_epoch) for part in range(parts) for place in plan.part(step, part)]

    assert len(set(shown)) == len(shown) == plan.steps_an_epoch * batch * parts
    assert num_samples - len(shown) < batch * parts
    assert {epoch for epoch, _ in shown} == {0}
    assert {epoch for epoch, _ in plan.part(plan.steps_an_epoch, 0)} == {1}


def test_epochs_have_orders_of_their_own() -> None:
    plan = Plan(num_samples=40, batch=40, parts=1, seed=1, epochs=3)

    orders = [[sample for _, sample in plan.part(step, 0)] for step in range(3)]

    assert orders[0] != orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == list(range(40))


def test_a_step_is_never_short() -> None:
    with pytest.raises(UsageError, match="a step takes 8 clips, the data has 7"):
        Plan(num_samples=7, batch=4, parts=2, seed=0, epochs=1)


def test_processes_share_the_steps(store: ClipStore) -> None:
    clips = Clips(loops([store], "train"), lambda _: (), flip=True, seed=5)
    plan = Plan(num_samples=len(clips), batch=2, parts=4, seed=5, epochs=2)

    def shown(rank: int, world: int) -> list[tuple[tuple[int, int], ...]]:
        batches = training_batches(clips, plan, first_step=0, rank=rank, world=world, workers=0, pin=False)
        return [batch.places for batch in batches]

    alone, first, second = shown(0, 1), shown(0, 2), shown(1, 2)

    assert alone[0::2] == first
    assert alone[1::2] == second


def test_worker_processes_read_the_same_as_the_training_process(store: ClipStore) -> None:
    clips = Clips(loops([store], "train"), lambda _: (1.0,), flip=True, seed=5)
    plan = Plan(num_samples=len(clips), batch=2, parts=1, seed=5, epochs=1)

    own, theirs = (
        list(training_batches(clips, plan, first_step=1, rank=0, world=1, workers=workers, pin=False))
        for workers in (0, 2)
    )

    assert [one.places for one in own] == [one.places for one in theirs]
    assert all(torch.equal(one.pixels_BTCSS, other.pixels_BTCSS) for one, other in zip(own, theirs, strict=True))


def test_flips_turn_all_frames_of_a_clip_alike(store: ClipStore) -> None:
    cohort = loops([store], "train")
    plain, flipped = (Clips(cohort, lambda _: (), flip=flip, seed=5) for flip in (False, True))

    seen = set()
    for epoch in range(12):
        one, other = (clips[[(epoch, 0)]].pixels_BTCSS[0] for clips in (plain, flipped))
        turns = {name: torch.equal(one.flip(sides), other)
                 for name, sides in (("none", []), ("across", [3]), ("down", [2]), ("both", [2, 3]))}  # fmt: skip
        assert sum(turns.values()) == 1
        seen |= {name for name, is_so in turns.items() if is_so}
    assert seen == {"none", "across", "down", "both"}


def test_every_sample_is_asked_once_in_order(store: ClipStore) -> None:
    clips = Clips(loops([store], "train"), lambda _: (), flip=False, seed=0)

    places = [place for batch in all_batches(clips, 5) for place in batch.places]

    assert places == [(0, number) for number in range(len(clips))]


def test_a_loop_speaks_for_the_tasks_of_its_view(store: ClipStore) -> None:
    apical, parasternal = store.samples[0], store.samples[1]

    assert target(apical, Task.LVEF) == pytest.approx(float(apical.targets[Task.LVEF]) / 100.0)
    assert target(apical, Task.LVEF_REDUCED) == float(float(apical.targets[Task.LVEF]) < 50.0)
    assert target(apical, Task.VIEW) == 0.0
    assert target(apical, Task.AORTIC_STENOSIS) is None
    assert target(parasternal, Task.LVEF) is None
    assert target(parasternal, Task.VIEW) == 2.0


def test_a_loop_of_unknown_view_speaks_only_where_that_is_wanted(store: ClipStore) -> None:
    unknown = store.samples[0].model_copy(update={"view": None})

    assert target(unknown, Task.LVEF) is None
    assert target(unknown, Task.LVEF, use_unknown_views=True) is not None
    assert target(unknown, Task.VIEW) is None


def test_a_stack_speaks_for_the_stenosis_alone(store: ClipStore) -> None:
    targets = {Task.AORTIC_STENOSIS: Grade.MODERATE.value, Task.LVEF: 60.0}
    stack = store.samples[0].model_copy(update={"kind": "stack", "view": None, "targets": targets})

    assert target(stack, Task.AORTIC_STENOSIS) == 3.0
    assert target(stack, Task.LVEF, use_unknown_views=True) is None


def test_a_fraction_is_of_subjects_and_nested_in_a_larger_one(store: ClipStore) -> None:
    cohort = labelled([store], "train", [Task.VIEW])

    some, more = fraction(cohort, 0.3, 1), fraction(cohort, 0.7, 1)

    assert some.num_subjects == 2
    assert {entry.subject for entry in some.entries} <= {entry.subject for entry in more.entries}
    assert len(some.entries) == 4


def test_loops_that_speak_for_the_view_alone_are_thinned_out(store: ClipStore) -> None:
    tasks = [Task.LVEF, Task.VIEW]
    cohort = labelled([store], "train", tasks)

    some = thin(cohort, tasks, 0.3, 1)

    views = [entry.sample.view for entry in some.entries]
    assert views.count(View.A4C) == 6
    assert 0 < views.count(View.PLAX) < 6
    assert thin(cohort, tasks, 0.3, 1) == some
    assert thin(cohort, [Task.VIEW], 0.5, 1) == cohort


def test_pre_training_sees_the_stacks_of_a_store_without_loops(tmp_path: Path) -> None:
    def change(sample: Sample) -> Sample:
        return sample.model_copy(update={"kind": "stack" if sample.view is View.A4C else "still", "view": None})

    stills = ClipStore.open(make_store(tmp_path / "stills", subjects=8, change=change))

    assert {entry.sample.kind for entry in loops([stills], "train").entries} == {"stack"}
    assert len(loops([stills], "train").entries) == 6


def test_a_cohort_knows_the_views_of_its_tasks(store: ClipStore) -> None:
    cohort = labelled([store], "train", [Task.LVEF, Task.VIEW])

    assert cohort.views([Task.LVEF, Task.VIEW]) == {Task.LVEF: (View.A4C,), Task.VIEW: (View.A4C, View.PLAX)}


def test_jitter_is_a_function_of_seed_epoch_and_sample(store: ClipStore) -> None:
    def clip(seed: int, epoch: int) -> torch.Tensor:
        of = Clips(
            loops([store], "train"), lambda _: (), flip=False, seed=seed, jitter=JitterConfig(shift=0.2, gain=0.2)
        )
        return of[[(epoch, 3)]].pixels_BTCSS[0]

    assert torch.equal(clip(1, 0), clip(1, 0))
    assert not torch.equal(clip(1, 0), clip(1, 1))
    assert not torch.equal(clip(1, 0), clip(2, 0))
